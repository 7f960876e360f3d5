//! What PostgreSQL's grammar has and sqlparser's lacks, where the tree can do without it, or say the same in other words.

use super::marks::{COLLATION_FOR, ROW_COLUMNS, ROWS_FROM, VALUE};
use crate::lexer::{Token, TokenKind};
use sqlparser::keywords::Keyword;
use sqlparser::tokenizer as sp;
use std::ops::Range;

/// What becomes of such tokens.
#[derive(Debug, Default)]
pub(super) struct Rare {
    /// what the tree can do without
    left_out: Vec<usize>,
    /// what is read in a token's place
    instead: Vec<(usize, Vec<sp::Token>)>,
    /// what is read before a token
    before: Vec<(usize, sp::Token)>,
    /// calls with [`ROW_COLUMNS`] are among it
    pub row_columns: bool,
}

/// Names of types that sqlparser takes for key words.
const TYPES: [&str; 7] = ["box", "cidr", "inet", "macaddr", "money", "name", "xml"];

/// Words of other systems' grammars, which are names like others here.
const NAMES: [&str; 16] = [
    "anti",
    "asof",
    "convert",
    "distribute",
    "match_condition",
    "match_recognize",
    "minus",
    "output",
    "pivot",
    "prewhere",
    "qualify",
    "sample",
    "semi",
    "sort",
    "top",
    "unpivot",
];

/// Words that sqlparser does not take for an alias without AS.
const ALIASES: [&str; 11] = [
    "cluster",
    "connect",
    "exclude",
    "explain",
    "format",
    "global",
    "open",
    "partition",
    "settings",
    "start",
    "view",
];

/// Functions whose arguments sqlparser reads in words of their own.
const CALLS: [&str; 8] = [
    "ceil",
    "extract",
    "floor",
    "overlay",
    "position",
    "substr",
    "substring",
    "trim",
];

/// What stands behind an alias.
const BEHIND_ALIAS: [&str; 25] = [
    "cross",
    "except",
    "fetch",
    "for",
    "from",
    "full",
    "group",
    "having",
    "inner",
    "intersect",
    "into",
    "join",
    "left",
    "limit",
    "natural",
    "offset",
    "on",
    "order",
    "right",
    "set",
    "union",
    "using",
    "when",
    "where",
    "window",
];

/// The alias of a function that has a list of columns and no name.
const UNNAMED: &str = "pgherd unnamed";

/// The stars in `FROM t *`, and the parentheses in `INSERT INTO t (VALUES …)` and its kin, which mean nothing.
pub(crate) fn redundant_tokens(text: &str, tokens: &[Token]) -> Vec<usize> {
    let found = Rare::default();
    let finder = Finder { text, tokens, found };
    let stars = (0..tokens.len()).filter(|&i| finder.is(i, "*") && finder.is_inheritance_star(i));
    let intos = (0..tokens.len()).filter(|&i| finder.is_word(i, &["into"]));
    let parentheses = intos.flat_map(|into| finder.parentheses_of_source(into));
    let mut redundant: Vec<_> = stars.chain(parentheses).collect();
    redundant.sort_unstable();
    redundant
}

/// All of it in a statement.
pub(super) fn rare(text: &str, tokens: &[Token]) -> Rare {
    let mut finder = Finder {
        text,
        tokens,
        found: Rare::default(),
    };
    for (i, token) in tokens.iter().enumerate() {
        match token.kind {
            TokenKind::Word => finder.word_at(i),
            TokenKind::String => finder.modified_constant(i),
            TokenKind::Symbol | TokenKind::Operator if token.is(text, "*") => finder.star_at(i),
            _ => {}
        }
    }
    let mut found = finder.found;
    found.left_out.sort_unstable();
    found.instead.sort_by_key(|(at, _)| *at);
    found.before.sort_by_key(|(at, _)| *at);
    found
}

impl Rare {
    pub fn leaves_out(&self, i: usize) -> bool {
        self.left_out.binary_search(&i).is_ok()
    }

    /// What is read in the place of token `i`, if that is something else.
    pub fn instead_of(&self, i: usize) -> Option<Vec<sp::Token>> {
        let found = self.instead.binary_search_by_key(&i, |(at, _)| *at).ok()?;
        Some(self.instead[found].1.clone())
    }

