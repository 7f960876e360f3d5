//! Pieces of a statement's text: a query's extent, its clauses, the items of a list. Found by tokens and parentheses, so that what
//! is sent on is what the client wrote.

use crate::views::ParsedQuery;
use pgherd_sql::lexer::Token;
use std::ops::Range;

/// The clauses of one SELECT, as bytes of the statement without their key words.
#[derive(Debug, Clone, Default)]
pub(super) struct Clauses {
    /// behind SELECT, and DISTINCT if there is one
    pub items: Vec<Range<usize>>,
    pub from: Range<usize>,
    pub selection: Option<Range<usize>>,
    pub group: Option<Range<usize>>,
    pub having: Option<Range<usize>>,
    pub order: Vec<Range<usize>>,
    /// LIMIT and OFFSET with their key words
    pub limit: Option<Range<usize>>,
}

fn at(parsed: &ParsedQuery, start: usize) -> Option<usize> {
    parsed.tokens.iter().position(|t| t.start as usize == start)
}

fn depth(token: &Token, text: &str) -> i32 {
    if token.is(text, "(") || token.is(text, "[") {
        1
    } else if token.is(text, ")") || token.is(text, "]") {
        -1
    } else {
        0
    }
}

/// The tokens of the query whose SELECT begins at this byte, up to the parenthesis that closes it, a set operation, or the end.
fn query_tokens(parsed: &ParsedQuery, start: usize) -> Option<Range<usize>> {
    let (text, tokens) = (&parsed.text, &parsed.tokens);
    let first = at(parsed, start)?;
    let mut level = 0;
    for (i, token) in tokens.iter().enumerate().skip(first) {
        level += depth(token, text);
        let ends = ["union", "intersect", "except"].iter().any(|w| token.is_word(text, w)) || token.is(text, ";");
        if level < 0 || (level == 0 && ends) {
            return Some(first..i);
        }
    }
    Some(first..tokens.len())
}

fn bytes(tokens: &[Token], range: Range<usize>) -> Option<Range<usize>> {
    let (first, last) = (tokens.get(range.start)?, tokens.get(range.end.checked_sub(1)?)?);
    (range.start < range.end).then_some(first.start as usize..last.end as usize)
}

/// The bytes of the query whose SELECT begins there.
pub(super) fn span_of(parsed: &ParsedQuery, start: usize) -> Option<Range<usize>> {
    bytes(&parsed.tokens, query_tokens(parsed, start)?)
}

/// From a function's name to the parenthesis that closes its arguments.
pub(super) fn call_span(parsed: &ParsedQuery, start: usize) -> Option<Range<usize>> {
    let (text, tokens) = (&parsed.text, &parsed.tokens);
    let first = at(parsed, start)?;
    let open = (first..tokens.len()).find(|&i| tokens[i].is(text, "("))?;
    let mut level = 0;
    for (i, token) in tokens.iter().enumerate().skip(open) {
        level += depth(token, text);
        if level == 0 {
            return bytes(tokens, first..i + 1);
        }
    }
    None
}

/// The arguments of a call: what is between its parentheses, without a leading DISTINCT or ALL.
pub(super) fn argument_span(parsed: &ParsedQuery, call: &Range<usize>) -> Option<Range<usize>> {
    let (text, tokens) = (&parsed.text, &parsed.tokens);
    let first = at(parsed, call.start)?;
    let open = (first..tokens.len()).find(|&i| tokens[i].is(text, "("))?;
    let mut begin = open + 1;
    if ["distinct", "all"]
        .iter()
        .any(|w| tokens.get(begin).is_some_and(|t| t.is_word(text, w)))
    {
        begin += 1;
    }
    let end = (begin..tokens.len()).find(|&i| tokens[i].end as usize == call.end)?;
    bytes(tokens, begin..end)
}

/// Splits bytes of the statement at commas outside of parentheses.
pub(super) fn split(parsed: &ParsedQuery, range: &Range<usize>) -> Option<Vec<Range<usize>>> {
    let first = at(parsed, range.start)?;
    let last = parsed.tokens.iter().position(|t| t.end as usize == range.end)?;
    list(parsed, first..last + 1)
}

/// Splits at commas outside of parentheses.
fn list(parsed: &ParsedQuery, range: Range<usize>) -> Option<Vec<Range<usize>>> {
    let (text, tokens) = (&parsed.text, &parsed.tokens);
    let (mut items, mut first, mut level) = (Vec::new(), range.start, 0);
    for i in range.clone() {
        level += depth(&tokens[i], text);
        if level == 0 && tokens[i].is(text, ",") {
            items.push(bytes(tokens, first..i)?);
            first = i + 1;
        }
    }
    items.push(bytes(tokens, first..range.end)?);
    Some(items)
}

