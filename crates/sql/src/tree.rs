//! sqlparser's tree of a statement, from our own tokens.
//!
//! Its spans are byte offsets: all tokens are on line 1, with the column `byte offset within the statement + 1`. So
//! both sides agree on where every token begins, by construction. What sqlparser lacks or reads differently from
//! PostgreSQL is written in a way that it reads right, where that changes nothing that is asked of the tree; else
//! there is no tree.

mod fetch_count;
mod insert_list;
mod marks;
mod operators;
mod rare;
mod tokens;
mod using_alias;
mod xml;

use crate::lexer::{Token, TokenKind};
use crate::lock_order::limits_first;
use crate::nested_joins::{NestedJoins, nested_joins};
use crate::set_targets::subscripts;
use fetch_count::{FetchCounts, fetch_counts};
use marks::{COLLATION, DISTINCT, NOT_DISTINCT, SYMMETRIC, Unmark, VARIADIC};
pub(crate) use rare::redundant_tokens;
use rare::{Rare, rare};
use sqlparser::ast::{Statement, VisitMut};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;
use sqlparser::tokenizer as sp;
use tokens::{convert, place};
use using_alias::using_aliases;

/// Longer chains of operators have no tree: it would be as deep, and walking or dropping it would need as much stack.
const LONGEST_CHAIN: usize = 1000;

/// Levels of nesting that sqlparser follows; it grows its stack where it must.
const DEEPEST: usize = 200;

/// The tree of one statement; None where sqlparser lacks the grammar or would read something differently.
pub(crate) fn tree(text: &str, tokens: &[Token]) -> Option<Statement> {
    if longest_chain(text, tokens) > LONGEST_CHAIN || !is_balanced(text, tokens) {
        return None;
    }
    let dialect = PostgreSqlDialect {};
    let mut conversion = Conversion {
        text,
        tokens,
        out: Vec::with_capacity(tokens.len() + 4),
        depth: 0,
        operands: Vec::new(),
        redundant: redundant_parentheses(text, tokens),
        nested: nested_joins(text, tokens),
        subscripts: subscripts(text, tokens),
        symmetric: Vec::new(),
        collation_end: None,
        rows_from: rows_from(text, tokens),
        using_aliases: using_aliases(text, tokens),
        fetch_counts: fetch_counts(text, tokens),
        rare: rare(text, tokens),
        marked: false,
    };
    conversion.marked = conversion.rare.row_columns;
    match limits_first(text, tokens) {
        Some(order) => order.into_iter().try_for_each(|i| conversion.token(i, &dialect))?,
        None => (0..tokens.len()).try_for_each(|i| conversion.token(i, &dialect))?,
    }
    if let Some(last) = tokens.last() {
        conversion.close_operands(last, |_| true);
    }
    let marked = conversion.marked;
    let mut parser = Parser::new(&dialect)
        .with_recursion_limit(DEEPEST)
        .with_tokens_with_locations(conversion.out);
    let mut statement = parser.parse_statement().ok()?;
    if parser.peek_token().token != sp::Token::EOF {
        return None;
    }
    if marked {
        let _ = statement.visit(&mut Unmark);
    }
    Some(statement)
}

/// Whether each parenthesis has its other. Else it is no SQL, and the parser, which tries what stands in parentheses in several ways
/// until one succeeds, would try them all at each level.
fn is_balanced(text: &str, tokens: &[Token]) -> bool {
    let mut open = 0_usize;
    for token in tokens.iter().filter(|t| t.kind == TokenKind::Symbol) {
        match token.text(text) {
            "(" => open += 1,
            ")" if open == 0 => return false,
            ")" => open -= 1,
            _ => {}
        }
    }
    open == 0
}

