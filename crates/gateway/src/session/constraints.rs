//! SET CONSTRAINTS: the home shard, which has every table, judges it; of the others each has those of sharded tables.

use super::{Problem, Session, Unit};
use pgherd_sql::lexer::Token;
use std::sync::Arc;

impl Session {
    /// Runs it in the block; outside of one, PostgreSQL says what it means there.
    pub(crate) async fn set_constraints(&mut self, unit: Unit<'_>) -> Result<(), Problem> {
        let home = self.gateway.shards.home();
        let text = &unit.statement.text;
        let for_others = on_other_shards(text, &unit.statement.parsed.tokens);
        let Some(open) = self.block.open_mut() else {
            return self.judged_by_home(unit).await;
        };
        let mut failed = open
            .transaction
            .participant_to_set(home)
            .await?
            .simple(text)
            .await
            .err();
        for (shard, backend) in open.transaction.participants() {
            if shard != home && failed.is_none() {
                failed = backend.simple(&for_others).await.err();
            }
        }
        if let Some(error) = failed {
            // What was put off until now may have failed on a range.
            return Err(self.as_client_sees(error.into()).into());
        }
        open.transaction.replay_on_join(for_others);
        self.client.put_tag("SET CONSTRAINTS");
        Ok(())
    }
}

/// The statement for shards where some of the constraints may not exist, since their tables are local: each name on its own.
fn on_other_shards(text: &str, tokens: &[Token]) -> Arc<str> {
    let [_, _, names @ .., how] = tokens else {
        return text.into();
    };
    if matches!(names, [all] if all.is_word(text, "all")) {
        return text.into();
    }
    let how = how.text(text);
    let one = |name: &[Token]| -> Option<String> {
        let (first, last) = (name.first()?, name.last()?);
        let name = &text[first.start as usize..last.end as usize];
        Some(format!(
            "BEGIN SET CONSTRAINTS {name} {how}; EXCEPTION WHEN undefined_object THEN NULL; END;"
        ))
    };
    let blocks: Vec<_> = names.split(|t| t.is(text, ",")).filter_map(one).collect();
    let body = format!(" BEGIN {} END ", blocks.join(" "));
    format!("DO {}", pgherd_model::quote_literal(&body)).into()
}

#[cfg(test)]
mod tests {
    use super::on_other_shards;

    #[test]
    fn each_constraint_may_be_missing() {
        let others = |text: &str| {
            let parsed = pgherd_sql::parse(text).expect("SQL").remove(0);
            on_other_shards(text, &parsed.tokens).to_string()
        };
        assert_eq!(others("set constraints all deferred"), "set constraints all deferred");
        assert_eq!(
            others("SET CONSTRAINTS s.\"it's\", b IMMEDIATE"),
            "DO ' BEGIN BEGIN SET CONSTRAINTS s.\"it''s\" IMMEDIATE; EXCEPTION WHEN undefined_object THEN NULL; END; \
             BEGIN SET CONSTRAINTS b IMMEDIATE; EXCEPTION WHEN undefined_object THEN NULL; END; END '"
        );
    }
}