/// The clauses of the query whose SELECT begins there; None where they do not come as expected.
pub(super) fn clauses(parsed: &ParsedQuery, start: usize) -> Option<Clauses> {
    let (text, tokens) = (&parsed.text, &parsed.tokens);
    let query = query_tokens(parsed, start)?;
    let mut marks: Vec<(&str, usize)> = Vec::new();
    let mut level = 0;
    for i in query.clone() {
        level += depth(&tokens[i], text);
        if level != 0 {
            continue;
        }
        let previous = |word: &str| i > query.start && tokens[i - 1].is_word(text, word);
        let next = |word: &str| tokens.get(i + 1).is_some_and(|t| t.is_word(text, word));
        let word = [
            "from", "where", "group", "having", "window", "order", "limit", "offset", "fetch", "for",
        ]
        .into_iter()
        .find(|w| tokens[i].is_word(text, w));
        match word {
            Some("from") if previous("distinct") => {}
            Some(word @ ("group" | "order")) if next("by") => marks.push((word, i)),
            Some("group" | "order") | None => {}
            Some("window" | "fetch" | "for") => return None,
            Some(word) => marks.push((word, i)),
        }
    }
    let order = ["from", "where", "group", "having", "order", "limit", "offset"];
    let rank = |word: &str| order.iter().position(|w| *w == word).map_or(9, |r| r.min(5));
    if marks.windows(2).any(|m| rank(m[0].0) > rank(m[1].0)) {
        return None;
    }
    let clause = |word: &str| -> Option<Range<usize>> {
        let place = marks.iter().position(|(w, _)| *w == word)?;
        let skip = if matches!(word, "group" | "order") { 2 } else { 1 };
        let end = marks.get(place + 1).map_or(query.end, |(_, i)| *i);
        Some(marks[place].1 + skip..end)
    };
    let mut first = query.start + 1;
    if ["distinct", "all"]
        .iter()
        .any(|w| tokens.get(first).is_some_and(|t| t.is_word(text, w)))
    {
        first += 1;
    }
    let from = clause("from")?;
    let limit = marks.iter().find(|(w, _)| matches!(*w, "limit" | "offset"));
    let as_bytes = |word: &str| clause(word).and_then(|range| bytes(tokens, range));
    Some(Clauses {
        items: list(parsed, first..from.start - 1)?,
        from: bytes(tokens, from)?,
        selection: as_bytes("where"),
        group: as_bytes("group"),
        having: as_bytes("having"),
        order: clause("order").map_or(Some(Vec::new()), |range| list(parsed, range))?,
        limit: limit.and_then(|(_, i)| bytes(tokens, *i..query.end)),
    })
}

/// The conditions of a WHERE that are tied by AND, as bytes; the whole where it has an OR outside of parentheses.
pub(super) fn conditions(parsed: &ParsedQuery, range: &Range<usize>) -> Option<Vec<Range<usize>>> {
    let (text, tokens) = (&parsed.text, &parsed.tokens);
    let first = at(parsed, range.start)?;
    let last = tokens.iter().position(|t| t.end as usize == range.end)?;
    let (mut pieces, mut begin, mut level, mut between) = (Vec::new(), first, 0, 0);
    for i in first..=last {
        level += depth(&tokens[i], text);
        let word = |w: &str| tokens[i].is_word(text, w);
        if word("case") {
            level += 1;
        } else if word("end") {
            level -= 1;
        } else if level == 0 && word("between") {
            between += 1;
        } else if level == 0 && word("or") {
            return Some(vec![range.clone()]);
        } else if level == 0 && word("and") {
            if between > 0 {
                between -= 1;
            } else {
                pieces.push(bytes(tokens, begin..i)?);
                begin = i + 1;
            }
        }
    }
    pieces.push(bytes(tokens, begin..last + 1)?);
    Some(pieces)
}

/// What stands behind each ON of a FROM.
pub(super) fn on_ranges(parsed: &ParsedQuery, from: &Range<usize>) -> Option<Vec<Range<usize>>> {
    let (text, tokens) = (&parsed.text, &parsed.tokens);
    let first = at(parsed, from.start)?;
    let last = tokens.iter().position(|t| t.end as usize == from.end)?;
    let (mut ranges, mut begin, mut level) = (Vec::new(), None, 0);
    for i in first..=last {
        level += depth(&tokens[i], text);
        let word = |w: &str| tokens[i].is_word(text, w);
        // left(…) and right(…) are functions.
        let called = tokens.get(i + 1).is_some_and(|t| t.is(text, "("));
        let joins = ["join", "inner", "cross", "full", "natural"].iter().any(|w| word(w));
        let ends = level == 0 && (tokens[i].is(text, ",") || joins || ((word("left") || word("right")) && !called));
        if let (true, Some(begin)) = (ends, begin) {
            ranges.push(bytes(tokens, begin..i)?);
        }
        if ends {
            begin = None;
        }
        if level == 0 && word("on") {
            begin = Some(i + 1);
        }
    }
    if let Some(begin) = begin {
        ranges.push(bytes(tokens, begin..last + 1)?);
    }
    Some(ranges)
}

/// A piece of the text with the edits that lie inside it.
pub(super) fn edited(text: &str, range: &Range<usize>, edits: &[(Range<usize>, String)]) -> String {
    let mut own: Vec<_> = edits
        .iter()
        .filter(|(span, _)| range.start <= span.start && span.end <= range.end)
        .collect();
    own.sort_by_key(|(span, _)| (span.start, std::cmp::Reverse(span.end)));
    let (mut out, mut at) = (String::new(), range.start);
    for (span, with) in own {
        // Inside of one that was replaced as a whole.
        if span.start < at {
            continue;
        }
        out.push_str(&text[at..span.start]);
        out.push_str(with);
        at = span.end;
    }
    out.push_str(&text[at..range.end]);
    out
}
