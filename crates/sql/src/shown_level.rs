//! Settings as SQL shows them, at SERIALIZABLE over shards: there the shards' blocks are at another level, and
//! `current_setting` and `pg_settings` would say so. The function and the view of the same names in schema `pgherd` give the
//! level that the client asked for.

use crate::analysis::Analysis;
use crate::instead::Instead;

const FUNCTION: &str = "current_setting";
const VIEW: &str = "pg_settings";

impl Analysis {
    /// The statement with the cluster's function and view; None where PostgreSQL's are not in it.
    pub fn with_level(&self) -> Option<Instead> {
        let (text, tokens) = (&self.text, &self.tokens);
        let is = |i: usize, symbol: &str| tokens.get(i).is_some_and(|t| t.is(text, symbol));
        let of_system = |i: usize| {
            // The first token of its name: `f` or `pg_catalog.f`.
            match i > 0 && is(i - 1, ".") {
                false => Some(i),
                true => (i > 1 && tokens[i - 2].identifier(text).as_deref() == Some("pg_catalog")).then(|| i - 2),
            }
        };
        let called = (0..tokens.len()).filter_map(|i| {
            let named = tokens[i].identifier(text).as_deref() == Some(FUNCTION) && is(i + 1, "(");
            let first = named.then(|| of_system(i))??;
            let span = tokens[first].start as usize..tokens[i].end as usize;
            Some((span, format!("pgherd.{FUNCTION}")))
        });
        let references = self.references.as_deref().unwrap_or_default().iter();
        let read = references.filter_map(|reference| {
            let name = &reference.name;
            let of_system = name.schema.as_deref().is_none_or(|schema| schema == "pg_catalog");
            (name.name == VIEW && of_system).then(|| (name.span.clone(), format!("pgherd.{VIEW}")))
        });
        let mut replacements: Vec<_> = called.chain(read).collect();
        replacements.sort_by_key(|(span, _)| span.start);
        (!replacements.is_empty()).then(|| Instead::new(text, &replacements))
    }
}
