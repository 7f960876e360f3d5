//! `pg_prepared_xacts`: what clients have prepared has other names on the shards, and the view of PostgreSQL shows those, beside
//! the cluster's own. The view of the same name in schema `pgherd` is read in its place.

use crate::analysis::Context;
use crate::instead::Instead;
use crate::relations::references;
use sqlparser::ast::Statement;

const VIEW: &str = "pg_prepared_xacts";

/// The statement with the cluster's view; None where the view of PostgreSQL is not in it.
pub(crate) fn instead(tree: Option<&Statement>, context: &Context) -> Option<Instead> {
    let is_named = |t: &crate::lexer::Token| t.identifier(context.text).is_some_and(|name| name == VIEW);
    if !context.tokens.iter().any(is_named) {
        return None;
    }
    let references = references(tree?, &|schema, name| context.resolve(schema, name))?;
    let of_system = references.iter().filter(|r| {
        let schema = r.name.schema.as_deref();
        r.name.name == VIEW && schema.is_none_or(|schema| schema == "pg_catalog")
    });
    let replacements: Vec<_> = of_system
        .map(|r| (r.name.span.clone(), format!("pgherd.{VIEW}")))
        .collect();
    (!replacements.is_empty()).then(|| Instead::new(context.text, &replacements))
}
