//! COPY in both directions, in the forms that text and CSV have.

use super::Grammar;
use super::node::{Node, all, text};
use super::schema::Column;

/// A form of COPY: its options, and what is to be known to write lines of it.
struct Form {
    options: &'static str,
    csv: bool,
    delimiter: char,
    quote: char,
    escape: char,
    null: &'static str,
    /// Nothing, any names, or the columns' names.
    header: Option<bool>,
}

const fn form(options: &'static str, csv: bool, delimiter: char, null: &'static str) -> Form {
    Form {
        options,
        csv,
        delimiter,
        quote: '"',
        escape: '"',
        null,
        header: None,
    }
}

const FORMS: &[Form] = &[
    form("", false, '\t', "\\N"),
    form(" (FORMAT csv)", true, ',', ""),
    form(" WITH CSV", true, ',', ""),
    form(" (DELIMITER '|', NULL '')", false, '|', ""),
    form(" WITH DELIMITER ';' NULL 'nil'", false, ';', "nil"),
    form(" (FORMAT csv, DELIMITER ';', NULL 'NULL')", true, ';', "NULL"),
    Form {
        header: Some(false),
        ..form(" (FORMAT csv, HEADER)", true, ',', "")
    },
    Form {
        header: Some(true),
        ..form(" (FORMAT text, HEADER match)", false, '\t', "\\N")
    },
    Form {
        quote: '\'',
        escape: '\\',
        ..form(" (FORMAT csv, QUOTE '''', ESCAPE '\\')", true, ',', "")
    },
];

/// Forms for COPY TO alone.
const OUTWARD: &[&str] = &[
    " (FORMAT csv, FORCE_QUOTE *)",
    " (FORMAT csv, HEADER true, DELIMITER '\t')",
    " WITH CSV HEADER",
    " (ENCODING 'LATIN1')",
    " (FORMAT nosuch)",
    " (FORMAT csv, DELIMITER 'ab')",
];

impl Form {
    fn field(&self, value: Option<&str>) -> String {
        let Some(value) = value else {
            return self.null.to_owned();
        };
        if !self.csv {
            let mut out = String::new();
            for c in value.chars() {
                match c {
                    '\n' => out.push_str("\\n"),
                    '\t' => out.push_str("\\t"),
                    '\\' => out.push_str("\\\\"),
                    c if c == self.delimiter => out.extend(['\\', c]),
                    c => out.push(c),
                }
            }
            return out;
        }
        let special = [self.delimiter, self.quote, self.escape, '\n'];
        if value != self.null && !value.contains(special) {
            return value.to_owned();
        }
        let mut out = String::from(self.quote);
        for c in value.chars() {
            if c == self.quote || c == self.escape {
                out.push(self.escape);
            }
            out.push(c);
        }
        out.push(self.quote);
        out
    }
}

impl Grammar<'_> {
    /// Rows out, or in and then out.
    pub(super) fn copy(&mut self, steps: &mut Vec<Node>) {
        if self.chance.one_in(2) {
            self.copy_in(steps);
        }
        let options = match self.chance.one_in(3) {
            true => *self.chance.pick(OUTWARD),
            false => self.chance.pick(FORMS).options,
        };
        let end = text(format!(" TO STDOUT{options}"));
        let table = self.chance.pick(&self.schema.tables).clone();
        steps.push(match self.chance.below(4) {
            0 => all([text(format!("COPY {}", table.name)), end]),
            1 => {
                let columns = self.some_columns(&table);
                all([text(format!("COPY {} ({})", table.name, names(&columns))), end])
            }
            2 => all([text("COPY ("), self.ordered_query(), text(")"), end]),
            _ => {
                self.writes_rows = true;
                all([text("COPY ("), self.delete_returning(&table), text(")"), end])
            }
        });
    }

    fn copy_in(&mut self, steps: &mut Vec<Node>) {
        let table = self.chance.pick(&self.schema.tables).clone();
        let columns = self.some_columns(&table);
        let form = self.chance.pick(FORMS);
        self.writes_rows = true;
        let mut lines = String::new();
        if let Some(named) = form.header {
            let header: Vec<_> = columns
                .iter()
                .map(|column| if named { column.name.as_str() } else { "any" })
                .collect();
            lines = header.join(&form.delimiter.to_string()) + "\n";
        }
        for _ in 0..*self.chance.pick(&[0, 1, 2, 6, 12]) {
            let mut fields: Vec<_> = columns
                .iter()
                .map(|column| {
                    let value = (!self.chance.one_in(12)).then(|| *self.chance.pick(column.of.values()));
                    form.field(value)
                })
                .collect();
            match self.chance.below(60) {
                0 => fields.push("more".to_owned()),
                1 => _ = fields.pop(),
                2 => fields[0] = "?".to_owned(),
                _ => {}
            }
            lines += &(fields.join(&form.delimiter.to_string()) + "\n");
        }
        let condition = match self.chance.one_in(6) {
            true => format!(" WHERE {} IS NOT NULL", columns[columns.len() - 1].name),
            false => String::new(),
        };
        steps.push(all([
            text(format!(
                "COPY {} ({}) FROM STDIN{}{condition}",
                table.name,
                names(&columns),
                form.options
            )),
            Node::Data(lines),
        ]));
        steps.push(text(format!("SELECT * FROM {}", table.name)));
    }
}

fn names(columns: &[Column]) -> String {
    let names: Vec<_> = columns.iter().map(|column| column.name.as_str()).collect();
    names.join(", ")
}
