//! What sqlparser lacks behind INSERT INTO: parts of columns in the list, and names that are words of other systems.

use super::rare::Finder;
use sqlparser::tokenizer as sp;

impl Finder<'_> {
    /// What stands behind INTO.
    pub(super) fn target(&mut self, into: usize) {
        if !self.follows_word(into, &["insert"]) {
            return;
        }
        let mut behind = into + 2;
        while self.is(behind, ".") {
            behind += 2;
        }
        if self.is_word(behind, &["as"]) {
            behind += 2;
        }
        self.insert_list(behind);
        if self.is_word(into + 1, &["directory", "function", "local"]) {
            let name = self.text_of(into + 1).to_ascii_lowercase();
            self.instead(into + 1, vec![sp::Token::make_word(&name, Some('"'))]);
        }
    }

    /// Behind INTO of an INSERT, or INSERT of a MERGE, whose list of columns may begin at `open`.
    pub(super) fn insert_list(&mut self, open: usize) {
        let queries = ["select", "with", "values", "table"];
        if !self.is(open, "(") || self.is_word(open + 1, &queries) || self.is(open + 1, "(") {
            return;
        }
        let Some(close) = self.close_of(open) else { return };
        for (from, to) in self.parts_of_columns(open, close) {
            self.leave_out(from..to);
        }
    }

    /// `[1]` and `.x` behind names of columns, from and to.
    fn parts_of_columns(&self, open: usize, close: usize) -> Vec<(usize, usize)> {
        let (mut parts, mut depth, mut begin) = (Vec::new(), 0, open + 1);
        for at in open + 1..=close {
            let ends = at == close || depth == 0 && self.is(at, ",");
            depth += i32::from(self.is(at, "[") || self.is(at, "(")) - i32::from(self.is(at, "]") || self.is(at, ")"));
            if ends {
                if at > begin + 1 && (self.is(begin + 1, "[") || self.is(begin + 1, ".")) {
                    parts.push((begin + 1, at));
                }
                begin = at + 1;
            }
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use crate::tree::assert_read_as;

    #[test]
    fn lists_are_read() {
        let cases = [
            (
                "INSERT INTO t (k, a[1], a[f(2, 3)], \"B\".x) VALUES (1, 2, 3, 4)",
                "INSERT INTO t (k, a, a, \"B\") VALUES (1, 2, 3, 4)",
            ),
            (
                "INSERT INTO s.t (k, b.x.y) SELECT 1, 2",
                "INSERT INTO s.t (k, b) SELECT 1, 2",
            ),
            (
                "INSERT INTO t AS x (a[1]) TABLE u",
                "INSERT INTO t AS x (a) SELECT * FROM u",
            ),
            ("INSERT INTO t TABLE u", "INSERT INTO t SELECT * FROM u"),
            (
                "INSERT INTO t (SELECT a[1], b.c FROM b)",
                "INSERT INTO t (SELECT a[1], b.c FROM b)",
            ),
        ];
        assert_read_as(cases);
    }
}
