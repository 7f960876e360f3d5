//! EXPLAIN of a statement over several shards: the tier, the shards, and the SQL that each gets. Nothing is run or asked.

use crate::statement::Statement;
use crate::{Fragment, gather, plan};
use pgherd_model::ServerError;
use pgherd_shards::ColumnDescription;
use sqlparser::ast::Statement as Ast;

/// The lines of EXPLAIN. Which columns a local table has is not known here, so all of them are shown as gathered.
///
/// # Errors
/// 0A000 for what would be refused.
pub fn explain(statement: Statement<'_>, columns: &[ColumnDescription]) -> Result<Vec<String>, ServerError> {
    if let Some(plan) = plan::plan(&statement, columns) {
        let mut lines = vec![format!(
            "Plan: {} of {} shards' rows",
            plan.summary(),
            shards(&plan.fragments)
        )];
        lines.extend(plan.fragments.iter().map(line));
        return Ok(lines);
    }
    if let Some(plan) = plan::join_run::plan(&statement, columns) {
        let mut lines = vec![format!("Plan: Join {} shards' rows", shards(&plan.fragments))];
        lines.extend(plan.fragments.iter().map(line));
        return Ok(lines);
    }
    let fragments = match statement.ast {
        Ast::Query(_) => gather::preview(&statement)?,
        _ => Vec::new(),
    };
    let what = match statement.ast {
        Ast::Insert(_) => "Insert by range: rows of the query",
        _ => "Gather: run the statement on the home shard over copies of the rows",
    };
    let mut lines = vec![format!("{what} of {} shards", shards(&fragments).max(1))];
    lines.extend(fragments.iter().map(line));
    Ok(lines)
}

fn shards(fragments: &[Fragment]) -> usize {
    let mut shards: Vec<_> = fragments.iter().map(|f| f.shard).collect();
    shards.sort();
    shards.dedup();
    shards.len()
}

fn line(fragment: &Fragment) -> String {
    format!("  ->  Shard {}: {}", fragment.shard, fragment.sql)
}