    /// What is read before token `i`.
    pub fn before(&self, i: usize) -> Option<sp::Token> {
        let found = self.before.binary_search_by_key(&i, |(at, _)| *at).ok()?;
        Some(self.before[found].1.clone())
    }
}

pub(super) struct Finder<'a> {
    text: &'a str,
    tokens: &'a [Token],
    found: Rare,
}

fn word(word: &str) -> sp::Token {
    sp::Token::make_word(word, None)
}

impl Finder<'_> {
    pub(super) fn leave_out(&mut self, tokens: Range<usize>) {
        self.found.left_out.extend(tokens);
    }

    pub(super) fn instead(&mut self, at: usize, tokens: Vec<sp::Token>) {
        self.found.instead.push((at, tokens));
    }

    pub(super) fn is(&self, at: usize, symbol: &str) -> bool {
        self.tokens.get(at).is_some_and(|t| t.is(self.text, symbol))
    }

    pub(super) fn is_word(&self, at: usize, words: &[&str]) -> bool {
        let token = self.tokens.get(at);
        token.is_some_and(|t| words.iter().any(|word| t.is_word(self.text, word)))
    }

    pub(super) fn is_name(&self, at: usize) -> bool {
        let token = self.tokens.get(at);
        token.is_some_and(|t| matches!(t.kind, TokenKind::Word | TokenKind::Quoted))
    }

    pub(super) fn kind(&self, at: usize) -> Option<TokenKind> {
        self.tokens.get(at).map(|token| token.kind)
    }

    /// The value of a string.
    pub(super) fn string(&self, at: usize) -> Option<String> {
        self.tokens.get(at)?.string(self.text)
    }

    pub(super) fn text_of(&self, at: usize) -> &str {
        self.tokens[at].text(self.text)
    }

    /// Whether what stands before token `i` is this symbol.
    fn follows(&self, i: usize, symbol: &str) -> bool {
        i > 0 && self.is(i - 1, symbol)
    }

    pub(super) fn follows_word(&self, i: usize, words: &[&str]) -> bool {
        i > 0 && self.is_word(i - 1, words)
    }

    /// Where the parenthesis that opens here is closed.
    pub(super) fn close_of(&self, open: usize) -> Option<usize> {
        let mut depth = 0;
        (open..self.tokens.len()).find(|&at| {
            depth += i32::from(self.is(at, "(")) - i32::from(self.is(at, ")"));
            depth == 0
        })
    }

    /// Where the parenthesis that is closed here opens.
    pub(super) fn open_of(&self, close: usize) -> Option<usize> {
        let mut depth = 0;
        (0..=close).rev().find(|&at| {
            depth += i32::from(self.is(at, ")")) - i32::from(self.is(at, "("));
            depth == 0
        })
    }

    /// The innermost parenthesis around a token.
    pub(super) fn enclosing(&self, i: usize) -> Option<usize> {
        let mut depth = 0;
        (0..i).rev().find(|&at| {
            depth += i32::from(self.is(at, "(")) - i32::from(self.is(at, ")"));
            depth > 0
        })
    }

    fn word_at(&mut self, i: usize) {
        if self.follows(i, ".") {
            // With a schema, functions that have a grammar of their own are called as all others are.
            if self.is_word(i, &CALLS) && self.is(i + 1, "(") {
                let name = self.tokens[i].text(self.text).to_ascii_lowercase();
                self.instead(i, vec![sp::Token::make_word(&name, Some('"'))]);
            }
            return;
        }
        let token = self.tokens[i];
        let is = |word: &str| token.is_word(self.text, word);
        match token.text(self.text).as_bytes()[0].to_ascii_lowercase() {
            b'a' if is("as") => self.column_definitions(i),
            b'c' if is("cycle") => self.cycle(i),
            b'c' if is("conflict") => self.conflict(i),
            b'c' if is("collation") && self.is_word(i + 1, &["for"]) && self.is(i + 2, "(") => {
                self.leave_out(i..i + 1);
                self.instead(i + 1, vec![sp::Token::make_word(COLLATION_FOR, Some('"'))]);
            }
            b'g' if is("grouping") => self.nested_sets(i),
            b'f' if is("following") => self.frame_bound(i),
            b'i' if is("in") => self.values_of_in(i),
            b'i' if is("insert") && self.follows_word(i, &["then"]) => self.insert_list(i + 1),
            b'i' if is("into") => {
                let parentheses = self.parentheses_of_source(i);
                self.found.left_out.extend(parentheses);
                self.target(i);
            }
            b'o' if is("of") => self.locked_tables(i),
            b'p' if is("preceding") => self.frame_bound(i),
            b'r' if is("rows") => self.rows_from(i),
            b's' if is("search") => self.search(i),
            b'x' => self.xml_call(i),
            _ => {}
        }
        self.operator_word_at(i);
        if self.tokens.get(i + 1).is_some_and(|t| t.kind == TokenKind::String) {
            self.typed_constant(i);
        } else if NAMES.iter().any(|name| is(name)) || self.is_alias(i) || self.is_column(i) {
            let name = sp::Token::make_word(&token.text(self.text).to_ascii_lowercase(), Some('"'));
            self.found.instead.push((i, vec![name]));
        }
    }

    /// Whether one of [`ALIASES`] stands behind what has an alias, in a statement that is no schema change.
    fn is_alias(&self, i: usize) -> bool {
        let of_query = ["select", "with", "insert", "update", "delete", "merge"];
        let is_one = ALIASES.iter().any(|alias| self.is_word(i, &[alias]));
        let behind = |i: usize| {
            let symbols = [",", ")", "("].iter().any(|symbol| self.is(i, symbol));
            symbols || i == self.tokens.len() || self.is_word(i, &BEHIND_ALIAS)
        };
        let has_one = |i: usize| self.is(i, ")") || self.is_name(i) && !self.is_word(i, &BEHIND_ALIAS);
        is_one && i > 1 && has_one(i - 1) && behind(i + 1) && (self.is_word(0, &of_query) || self.is(0, "("))
    }

    /// Whether it is a column of a name that sqlparser takes for a function's.
    fn is_column(&self, i: usize) -> bool {
        self.is_word(i, &["exists", "trim"]) && !self.is(i + 1, "(") && !self.follows_word(i, &["if", "not"])
    }

    fn star_at(&mut self, i: usize) {
        if self.follows(i, ".") && i > 1 && self.is(i - 2, ")") {
            self.row_columns(i);
        } else if self.is_inheritance_star(i) {
            self.found.left_out.push(i);
        }
    }

    /// `(f(x)).*`, as a call that [`super::marks::Unmark`] makes the wildcard that it is.
    fn row_columns(&mut self, star: usize) {
        let Some(open) = self.open_of(star - 2) else { return };
        let begins_item =
            self.follows(open, ",") || self.follows_word(open, &["select", "distinct", "all", "returning"]);
        if begins_item && !self.is(star + 1, "::") && !self.is(star + 1, ".") {
            self.found
                .before
                .push((open, sp::Token::make_word(ROW_COLUMNS, Some('"'))));
            self.found.left_out.extend([star - 1, star]);
            self.found.row_columns = true;
        }
    }

    /// `FROM t *`, which means what `FROM t` means.
    fn is_inheritance_star(&self, star: usize) -> bool {
        let mut first = star;
        loop {
            if first == 0 || !self.is_name(first - 1) {
                return false;
            }
            first -= 1;
            match self.follows(first, ".") {
                true => first -= 1,
                false => break,
            }
        }
        // As in extract(year FROM a * b).
        let in_query = || {
            let open = self.enclosing(star);
            open.is_none_or(|open| self.is_word(open + 1, &["select", "with"]))
        };
        self.follows_word(first, &["from", "join", "update", "into", "using"]) && in_query()
    }

    /// `f(x) AS (a int, b text)` has no alias.
    fn column_definitions(&mut self, i: usize) {
        let begins_query = [
            "select", "with", "values", "table", "insert", "update", "delete", "merge",
        ];
        let defines = self.follows(i, ")") && self.is(i + 1, "(") && self.is_name(i + 2) && self.is_name(i + 3);
        if defines && !self.is_word(i + 2, &begins_query) {
            self.found
                .before
                .push((i + 1, sp::Token::make_word(UNNAMED, Some('"'))));
        }
    }

    /// `inet '::1'` is `'::1'::inet`.
    fn typed_constant(&mut self, i: usize) {
        let token = self.tokens[i];
        let name = token.text(self.text);
        let sp::Token::Word(read) = word(name) else { return };
        let known = TYPES.iter().any(|t| token.is_word(self.text, t));
        if !known && (read.keyword != Keyword::NoKeyword || self.is_word(i, &["n", "uescape"])) {
            return;
        }
        if let Some(value) = self.tokens[i + 1].string(self.text) {
            self.found.left_out.push(i);
            let cast = vec![sp::Token::SingleQuotedString(value), sp::Token::DoubleColon, word(name)];
            self.found.instead.push((i + 1, cast));
        }
    }

    /// GROUPING SETS within GROUPING SETS: its elements are the outer one's.
    fn nested_sets(&mut self, i: usize) {
        let is_nested =
            |open: usize| open > 1 && self.is_word(open - 1, &["sets"]) && self.is_word(open - 2, &["grouping"]);
        if self.is_word(i + 1, &["sets"])
            && self.is(i + 2, "(")
            && self.enclosing(i).is_some_and(is_nested)
            && let Some(close) = self.close_of(i + 2)
        {
            self.found.left_out.extend([i, i + 1, i + 2, close]);
        }
    }

    /// A window frame's bound that is more than a constant. Windows are PostgreSQL's to compute, from the text.
    fn frame_bound(&mut self, i: usize) {
        let (mut first, mut depth) = (i, 0);
        while first > 0 {
            let before = first - 1;
            let begins = ["between", "and", "range", "rows", "groups"];
            if depth == 0 && self.is_word(before, &begins) {
                break;
            }
            depth += i32::from(self.is(before, ")")) - i32::from(self.is(before, "("));
            if depth < 0 || self.is_word(before, &["select", "over"]) {
                return;
            }
            first = before;
        }
        if first > 0 && i > first + 1 {
            self.found.left_out.extend(first + 1..i);
            self.found
                .instead
                .push((first, vec![sp::Token::Number("1".to_owned(), false)]));
        }
    }

    /// `a IN ((SELECT …), …)`.
    fn values_of_in(&mut self, i: usize) {
        let open = i + 2;
        if self.is(i + 1, "(")
            && self.is(open, "(")
            && self.is_word(open + 1, &["select", "with", "values", "table"])
            && let Some(close) = self.close_of(open).filter(|close| self.is(close + 1, ","))
        {
            let mark = sp::Token::make_word(VALUE, Some('"'));
            let begins = vec![mark, sp::Token::LParen, sp::Token::LParen];
            self.found.instead.push((open, begins));
            self.found
                .instead
                .push((close, vec![sp::Token::RParen, sp::Token::RParen]));
        }
    }

    /// `INSERT INTO t (VALUES …)`.
    fn parentheses_of_source(&self, into: usize) -> Vec<usize> {
        let (mut open, mut found) = (into + 2, Vec::new());
        while self.is(open, ".") {
            open += 2;
        }
        if !self.follows_word(into, &["insert"]) {
            return found;
        }
        let mut end = None;
        // Those around a SELECT alone are read as what they are.
        while self.is(open, "(") && (self.is_word(open + 1, &["values", "with"]) || self.is(open + 1, "(")) {
            let Some(close) = self.close_of(open) else { break };
            let is_last = close + 1 == self.tokens.len() || self.is_word(close + 1, &["on", "returning"]);
            let is_all = end.map_or(is_last, |end| close + 1 == end);
            if !is_all {
                break;
            }
            found.extend([open, close]);
            (open, end) = (open + 1, Some(close));
        }
        found
    }

    /// `INSERT … SELECT 1 ON CONFLICT`, where sqlparser takes ON for an alias; and conflict targets that are no list of columns: on the
    /// table's own shard PostgreSQL finds the index that is meant, or says that there is none.
    fn conflict(&mut self, i: usize) {
        if !self.follows_word(i, &["on"]) {
            return;
        }
        let on = i - 1;
        let mut depth = 0;
        for at in (0..on).rev() {
            depth += i32::from(self.is(at, ")")) - i32::from(self.is(at, "("));
            let clauses = [
                "from", "where", "group", "having", "order", "limit", "offset", "fetch", "window", "values",
            ];
            if depth != 0 || !self.is_word(at, &clauses) && !self.is_word(at, &["select", "insert"]) {
                continue;
            }
            if self.is_word(at, &["select"]) {
                self.found
                    .instead
                    .push((on, vec![word("WHERE"), word("TRUE"), word("ON")]));
            }
            break;
        }
        let Some(close) = self.close_of(i + 1).filter(|_| self.is(i + 1, "(")) else {
            return;
        };
        let is_list = (i + 2..close).all(|at| match (at - i) % 2 {
            0 => self.is_name(at),
            _ => self.is(at, ","),
        });
        let end = (close + 1..self.tokens.len()).find(|&at| self.is_word(at, &["do"]));
        match end {
            Some(end) if !is_list => self.found.left_out.extend(i + 1..end),
            Some(end) => self.found.left_out.extend(close + 1..end),
            None => {}
        }
    }

    /// `FOR UPDATE OF a, b` is `FOR UPDATE OF a FOR UPDATE OF b`.
    fn locked_tables(&mut self, of: usize) {
        if !self.follows_word(of, &["update", "share"]) {
            return;
        }
        let strength = self.tokens[of - 1].text(self.text);
        let mut at = of + 1;
        while self.is_name(at) && self.is(at + 1, ",") {
            let again = vec![word("FOR"), word(strength), word("OF")];
            self.found.instead.push((at + 1, again));
            at += 2;
        }
    }

    /// `ROWS FROM (f(x), g(y))`, as a function of that name. With one function inside there is nothing to do: see `rows_from` of the tree.
    fn rows_from(&mut self, i: usize) {
        let queries = ["select", "with", "values", "table"];
        if !self.is_word(i + 1, &["from"])
            || !self.is(i + 2, "(")
            || self.is_word(i + 3, &queries)
            || self.is(i + 3, "(")
        {
            return;
        }
        let Some(close) = self.close_of(i + 2) else { return };
        let mut depth = 0;
        let several = (i + 2..close).any(|at| {
            depth += i32::from(self.is(at, "(")) - i32::from(self.is(at, ")"));
            depth == 1 && self.is(at, ",")
        });
        if several {
            let definitions: Vec<usize> = self
                .own(i + 2, close)
                .into_iter()
                .filter(|&at| self.is_word(at, &["as"]))
                .collect();
            for at in definitions {
                if let Some(end) = self.close_of(at + 1).filter(|_| self.is(at + 1, "(")) {
                    self.leave_out(at..end + 1);
                }
            }
            self.found
                .instead
                .push((i, vec![sp::Token::make_word(ROWS_FROM, Some('"'))]));
            self.found.left_out.push(i + 1);
        }
    }

    /// `SEARCH DEPTH FIRST BY a, b SET c` behind a query of WITH: a column more, and what it has in no order that matters here.
    fn search(&mut self, i: usize) {
        if self.follows(i, ")") && self.is_word(i + 1, &["depth", "breadth"]) && self.is_word(i + 2, &["first"]) {
            self.clause_of_with(i, "set");
        }
    }

    /// `CYCLE a, b SET c [TO v DEFAULT v] USING p`.
    fn cycle(&mut self, i: usize) {
        let behind_search = i > 0 && self.found.left_out.contains(&(i - 1));
        if (self.follows(i, ")") || behind_search) && self.is_name(i + 1) {
            self.clause_of_with(i, "using");
        }
    }

    /// Leaves out what reaches from here to the name behind this word.
    fn clause_of_with(&mut self, from: usize, last: &str) {
        let behind = from + 1..self.tokens.len();
        let end = behind.clone().find(|&at| self.is_word(at, &[last, "select", "as"]));
        if let Some(end) = end.filter(|&at| self.is_word(at, &[last]) && self.is_name(at + 1)) {
            self.found.left_out.extend(from..=end + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::tree::assert_read_as;

    #[test]
    fn rare_grammar_is_read() {
        let cases = [
            ("SELECT a FROM t* WHERE a = 1", "SELECT a FROM t WHERE a = 1"),
            (
                "SELECT x.a FROM s.t * x JOIN u* USING (a)",
                "SELECT x.a FROM s.t x JOIN u USING(a)",
            ),
            (
                "SELECT extract(year FROM a * b) FROM t",
                "SELECT EXTRACT(YEAR FROM a * b) FROM t",
            ),
            ("SELECT a * b FROM t", "SELECT a * b FROM t"),
            ("SELECT a, (f(b)).* FROM t", "SELECT a, f(b).* FROM t"),
            (
                "SELECT * FROM f(1) AS (a int, b text)",
                "SELECT * FROM f(1) AS \"pgherd unnamed\" (a INT, b TEXT)",
            ),
            (
                "WITH x(a) AS (SELECT 1) SELECT a FROM x",
                "WITH x (a) AS (SELECT 1) SELECT a FROM x",
            ),
            ("SELECT hstore 'a=>1' -> 'a'", "SELECT 'a=>1'::hstore -> 'a'"),
            ("SELECT inet '::1', name 'x'", "SELECT '::1'::inet, 'x'::name"),
            (
                "SELECT a FROM t GROUP BY GROUPING SETS (a, GROUPING SETS ((), GROUPING SETS ((a, b))))",
                "SELECT a FROM t GROUP BY GROUPING SETS ((a), (), (a, b))",
            ),
            (
                "SELECT sum(a) OVER (ORDER BY b RANGE BETWEEN '1 day'::interval PRECEDING AND '2'::text::interval FOLLOWING) FROM t",
                "SELECT sum(a) OVER (ORDER BY b RANGE BETWEEN 1 PRECEDING AND 1 FOLLOWING) FROM t",
            ),
            (
                "SELECT * FROM a, b FOR UPDATE OF a, b NOWAIT",
                "SELECT * FROM a, b FOR UPDATE OF a FOR UPDATE OF b NOWAIT",
            ),
            (
                "SELECT * FROM ROWS FROM (f(1), g(2)) WITH ORDINALITY AS r(a, b)",
                "SELECT * FROM \"pgherd rows from\"(f(1), g(2)) WITH ORDINALITY AS r (a, b)",
            ),
            (
                "WITH RECURSIVE x(a) AS (SELECT 1 UNION ALL SELECT a FROM x) SEARCH DEPTH FIRST BY a SET s CYCLE a SET c TO 1 DEFAULT 2 USING p SELECT * FROM x",
                "WITH RECURSIVE x (a) AS (SELECT 1 UNION ALL SELECT a FROM x) SELECT * FROM x",
            ),
            (
                "SELECT semi.a FROM t SEMI JOIN u ON true",
                "SELECT \"semi\".a FROM t \"semi\" JOIN u ON true",
            ),
            (
                "SELECT a === b, a ?@> b, a == b FROM t",
                "SELECT a === b, a ?@> b, a == b FROM t",
            ),
            (
                "INSERT INTO s.t (VALUES (1), (2)) ON CONFLICT (a) WHERE b > 1 DO NOTHING",
                "INSERT INTO s.t VALUES (1), (2) ON CONFLICT(a) DO NOTHING",
            ),
            ("INSERT INTO local SELECT 1", "INSERT INTO \"local\" SELECT 1"),
            (
                "INSERT INTO t SELECT 1 ON CONFLICT (lower(a), b) DO NOTHING",
                "INSERT INTO t SELECT 1 WHERE true ON CONFLICT DO NOTHING",
            ),
            (
                "SELECT a IN ((SELECT 1), (SELECT 2)), a IN ((SELECT 1)) FROM t",
                "SELECT a IN (\"pgherd value\"((SELECT 1)), (SELECT 2)), a IN ((SELECT 1)) FROM t",
            ),
            (
                "SELECT format('%s', VARIADIC b) FROM t",
                "SELECT format('%s', \"pgherd variadic\"(b)) FROM t",
            ),
        ];
        assert_read_as(cases);
    }
}