/// Of three and more pairs of parentheses around the same, all but the outermost and the innermost: the parser tries each pair in
/// two ways where it might be a row, a query or a join, which doubles its time. Two have a meaning, as in `IN ((1, 2))`.
///
/// Likewise those around the SELECT that begins a set operation in parentheses, `((SELECT …) UNION …)`, which sqlparser takes for an
/// expression.
fn redundant_parentheses(text: &str, tokens: &[Token]) -> Vec<bool> {
    let is = |i: usize, symbol: &str| tokens[i].kind == TokenKind::Symbol && tokens[i].is(text, symbol);
    let is_any = |i: usize, words: &[&str]| words.iter().any(|word| tokens[i].is_word(text, word));
    if !(2..tokens.len()).any(|i| is(i - 1, "(") && is(i - 2, "(") && (is(i, "(") || is_any(i, &["select"]))) {
        return Vec::new();
    }
    let (mut open, mut closes) = (Vec::new(), vec![usize::MAX; tokens.len()]);
    for i in 0..tokens.len() {
        if is(i, "(") {
            open.push(i);
        } else if is(i, ")")
            && let Some(at) = open.pop()
        {
            closes[at] = i;
        }
    }
    let mut redundant = vec![false; tokens.len()];
    for i in 1..tokens.len().saturating_sub(1) {
        let close = closes[i];
        // A pair is known by its close, which for what is no parenthesis, or is open to the end, is none.
        if close < usize::MAX - 1 && close > 0 && closes[i - 1] == close + 1 && closes[i + 1] == close - 1 {
            redundant[i] = true;
            redundant[close] = true;
        }
        let is_operand = close < tokens.len() - 1
            && is(i, "(")
            && is(i - 1, "(")
            && is_any(i + 1, &["select"])
            && is_any(close + 1, &SET_OPERATIONS);
        if is_operand {
            let mut depth = 0;
            let own = (i + 1..close).filter(|&at| {
                depth += i32::from(is(at, "("));
                depth -= i32::from(is(at, ")"));
                depth == 0
            });
            // What would belong to the whole without them.
            let clauses = ["order", "limit", "offset", "fetch", "for"];
            let mut own = own.filter(|&at| is_any(at, &clauses) || is_any(at, &SET_OPERATIONS));
            let is_redundant = own.next().is_none();
            redundant[i] |= is_redundant;
            redundant[close] |= is_redundant;
        }
    }
    redundant
}

const SET_OPERATIONS: [&str; 3] = ["union", "intersect", "except"];

/// The most operators and set operations between two commas: each may make the tree one level deeper.
fn longest_chain(text: &str, tokens: &[Token]) -> usize {
    let deepens = [
        "and",
        "or",
        "union",
        "intersect",
        "except",
        "is",
        "like",
        "in",
        "between",
        "collate",
        "at",
    ];
    let (mut longest, mut length) = (0, 0);
    for token in tokens {
        match token.kind {
            TokenKind::Operator => length += 1,
            TokenKind::Symbol => match token.text(text) {
                "," => length = 0,
                "::" | "[" => length += 1,
                _ => {}
            },
            TokenKind::Word => length += usize::from(deepens.iter().any(|w| token.is_word(text, w))),
            _ => {}
        }
        longest = longest.max(length);
    }
    longest
}

/// Functions without parentheses, which are names like others behind a schema.
const VALUE_FUNCTIONS: [&str; 5] = [
    "current_user",
    "session_user",
    "user",
    "current_role",
    "current_catalog",
];

const PHRASES: [(&[&str], &str); 2] = [
    (&["is", "distinct", "from"], DISTINCT),
    (&["is", "not", "distinct", "from"], NOT_DISTINCT),
];

/// What a window's frame may leave out. Windows are always PostgreSQL's to compute, from the text.
const EXCLUSIONS: [&[&str]; 4] = [
    &["exclude", "current", "row"],
    &["exclude", "group"],
    &["exclude", "ties"],
    &["exclude", "no", "others"],
];

struct Conversion<'a> {
    text: &'a str,
    tokens: &'a [Token],
    out: Vec<sp::TokenWithSpan>,
    /// of parentheses, brackets and CASE
    depth: usize,
    /// the depths at which an operand of IS DISTINCT FROM is open
    operands: Vec<usize>,
    /// parentheses that are left out, by token; empty where there are none
    redundant: Vec<bool>,
    /// where a join without parentheses stands inside another
    nested: NestedJoins,
    /// subscripts of what SET gives a value
    subscripts: Vec<usize>,
    /// the depths at which the first bound of BETWEEN SYMMETRIC is open
    symmetric: Vec<usize>,
    /// the last part of a collation's name behind a cast
    collation_end: Option<usize>,
    /// words and parentheses of ROWS FROM
    rows_from: Vec<usize>,
    /// the alias of a join's merged columns, with its AS
    using_aliases: Vec<usize>,
    /// the words and parentheses of FETCH FIRST with an expression
    fetch_counts: FetchCounts,
    /// what else has to be said in other words
    rare: Rare,
    /// something has a meaning that [`Unmark`] puts back
    marked: bool,
}

