//! Operators and constants that are written in ways which sqlparser lacks. What it gets instead is as opaque as they are: calls and operators
//! that nobody knows, so that they say nothing about where rows are.

use super::rare::Finder;
use crate::lexer::TokenKind;
use sqlparser::tokenizer as sp;

/// Stands for ESCAPE with an operand that is computed: it binds as an operator does.
const ESCAPE: &str = "<~escape~>";
/// Stands for IS [NOT] DOCUMENT, whose operand comes before it.
const DOCUMENT: &str = "<~document~>";
/// Stands for TREAT.
const TREAT: &str = "pgherd treat";
/// Stands for a type with modifiers before a constant.
const TYPED: &str = "pgherd typed constant";

impl Finder<'_> {
    /// What a word may begin of this kind.
    pub(super) fn operator_word_at(&mut self, i: usize) {
        let is = |word: &str| self.is_word(i, &[word]);
        if is("escape") {
            self.escape(i);
        } else if is("asymmetric") && i > 0 && self.is_word(i - 1, &["between"]) {
            self.leave_out(i..i + 1);
        } else if is("document") {
            self.document(i);
        } else if is("treat") && self.is(i + 1, "(") {
            self.treat(i);
        } else if is("some") && self.is(i + 1, "(") && i > 0 {
            self.instead(i, vec![sp::Token::make_word("ANY", None)]);
        } else if is("operator") && self.is(i + 1, "(") {
            self.named_operator(i);
        } else if is("array") && self.ends_type(i) {
            self.array_type(i);
        } else if is("substring") && self.is(i + 1, "(") {
            self.substring(i + 1);
        } else if is("uescape") {
            self.escaped_constant(i);
        } else if is("for") && self.is_word(i + 1, &["read"]) && self.is_word(i + 2, &["only"]) {
            self.leave_out(i..i + 3);
        }
    }

    /// `a LIKE b ESCAPE c`, which sqlparser has for constants alone.
    fn escape(&mut self, i: usize) {
        let is_constant = self.kind(i + 1) == Some(TokenKind::String) || self.is_word(i + 1, &["null"]);
        let ends = match self.kind(i + 2) {
            None | Some(TokenKind::Word) => !self.is_word(i + 2, &["collate", "at"]),
            Some(TokenKind::Symbol) => self.is(i + 2, ")") || self.is(i + 2, ",") || self.is(i + 2, "]"),
            Some(_) => false,
        };
        let is_of_like = (0..i).any(|at| self.is_word(at, &["like", "ilike", "similar"]));
        let is_of_substring = self
            .enclosing(i)
            .is_some_and(|open| open > 0 && self.is_word(open - 1, &["substring"]));
        if !(is_of_substring || is_constant && ends) && is_of_like && self.is_behind_operand(i) {
            self.instead(i, vec![sp::Token::CustomBinaryOperator(ESCAPE.to_owned())]);
        }
    }

    /// `a IS [NOT] DOCUMENT`.
    fn document(&mut self, i: usize) {
        let is_at = match i {
            2.. if self.is_word(i - 1, &["not"]) => i - 2,
            1.. => i - 1,
            _ => return,
        };
        if self.is_word(is_at, &["is"]) {
            self.leave_out(is_at..i);
            let operator = sp::Token::CustomBinaryOperator(DOCUMENT.to_owned());
            self.instead(i, vec![operator, sp::Token::Number("1".to_owned(), false)]);
        }
    }

    /// `TREAT(a AS t)`, a call of the function that has the type's name.
    fn treat(&mut self, i: usize) {
        let Some(close) = self.close_of(i + 1) else { return };
        if let Some(&end) = self.own(i + 1, close).iter().rfind(|&&at| self.is_word(at, &["as"])) {
            self.instead(i, vec![sp::Token::make_word(TREAT, Some('"'))]);
            self.leave_out(end..close);
        }
    }

    /// `OPERATOR(s.=)` behind an operand is sqlparser's, but not with ANY and ALL behind it; before an operand it is not.
    fn named_operator(&mut self, i: usize) {
        let Some(close) = self.close_of(i + 1) else { return };
        let instead = if i > 0 && self.is_word(i - 1, &["using"]) {
            // Behind ORDER BY, where PostgreSQL's own operators mean directions.
            let direction = [("<", "ASC"), (">", "DESC")]
                .into_iter()
                .find(|(symbol, _)| self.is(close - 1, symbol));
            if let Some((_, word)) = direction.filter(|_| close == i + 5 && self.is_word(i + 2, &["pg_catalog"])) {
                self.leave_out(i - 1..close);
                self.instead(close, vec![sp::Token::make_word(word, None)]);
            }
            return;
        } else if !self.is_behind_operand(i) {
            sp::Token::DoubleExclamationMark
        } else if self.is_word(close + 1, &["any", "some", "all"]) {
            sp::Token::Tilde
        } else {
            return;
        };
        self.leave_out(i..close);
        self.instead(close, vec![instead]);
    }

    /// Whether the token before is the last one of an expression.
    fn is_behind_operand(&self, i: usize) -> bool {
        const BEFORE_OPERANDS: [&str; 22] = [
            "select",
            "distinct",
            "all",
            "where",
            "and",
            "or",
            "not",
            "on",
            "when",
            "then",
            "else",
            "case",
            "by",
            "having",
            "in",
            "like",
            "ilike",
            "between",
            "returning",
            "values",
            "limit",
            "offset",
        ];
        let Some(before) = i.checked_sub(1) else { return false };
        match self.kind(before) {
            Some(TokenKind::Word) => !self.is_word(before, &BEFORE_OPERANDS),
            Some(TokenKind::Symbol | TokenKind::Operator) => {
                let of_operator = |open: usize| open > 0 && self.is_word(open - 1, &["operator"]);
                let closes = self.is(before, ")") && !self.open_of(before).is_some_and(of_operator);
                closes || self.is(before, "]")
            }
            _ => true,
        }
    }

    /// Whether a type's name ends before token `i`: behind `::`, or behind AS in a CAST.
    fn ends_type(&self, i: usize) -> bool {
        let Some(mut at) = i.checked_sub(1) else { return false };
        if self.is(at, ")") {
            let Some(open) = self.open_of(at).filter(|open| *open > 0) else {
                return false;
            };
            at = open - 1;
        }
        while at > 1 && self.is_name(at) && self.is(at - 1, ".") {
            at -= 2;
        }
        let in_cast = |as_at: usize| {
            let open = self.enclosing(as_at);
            open.is_some_and(|open| open > 0 && self.is_word(open - 1, &["cast"]))
        };
        at > 0 && self.is_name(at) && (self.is(at - 1, "::") || self.is_word(at - 1, &["as"]) && in_cast(at - 1))
    }

    /// `a::int ARRAY` is `a::int[]`, `a::int ARRAY[3]` is `a::int[3]`.
    fn array_type(&mut self, i: usize) {
        match self.is(i + 1, "[") {
            true => self.leave_out(i..i + 1),
            false => self.instead(i, vec![sp::Token::LBracket, sp::Token::RBracket]),
        }
    }

    /// `SUBSTRING(a SIMILAR b ESCAPE c)` and `SUBSTRING(a FOR b FROM c)`.
    fn substring(&mut self, open: usize) {
        let Some(close) = self.close_of(open) else { return };
        let words = |words: &[&str]| -> Vec<usize> {
            let own = self.own(open, close).into_iter();
            own.filter(|&at| self.is_word(at, words)).collect()
        };
        let similar = words(&["similar"]);
        let instead = match similar.as_slice() {
            [_] => words(&["similar", "escape"]),
            _ => match words(&["for", "from"]).as_slice() {
                [first, second] if self.is_word(*first, &["for"]) => vec![*first, *second],
                _ => return,
            },
        };
        instead
            .into_iter()
            .for_each(|at| self.instead(at, vec![sp::Token::Comma]));
    }

    /// `U&'d!0061' UESCAPE '!'`: what it says takes the character that is named behind it.
    fn escaped_constant(&mut self, i: usize) {
        let is_one =
            i > 0 && self.kind(i - 1) == Some(TokenKind::String) && self.kind(i + 1) == Some(TokenKind::String);
        if is_one {
            let call = [sp::Token::make_word(TYPED, Some('"')), sp::Token::LParen];
            self.instead(i - 1, call.to_vec());
            self.instead(i, vec![sp::Token::Number("1".to_owned(), false), sp::Token::RParen]);
            self.leave_out(i + 1..i + 2);
        }
    }

    /// `interval(0) '1 s'`, `"char" 'x'`, `timestamp(0) with time zone '…'`: a type that is more than one word, before a constant.
    pub(super) fn modified_constant(&mut self, i: usize) {
        let Some(value) = self.string(i) else { return };
        let Some(before) = i.checked_sub(1) else { return };
        let quoted = self.kind(before) == Some(TokenKind::Quoted);
        let first = if quoted {
            before
        } else if self.is(before, ")") {
            // `a OPERATOR(s.=) 'b'` has no type in it.
            let is_type = |open: &usize| *open > 0 && self.is_name(open - 1) && !self.is_word(open - 1, &["operator"]);
            let Some(open) = self.open_of(before).filter(is_type) else {
                return;
            };
            self.first_of_type(open - 1)
        } else if self.is_word(before, &["zone"])
            && before > 2
            && self.is_word(before - 2, &["with", "without"])
            && self.is(before - 3, ")")
        {
            let Some(open) = self.open_of(before - 3).filter(|&open| open > 0) else {
                return;
            };
            open - 1
        } else if self.is_word(before, &["varying", "character", "char"]) {
            self.first_of_type(before)
        } else {
            return;
        };
        // Of these sqlparser has what is one word.
        if first == before && !quoted && !self.is_word(before, &["varying"]) {
            return;
        }
        self.leave_out(first..i);
        let call = [
            sp::Token::make_word(TYPED, Some('"')),
            sp::Token::LParen,
            sp::Token::SingleQuotedString(value),
            sp::Token::RParen,
        ];
        self.instead(i, call.to_vec());
    }

    /// Where the words of a type begin whose last one this is.
    fn first_of_type(&self, last: usize) -> usize {
        const LEADING: [&str; 5] = ["national", "bit", "char", "character", "nchar"];
        let mut first = last;
        while first > 0 && self.is_word(first - 1, &LEADING) {
            first -= 1;
        }
        while first > 1 && self.is(first - 1, ".") && self.is_name(first - 2) {
            first -= 2;
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use crate::tree::assert_read_as;

    #[test]
    fn operators_are_read() {
        let cases = [
            (
                "SELECT a LIKE 'x' ESCAPE '!' FROM t",
                "SELECT a LIKE 'x' ESCAPE '!' FROM t",
            ),
            (
                "SELECT a LIKE b || 'x' ESCAPE c || d AND e FROM t",
                "SELECT a LIKE b || 'x' <~escape~> c || d AND e FROM t",
            ),
            (
                "SELECT a NOT ILIKE b ESCAPE ('#') FROM t",
                "SELECT a NOT ILIKE b <~escape~> ('#') FROM t",
            ),
            (
                "SELECT a FROM t WHERE b IS NOT DOCUMENT AND c = 1",
                "SELECT a FROM t WHERE b <~document~> 1 AND c = 1",
            ),
            (
                "SELECT TREAT(a + 1 AS float8) FROM t",
                "SELECT \"pgherd treat\"(a + 1) FROM t",
            ),
            (
                "SELECT a NOT BETWEEN ASYMMETRIC 1 AND 2 FROM t",
                "SELECT a NOT BETWEEN 1 AND 2 FROM t",
            ),
            ("SELECT a = SOME (ARRAY[1]) FROM t", "SELECT a = ANY(ARRAY[1]) FROM t"),
            (
                "SELECT a LIKE SOME (SELECT b FROM u) FROM t",
                "SELECT a LIKE ANY (SELECT b FROM u) FROM t",
            ),
            (
                "SELECT a OPERATOR(s.=) ANY (SELECT b FROM u) FROM t",
                "SELECT a ~ ANY(SELECT b FROM u) FROM t",
            ),
            (
                "SELECT OPERATOR(s.-) a, b OPERATOR(s.+) OPERATOR(s.-) 1 FROM t",
                "SELECT !!a, b OPERATOR(s.+) !!1 FROM t",
            ),
            (
                "SELECT a::int ARRAY, CAST(b AS s.t ARRAY[4]), ARRAY[1] FROM t",
                "SELECT a::INT[], CAST(b AS s.t[4]), ARRAY[1] FROM t",
            ),
            (
                "SELECT a::int, ARRAY[1] FROM t WHERE ARRAY[1] = c",
                "SELECT a::INT, ARRAY[1] FROM t WHERE ARRAY[1] = c",
            ),
            (
                "SELECT substring(a SIMILAR b ESCAPE c), substring(a FOR 2 FROM 1) FROM t",
                "SELECT SUBSTRING(a, b, c), SUBSTRING(a, 2, 1) FROM t",
            ),
            (
                "SELECT interval(0) '1 s', bit varying(3) '10', \"char\" 'x' FROM t",
                "SELECT \"pgherd typed constant\"('1 s'), \"pgherd typed constant\"('10'), \"pgherd typed constant\"('x') FROM t",
            ),
            (
                "SELECT a FROM t WHERE a OPERATOR(s.=) 'x' AND b OPERATOR(s.=) ANY ('{1}')",
                "SELECT a FROM t WHERE a OPERATOR(s.=) 'x' AND b ~ ANY('{1}')",
            ),
            (
                "SELECT a FROM t ORDER BY b USING OPERATOR(pg_catalog.>), c",
                "SELECT a FROM t ORDER BY b DESC, c",
            ),
            (
                "SELECT U&'d!0061' UESCAPE '!', U&\"\\0061\" FROM t",
                "SELECT \"pgherd typed constant\"(1), \"a\" FROM t",
            ),
            ("SELECT a FROM t FOR READ ONLY", "SELECT a FROM t"),
            (
                "SELECT f(a) AT TIME ZONE 'UTC', time(0) with time zone '10:00' FROM t",
                "SELECT f(a) AT TIME ZONE 'UTC', \"pgherd typed constant\"('10:00') FROM t",
            ),
        ];
        assert_read_as(cases);
    }
}
