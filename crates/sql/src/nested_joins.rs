//! Joins that stand inside others without parentheses: `a JOIN b LEFT JOIN c ON … ON …`, which is `a JOIN (b LEFT JOIN c ON …) ON …`. And those
//! that a MERGE has for its source.

use crate::lexer::{Token, TokenKind};

/// Where parentheses belong, by token.
#[derive(Debug, Default)]
pub(crate) struct NestedJoins {
    /// the JOINs, and MERGE's USING, that one opens behind
    opens: Vec<usize>,
    /// the ONs and USINGs that one closes before
    closes: Vec<usize>,
}

impl NestedJoins {
    /// Whether a parenthesis opens behind this token.
    pub fn is_open_behind(&self, token: usize) -> bool {
        self.opens.contains(&token)
    }

    /// How many parentheses close before this token.
    pub fn closed_before(&self, token: usize) -> usize {
        self.closes.iter().filter(|&&at| at == token).count()
    }
}

/// A JOIN whose condition has not come yet.
struct Pending {
    at: usize,
    /// another join came before its condition
    nests: bool,
}

/// Finds them.
pub(crate) fn nested_joins(text: &str, tokens: &[Token]) -> NestedJoins {
    let word = |at: usize, word: &str| tokens.get(at).is_some_and(|t| t.is_word(text, word));
    let mut found = NestedJoins::default();
    let merges = (0..tokens.len()).any(|at| word(at, "merge") && word(at + 1, "into"));
    let joins = (0..tokens.len()).filter(|&at| word(at, "join")).count();
    if joins < 2 - usize::from(merges) {
        return found;
    }
    let mut source: Option<Pending> = None;
    // By depth of parentheses.
    let mut levels: Vec<Vec<Pending>> = vec![Vec::new()];
    for (at, token) in tokens.iter().enumerate() {
        let outermost = levels.len() == 1;
        if token.kind == TokenKind::Symbol {
            match token.text(text) {
                "(" => levels.push(Vec::new()),
                ")" if levels.len() > 1 => drop(levels.pop()),
                _ => {}
            }
            continue;
        }
        let Some(level) = levels.last_mut() else { continue };
        if at > 0 && tokens[at - 1].is(text, ".") {
            continue;
        }
        if word(at, "join") {
            if let Some(source) = source.as_mut().filter(|_| outermost) {
                source.nests = true;
            }
            if let Some(outer) = level.last_mut().filter(|outer| !outer.nests) {
                outer.nests = true;
                found.opens.push(outer.at);
            }
            let natural = |back: usize| at >= back && word(at - back, "natural");
            let is_cross = at > 0 && word(at - 1, "cross");
            let is_conditioned = !is_cross && !(1..=3).any(natural);
            if is_conditioned {
                level.push(Pending { at, nests: false });
            }
        } else if word(at, "on") || word(at, "using") {
            match level.pop() {
                Some(join) if join.nests => found.closes.push(at),
                Some(_) => {}
                None if merges && outermost && word(at, "using") => source = Some(Pending { at, nests: false }),
                None if outermost && word(at, "on") => {
                    if let Some(source) = source.take().filter(|source| source.nests) {
                        found.opens.push(source.at);
                        found.closes.push(at);
                    }
                }
                None => {}
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parentheses_are_put_where_a_join_waits_for_its_condition() {
        for (text, with) in [
            ("a join b on 1 join c using (x)", "a join b on 1 join c using (x)"),
            ("a join b left join c on 1 on 2", "a join ( b left join c on 1 ) on 2"),
            (
                "a join b join c join d on 1 on 2 on 3",
                "a join ( b join ( c join d on 1 ) on 2 ) on 3",
            ),
            ("a join b cross join c on 1", "a join ( b cross join c ) on 1"),
            ("a natural left join b join c on 1", "a natural left join b join c on 1"),
            ("a join (b join c on 1) on 2", "a join (b join c on 1) on 2"),
            (
                "a join b join c using (x) using (y), d",
                "a join ( b join c using (x) ) using (y), d",
            ),
        ] {
            let tokens = crate::lexer::tokenize(text).unwrap();
            let nested = nested_joins(text, &tokens);
            let mut out = String::new();
            let mut end = 0;
            for (i, token) in tokens.iter().enumerate() {
                out.push_str(&text[end..token.start as usize]);
                out.push_str(&") ".repeat(nested.closed_before(i)));
                out.push_str(token.text(text));
                out.push_str(if nested.is_open_behind(i) { " (" } else { "" });
                end = token.end as usize;
            }
            assert_eq!(out, with);
        }
    }
}