/// Words that end the operand of IS DISTINCT FROM: what binds less tightly, and what follows an expression.
const OPERAND_ENDS: [&str; 40] = [
    "and",
    "or",
    "is",
    "isnull",
    "notnull",
    "then",
    "else",
    "when",
    "end",
    "as",
    "from",
    "where",
    "group",
    "having",
    "window",
    "order",
    "limit",
    "offset",
    "fetch",
    "for",
    "union",
    "intersect",
    "except",
    "returning",
    "on",
    "join",
    "left",
    "right",
    "inner",
    "full",
    "cross",
    "natural",
    "using",
    "set",
    "asc",
    "desc",
    "nulls",
    "over",
    "filter",
    "values",
];

impl Conversion<'_> {
    fn word(&self, i: usize, word: &str) -> bool {
        self.tokens.get(i).is_some_and(|t| t.is_word(self.text, word))
    }

    /// Whether these words stand at `i` and behind.
    fn words(&self, i: usize, words: &[&str]) -> bool {
        words.iter().enumerate().all(|(ahead, word)| self.word(i + ahead, word))
    }

    /// Whether token `i` is one of `count` words that a phrase has behind its first `skip` ones.
    fn inside(&self, i: usize, phrase: &[&str], skip: usize, count: usize) -> bool {
        (skip..skip + count).any(|place| i >= place && self.words(i - place, phrase))
    }

    /// Words that the tree can do without: FOR NO KEY UPDATE and FOR KEY SHARE become FOR UPDATE and FOR SHARE;
    /// OVERRIDING SYSTEM VALUE says nothing about where a row belongs, and neither does what a window's frame excludes. GROUP BY DISTINCT
    /// is about grouping sets, which are PostgreSQL's to compute.
    fn left_out(&self, i: usize) -> bool {
        self.inside(i, &["for", "no", "key", "update"], 1, 2)
            || self.inside(i, &["for", "key", "share"], 1, 1)
            || self.inside(i, &["overriding", "system", "value"], 0, 3)
            || self.inside(i, &["overriding", "user", "value"], 0, 3) && self.ignores_in_values(i)
            || self.inside(i, &["group", "by", "distinct"], 2, 1)
            || self.inside(i, &["group", "by", "all"], 2, 1)
            || (i > 0 && self.direction(i - 1).is_some())
            || self.is_from_of_trim(i)
            || EXCLUSIONS.iter().any(|words| self.excludes(i, words))
    }

    /// Whether OVERRIDING USER VALUE, one of whose words this is, stands before VALUES in an INSERT. Of a query nobody knows which of its
    /// columns are to be left out.
    fn ignores_in_values(&self, i: usize) -> bool {
        let value = (i..i + 3).find(|&at| self.word(at, "value"));
        let before = |at: usize| self.word(at + 1, "values") || self.word(at + 1, "default");
        self.word(0, "insert") && value.is_some_and(before)
    }

    /// TRIM(FROM s) and TRIM(LEADING FROM s) are TRIM(s) and TRIM(LEADING s).
    fn is_from_of_trim(&self, i: usize) -> bool {
        let side = ["leading", "trailing", "both"]
            .iter()
            .any(|side| i > 0 && self.word(i - 1, side));
        let open = i.checked_sub(1 + usize::from(side));
        let opens = |open: usize| open > 0 && self.tokens[open].is(self.text, "(") && self.word(open - 1, "trim");
        self.word(i, "from") && open.is_some_and(opens)
    }

    /// What USING with an operator of the default order means behind ORDER BY.
    fn direction(&self, i: usize) -> Option<&'static str> {
        let operator = self.tokens.get(i + 1).filter(|_| self.word(i, "using"))?;
        match operator.text(self.text) {
            "<" => Some("ASC"),
            ">" => Some("DESC"),
            _ => None,
        }
    }

    /// What a token of MERGE becomes, if it is another: sqlparser lacks DO NOTHING, INSERT DEFAULT VALUES and OVERRIDING USER VALUE.
    /// Another action of the same clause names no other relation.
    fn merge_action(&self, i: usize) -> Option<Vec<sp::Token>> {
        let values = || {
            let null = sp::Token::make_word("NULL", None);
            vec![
                sp::Token::make_word("VALUES", None),
                sp::Token::LParen,
                null,
                sp::Token::RParen,
            ]
        };
        let before = |words: &[&str], place: usize| i >= place && self.words(i - place, words);
        if before(&["then", "do", "nothing"], 1) {
            let when = (0..i).rev().find(|&at| self.word(at, "matched"))?;
            let word = |word| sp::Token::make_word(word, None);
            return Some(match when > 0 && self.word(when - 1, "not") {
                true => [vec![word("INSERT")], values()].concat(),
                false => vec![word("DELETE")],
            });
        }
        if before(&["then", "insert", "default", "values"], 3) {
            return Some(values());
        }
        let overriding = ["overriding", "user", "value"];
        let left_out = before(&["then", "do", "nothing"], 2)
            || before(&["then", "insert", "default", "values"], 2)
            || self.inside(i, &overriding, 0, 3) && (0..i).any(|at| self.words(at, &["merge", "into"]));
        left_out.then(Vec::new)
    }

    /// Whether token `i` is one of these words behind a window's frame.
    fn excludes(&self, i: usize, words: &[&str]) -> bool {
        let frame_ends = |at: usize| ["row", "preceding", "following"].iter().any(|word| self.word(at, word));
        (0..words.len()).any(|place| i > place && self.words(i - place, words) && frame_ends(i - place - 1))
    }

    fn push(&mut self, token: sp::Token, at: &Token) {
        self.out.push(sp::TokenWithSpan::new(token, place(at)));
    }

    fn token(&mut self, i: usize, dialect: &PostgreSqlDialect) -> Option<()> {
        let token = &self.tokens[i];
        // sqlparser takes FROM ONLY t for a table `only` with the alias t; behind ROWS it means FETCH.
        let is_name = i > 0 && (self.symbol(i - 1, ".") || self.word(i - 1, "as"));
        if self.word(i, "only")
            && !is_name
            && !self.rare.leaves_out(i)
            && !(i > 0 && (self.word(i - 1, "row") || self.word(i - 1, "rows")))
        {
            return None;
        }
        let left_out = self.subscripts.contains(&i)
            || self.rows_from.contains(&i)
            || self.using_aliases.contains(&i)
            || self.fetch_counts.left_out.contains(&i)
            || self.rare.leaves_out(i)
            || self.left_out(i);
        if left_out || self.redundant.get(i) == Some(&true) {
            return Some(());
        }
        if let Some(word) = self.rare.before(i) {
            self.push(word, token);
        }
        if let Some(instead) = self.rare.instead_of(i) {
            self.end_operands(token);
            instead.into_iter().for_each(|word| self.push(word, token));
            return Some(());
        }
        if let Some(instead) = self.merge_action(i) {
            instead.into_iter().for_each(|word| self.push(word, token));
            return Some(());
        }
        if PHRASES
            .iter()
            .any(|(phrase, _)| self.inside(i, phrase, 1, phrase.len() - 1))
        {
            return Some(());
        }
        self.end_operands(token);
        for _ in 0..self.nested.closed_before(i) {
            self.push(sp::Token::RParen, token);
        }
        if self.word(i, "variadic") && i > 0 && (self.symbol(i - 1, "(") || self.symbol(i - 1, ",")) {
            self.open_operand(VARIADIC, token);
            return Some(());
        }
        if self.word(i, "symmetric") && i > 0 && self.word(i - 1, "between") {
            self.symmetric.push(self.depth);
            self.open_operand(SYMMETRIC, token);
            return Some(());
        }
        for (phrase, mark) in PHRASES {
            if self.words(i, phrase) {
                self.push(sp::Token::Spaceship, token);
                self.open_operand(mark, token);
                self.marked = true;
                return Some(());
            }
        }
        if self.word(i, "collate") && self.is_behind_cast(i) {
            return self.collation(i);
        }
        // A bare column's name it cannot be: that is an operator, which sqlparser lacks.
        let named = i > 0 && (self.word(i - 1, "as") || self.tokens[i - 1].is(self.text, "."));
        if self.word(i, "isnull") && !named && !self.tokens.get(i + 1).is_some_and(|t| t.is(self.text, "(")) {
            self.push(sp::Token::make_word("IS", None), token);
            self.push(sp::Token::make_word("NULL", None), token);
            return Some(());
        }
        if self.fetch_counts.limits.contains(&i) {
            self.push(sp::Token::make_word("LIMIT", None), token);
            return Some(());
        }
        if self.fetch_counts.numbers.contains(&i) {
            self.push(sp::Token::Number("1".to_owned(), false), token);
            return Some(());
        }
        // ORDER BY a USING > is what DESC means.
        if let Some(word) = self.direction(i) {
            self.push(sp::Token::make_word(word, None), token);
            return Some(());
        }
        // TABLE t is SELECT * FROM t, whose name sqlparser keeps without its place.
        if self.word(i, "table") && starts_query(self.text, self.tokens, i) {
            self.push(sp::Token::make_word("SELECT", None), token);
            self.push(sp::Token::Mul, token);
            self.push(sp::Token::make_word("FROM", None), token);
            return Some(());
        }
        let is_name = i > 0 && self.tokens[i - 1].is(self.text, ".");
        if is_name && VALUE_FUNCTIONS.iter().any(|w| self.word(i, w)) {
            let name = token.text(self.text).to_ascii_lowercase();
            self.push(sp::Token::make_word(&name, Some('"')), token);
            return Some(());
        }
        if self.begins_whole_row_value(i) {
            self.push(sp::Token::LParen, token);
        }
        let converted = convert(token, self.text, dialect)?;
        match converted {
            sp::Token::LParen | sp::Token::LBracket => self.depth += 1,
            sp::Token::RParen | sp::Token::RBracket => self.depth = self.depth.saturating_sub(1),
            _ if self.word(i, "case") => self.depth += 1,
            _ if self.word(i, "end") => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        self.push(converted, token);
        if self.ends_whole_row(i) && self.takes_row(i + 1) {
            self.push(sp::Token::RParen, token);
        }
        if self.collation_end == Some(i) {
            self.collation_end = None;
            self.push(sp::Token::RParen, token);
        }
        if self.symmetric.last() == Some(&self.depth) && self.word(i, "and") {
            self.symmetric.pop();
            self.open_operand(SYMMETRIC, token);
        }
        if self.nested.is_open_behind(i) {
            self.push(sp::Token::LParen, token);
        }
        Some(())
    }

    fn symbol(&self, i: usize, symbol: &str) -> bool {
        self.tokens.get(i).is_some_and(|t| t.is(self.text, symbol))
    }

    /// Whether token `i` is the star of `t.*`.
    fn ends_whole_row(&self, i: usize) -> bool {
        i > 1 && self.symbol(i, "*") && self.symbol(i - 1, ".")
    }

    /// Whether token `i` takes the row in front of it as one value: a cast, a comparison, IS NULL.
    fn takes_row(&self, i: usize) -> bool {
        const SYMBOLS: [&str; 8] = ["::", "=", "<>", "!=", "<", ">", "<=", ">="];
        const WORDS: [&str; 4] = ["is", "isnull", "notnull", "in"];
        SYMBOLS.iter().any(|symbol| self.symbol(i, symbol)) || WORDS.iter().any(|word| self.word(i, word))
    }

    /// Whether a whole row that is such a value begins there: `t.*::text` is `(t.*)::text`.
    fn begins_whole_row_value(&self, i: usize) -> bool {
        if i > 0 && self.symbol(i - 1, ".") || !self.symbol(i + 1, ".") {
            return false;
        }
        let mut end = i + 2;
        while self.symbol(end + 1, ".") {
            end += 2;
        }
        self.ends_whole_row(end) && self.takes_row(end + 1)
    }

    /// Whether nothing but a type's name stands between a cast and token `i`.
    fn is_behind_cast(&self, i: usize) -> bool {
        let mut before = self.tokens[..i].iter().rev().take(10);
        let is_of_type = |t: &Token| {
            let symbols = [".", "(", ")", "[", "]", ","];
            matches!(t.kind, TokenKind::Word | TokenKind::Quoted | TokenKind::Number)
                || symbols.iter().any(|symbol| t.is(self.text, symbol))
        };
        before.find(|t| !is_of_type(t)).is_some_and(|t| t.is(self.text, "::"))
    }

    /// Whether AT TIME ZONE is in front of token `i` in the same expression.
    fn follows_time_zone(&self, i: usize) -> bool {
        let mut depth = 0;
        for at in (0..i).rev() {
            match depth {
                _ if self.symbol(at, ")") || self.symbol(at, "]") => depth += 1,
                0 if ["(", "[", ",", ";"].iter().any(|symbol| self.symbol(at, symbol)) => return false,
                _ if self.symbol(at, "(") || self.symbol(at, "[") => depth -= 1,
                0 if self.words(at, &["at", "time", "zone"]) => return true,
                _ => {}
            }
        }
        false
    }

    /// COLLATE behind a cast.
    fn collation(&mut self, i: usize) -> Option<()> {
        let at = &self.tokens[i];
        if self.follows_time_zone(i) {
            return None;
        }
        for word in ["AT", "TIME", "ZONE"] {
            self.push(sp::Token::make_word(word, None), at);
        }
        self.push(sp::Token::make_word(COLLATION, Some('"')), at);
        self.push(sp::Token::LParen, at);
        let mut end = i + 1;
        while self.tokens.get(end + 1).is_some_and(|t| t.is(self.text, ".")) {
            end += 2;
        }
        self.collation_end = Some(end);
        self.marked = true;
        Some(())
    }

    /// Opens a call around what follows, up to the operand's end.
    fn open_operand(&mut self, mark: &str, at: &Token) {
        self.push(sp::Token::make_word(mark, Some('"')), at);
        self.push(sp::Token::LParen, at);
        self.operands.push(self.depth);
    }

    /// Closes the operands that end before `token`.
    fn end_operands(&mut self, token: &Token) {
        if self.operands.is_empty() {
            return;
        }
        let depth = self.depth;
        if [")", "]"].iter().any(|s| token.is(self.text, s)) {
            self.close_operands(token, |open| open >= depth);
        } else if token.is(self.text, ",") || OPERAND_ENDS.iter().any(|w| token.is_word(self.text, w)) {
            // Inside a CASE of the operand's own, its words do not end it.
            self.close_operands(token, |open| open == depth);
        }
    }

    fn close_operands(&mut self, at: &Token, which: impl Fn(usize) -> bool) {
        while self.operands.last().is_some_and(|&open| which(open)) {
            self.operands.pop();
            self.push(sp::Token::RParen, at);
        }
    }
}

