//! The functions of SQL/XML, whose arguments have words of their own: without them they are calls like others, of functions that nobody
//! knows.

use super::rare::Finder;
use sqlparser::tokenizer as sp;

impl Finder<'_> {
    /// Leaves out the words in the call that begins here.
    pub(super) fn xml_call(&mut self, i: usize) {
        let open = i + 1;
        let Some(close) = self.close_of(open).filter(|_| self.is(open, "(")) else {
            return;
        };
        let is = |words: &[&str]| self.is_word(i, words);
        if is(&["xmlelement", "xmlpi"]) && self.is_word(open + 1, &["name"]) && self.is_name(open + 2) {
            // The name, which is no expression, and the comma behind it.
            let end = open + 3 + usize::from(self.is(open + 3, ","));
            self.leave_out(open + 1..end);
        } else if is(&["xmlattributes", "xmlforest"]) {
            let names: Vec<_> = self
                .own(open, close)
                .into_iter()
                .filter(|&at| self.is_word(at, &["as"]))
                .collect();
            names.into_iter().for_each(|at| self.leave_out(at..at + 2));
        } else if is(&["xmlparse", "xmlserialize"]) && self.is_word(open + 1, &["content", "document"]) {
            self.leave_out(open + 1..open + 2);
            let ends = |&at: &usize| self.is_word(at, &["as", "preserve", "strip"]);
            if let Some(end) = self.own(open, close).into_iter().find(ends) {
                self.leave_out(end..close);
            }
        } else if is(&["xmlroot"])
            && let Some(end) = self.own(open, close).into_iter().find(|&at| self.is(at, ","))
            && !(end..close).any(|at| self.is_word(at, &["select"]))
        {
            self.leave_out(end..close);
        } else if is(&["xmltable"]) {
            // It sees what stands before it in any case.
            if i > 0 && self.is_word(i - 1, &["lateral"]) {
                self.leave_out(i - 1..i);
            }
            let by = self
                .own(open, close)
                .into_iter()
                .filter(|&at| self.is_word(at, &["by"]) && self.is_word(at + 1, &["ref", "value"]));
            by.collect::<Vec<_>>()
                .into_iter()
                .for_each(|at| self.leave_out(at..at + 2));
            if let Some(end) = self
                .close_of(open + 2)
                .filter(|_| self.is_word(open + 1, &["xmlnamespaces"]))
            {
                self.leave_out(open + 1..end + 2);
            }
        } else if is(&["xmlexists"])
            && let Some(passing) = self
                .own(open, close)
                .into_iter()
                .find(|&at| self.is_word(at, &["passing"]))
        {
            self.instead(passing, vec![sp::Token::Comma]);
            let by: Vec<_> = self
                .own(passing, close)
                .into_iter()
                .filter(|&at| self.is_word(at, &["by"]))
                .collect();
            by.into_iter().for_each(|at| self.leave_out(at..at + 2));
        }
    }

    /// The tokens between two that stand in no parentheses of their own.
    pub(super) fn own(&self, open: usize, close: usize) -> Vec<usize> {
        let mut depth = 0;
        let own = (open + 1..close).filter(|&at| {
            depth += i32::from(self.is(at, "(")) - i32::from(self.is(at, ")"));
            depth == 0
        });
        own.collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::tree::assert_read_as;

    #[test]
    fn calls_are_read() {
        let cases = [
            (
                "SELECT xmlelement(name a, xmlattributes(b AS \"c\", d), xmlelement(name e)) FROM t",
                "SELECT xmlelement(xmlattributes(b, d), xmlelement()) FROM t",
            ),
            ("SELECT xmlforest(a, b AS c) FROM t", "SELECT xmlforest(a, b) FROM t"),
            (
                "SELECT xmlparse(content a preserve whitespace) FROM t",
                "SELECT xmlparse(a) FROM t",
            ),
            (
                "SELECT xmlserialize(document a AS text) FROM t",
                "SELECT xmlserialize(a) FROM t",
            ),
            (
                "SELECT xmlroot(a, version '1', standalone yes) FROM t",
                "SELECT xmlroot(a) FROM t",
            ),
            ("SELECT xmlpi(name a, b) FROM t", "SELECT xmlpi(b) FROM t"),
            (
                "SELECT 1 FROM xmltable(xmlnamespaces('x' AS a), '//i' PASSING BY REF b COLUMNS n INT PATH '@n') AS z",
                "SELECT 1 FROM XMLTABLE('//i' PASSING b COLUMNS n INT PATH '@n') AS z",
            ),
            (
                "SELECT xmlexists('//a' PASSING BY REF b) FROM t",
                "SELECT xmlexists('//a', b) FROM t",
            ),
        ];
        assert_read_as(cases);
    }
}
