//! The options of EXPLAIN, as far as somebody else than PostgreSQL must know them.

use crate::cursor::Cursor;
use crate::lexer::Token;
use crate::literal::split_commas;

/// How a plan is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExplainFormat {
    /// lines
    Text,
    /// one JSON document
    Json,
    /// one XML document
    Xml,
    /// one YAML document
    Yaml,
    /// one that there is not
    Other,
}

/// What EXPLAIN is to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExplainOptions {
    /// run the statement
    pub analyze: bool,
    /// how it is written
    pub format: ExplainFormat,
    /// times of single steps, with `analyze`
    pub timing: bool,
    /// times of the whole at the end; None as `analyze` says
    pub summary: Option<bool>,
    /// VERBOSE, COSTS, BUFFERS …, as written
    others: Vec<String>,
}

impl ExplainOptions {
    /// Those of a statement that is EXPLAIN. What PostgreSQL would not understand stays among the others, for it to say so.
    pub fn read(text: &str, tokens: &[Token]) -> Self {
        let mut options = Self {
            analyze: false,
            format: ExplainFormat::Text,
            timing: true,
            summary: None,
            others: Vec::new(),
        };
        let mut c = Cursor::new(text, tokens);
        c.at += 1;
        if c.is_symbol("(") && !["select", "with", "values", "table"].iter().any(|w| c.is_ahead(1, w)) {
            let inside = c.skip_parentheses();
            for option in split_commas(&c, inside) {
                options.take(text, &tokens[option]);
            }
            return options;
        }
        options.analyze = c.accept_any(&["analyze", "analyse"]);
        if c.accept("verbose") {
            options.others.push("VERBOSE".to_owned());
        }
        options
    }

    fn take(&mut self, text: &str, option: &[Token]) {
        let (Some(name), Some(last)) = (option.first(), option.last()) else {
            return;
        };
        let value = option.get(1).map(|t| {
            t.string(text)
                .unwrap_or_else(|| t.text(text).to_owned())
                .to_ascii_lowercase()
        });
        let on = value.as_deref().is_none_or(|v| !["false", "off", "0"].contains(&v));
        match name.text(text).to_ascii_lowercase().as_str() {
            "analyze" | "analyse" => self.analyze = on,
            "timing" => self.timing = on,
            "summary" => self.summary = Some(on),
            "format" => {
                self.format = match value.as_deref() {
                    Some("text") => ExplainFormat::Text,
                    Some("json") => ExplainFormat::Json,
                    Some("xml") => ExplainFormat::Xml,
                    Some("yaml") => ExplainFormat::Yaml,
                    _ => ExplainFormat::Other,
                }
            }
            _ => self
                .others
                .push(text[name.start as usize..last.end as usize].to_owned()),
        }
    }

    /// `EXPLAIN (…) ` for a part of the statement on a shard; run there or not.
    pub fn head(&self, analyze: bool) -> String {
        let mut options = self.others.clone();
        options.retain(|o| analyze || !["wal", "buffers"].iter().any(|w| o.to_ascii_lowercase().starts_with(w)));
        if analyze {
            options.push("ANALYZE".to_owned());
            options.push(format!("TIMING {}", if self.timing { "ON" } else { "OFF" }));
        }
        options.push("SUMMARY OFF".to_owned());
        // The other documents are written from this one.
        if self.format != ExplainFormat::Text {
            options.push("FORMAT JSON".to_owned());
        }
        format!("EXPLAIN ({}) ", options.join(", "))
    }

    /// Whether the times of the whole are shown.
    pub fn shows_times(&self) -> bool {
        self.summary.unwrap_or(self.analyze)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str, analyze: bool) -> String {
        let tokens = crate::lexer::tokenize(text).unwrap();
        ExplainOptions::read(text, &tokens).head(analyze)
    }

    #[test]
    fn options_reach_the_shards() {
        assert_eq!(head("explain select 1", false), "EXPLAIN (SUMMARY OFF) ");
        assert_eq!(
            head("EXPLAIN ANALYZE VERBOSE SELECT 1", true),
            "EXPLAIN (VERBOSE, ANALYZE, TIMING ON, SUMMARY OFF) "
        );
        let text = "EXPLAIN (ANALYZE, COSTS off, BUFFERS, TIMING 'off', FORMAT json) SELECT 1";
        assert_eq!(
            head(text, true),
            "EXPLAIN (COSTS off, BUFFERS, ANALYZE, TIMING OFF, SUMMARY OFF, FORMAT JSON) "
        );
        assert_eq!(head(text, false), "EXPLAIN (COSTS off, SUMMARY OFF, FORMAT JSON) ");
        assert_eq!(head("EXPLAIN (SELECT 1)", false), "EXPLAIN (SUMMARY OFF) ");
    }
}