/// The tokens of `ROWS FROM (f(…))` around its one function: without them it is the function alone, which is the same. With several
/// functions there is no tree.
fn rows_from(text: &str, tokens: &[Token]) -> Vec<usize> {
    let mut found = Vec::new();
    for i in 0..tokens.len().saturating_sub(3) {
        // `SELECT rows FROM (SELECT …)` is something else.
        let begins_query = ["select", "with", "values", "table"]
            .iter()
            .any(|w| tokens[i + 3].is_word(text, w));
        let begins = tokens[i].is_word(text, "rows") && tokens[i + 1].is_word(text, "from");
        if !begins || !tokens[i + 2].is(text, "(") || begins_query || tokens[i + 3].is(text, "(") {
            continue;
        }
        let (mut depth, mut several) = (0, false);
        let close = (i + 2..tokens.len()).find(|&at| {
            depth += i32::from(tokens[at].is(text, "(")) - i32::from(tokens[at].is(text, ")"));
            several |= depth == 1 && tokens[at].is(text, ",");
            depth == 0
        });
        if let Some(close) = close.filter(|_| !several) {
            found.extend([i, i + 1, i + 2, close]);
        }
    }
    found
}

/// Whether a query can begin at token `i`.
pub(crate) fn starts_query(text: &str, tokens: &[Token], i: usize) -> bool {
    let Some(before) = i.checked_sub(1).map(|b| &tokens[b]) else {
        return true;
    };
    let words = ["union", "all", "distinct", "intersect", "except"];
    // AS begins one in CREATE, elsewhere a name.
    let made = before.is_word(text, "as") && tokens[0].is_word(text, "create");
    // TABLE is no name, so behind INSERT INTO t it begins the source.
    let inserted = (1..i).any(|at| tokens[at].is_word(text, "into") && tokens[at - 1].is_word(text, "insert"));
    let inserted = inserted && tokens[i].is_word(text, "table") && !before.is_word(text, "into");
    before.is(text, "(") || made || inserted || words.iter().any(|w| before.is_word(text, w))
}

/// Each text's tree is written as is said.
#[cfg(test)]
pub(crate) fn assert_read_as<const N: usize>(cases: [(&str, &str); N]) {
    let read = cases.map(|(text, _)| {
        let tree = tree(text, &crate::lexer::tokenize(text).expect("tokens"));
        tree.map_or(format!("no tree: {text}"), |tree| tree.to_string())
    });
    assert_eq!(read, cases.map(|(_, as_read)| as_read.to_owned()));
}
