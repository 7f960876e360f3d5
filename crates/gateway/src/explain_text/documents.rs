//! A plan's document in PostgreSQL's XML and YAML.

use serde_json::Value;

/// In XML; an element's name is the property's, with `-` for what cannot be in one.
pub(super) fn xml(document: &Value) -> String {
    let mut out = "<explain xmlns=\"http://www.postgresql.org/2009/explain\">\n".to_owned();
    element(&mut out, "Query", document, 1);
    out.push_str("</explain>");
    out
}

fn element(out: &mut String, name: &str, value: &Value, depth: usize) {
    let kept = |c: char| c.is_ascii_alphanumeric() || ['-', '_', '.'].contains(&c);
    let name: String = name.chars().map(|c| if kept(c) { c } else { '-' }).collect();
    // A shard's number can be a property, and no element begins with a digit.
    let name = match name.starts_with(|c: char| c.is_ascii_digit()) {
        true => format!("Shard-{name}"),
        false => name,
    };
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(properties) => {
            out.push_str(&format!("{indent}<{name}>\n"));
            properties
                .iter()
                .for_each(|(name, value)| element(out, name, value, depth + 1));
            out.push_str(&format!("{indent}</{name}>\n"));
        }
        Value::Array(items) => {
            let item = match name.as_str() {
                "Plans" => "Plan",
                "Triggers" => "Trigger",
                "Workers" => "Worker",
                _ => "Item",
            };
            out.push_str(&format!("{indent}<{name}>\n"));
            items.iter().for_each(|value| element(out, item, value, depth + 1));
            out.push_str(&format!("{indent}</{name}>\n"));
        }
        other => out.push_str(&format!("{indent}<{name}>{}</{name}>\n", escaped(&plain(other)))),
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    text.replace('\r', "&#x0d;")
}

/// In YAML; texts are written as in JSON, which YAML reads.
pub(super) fn yaml(document: &Value) -> String {
    let mut out = String::new();
    item(&mut out, document, 0);
    out.trim_start_matches('\n').to_owned()
}

/// An element of a list.
fn item(out: &mut String, value: &Value, depth: usize) {
    out.push_str(&format!("\n{}- ", "  ".repeat(depth)));
    match value {
        Value::Object(properties) => {
            for (i, (name, value)) in properties.iter().enumerate() {
                if i > 0 {
                    out.push_str(&format!("\n{}", "  ".repeat(depth + 1)));
                }
                property(out, name, value, depth + 1);
            }
        }
        other => out.push_str(&other.to_string()),
    }
}

fn property(out: &mut String, name: &str, value: &Value, depth: usize) {
    out.push_str(&format!("{name}: "));
    match value {
        Value::Object(properties) => {
            for (name, value) in properties {
                out.push_str(&format!("\n{}", "  ".repeat(depth + 1)));
                property(out, name, value, depth + 1);
            }
        }
        Value::Array(items) => items.iter().for_each(|value| item(out, value, depth + 1)),
        other => out.push_str(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn documents_are_written_as_postgresql_does() {
        let document = json!({"Plan": {"Node Type": "Shard", "Output": ["a < \"b\"", "c"], "Plans": [{"Node Type": "Scan", "Rows": 3}]}});
        assert_eq!(
            xml(&document),
            "<explain xmlns=\"http://www.postgresql.org/2009/explain\">\n  <Query>\n    <Plan>\n      <Node-Type>Shard</Node-Type>\n      \
             <Output>\n        <Item>a &lt; \"b\"</Item>\n        <Item>c</Item>\n      </Output>\n      <Plans>\n        <Plan>\n          \
             <Node-Type>Scan</Node-Type>\n          <Rows>3</Rows>\n        </Plan>\n      </Plans>\n    </Plan>\n  </Query>\n</explain>"
        );
        assert_eq!(
            yaml(&document),
            "- Plan: \n    Node Type: \"Shard\"\n    Output: \n      - \"a < \\\"b\\\"\"\n      - \"c\"\n    Plans: \n      - Node Type: \"Scan\"\n        Rows: 3"
        );
    }
}
