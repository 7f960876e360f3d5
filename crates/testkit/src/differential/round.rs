//! One schema: its tables on both sides, and statements, one after the other.

use super::chance::Chance;
use super::compare::{Verdict, compare};
use super::node::{Rendered, quoted};
use super::report::{Difference, Report};
use super::run::Options;
use super::schema::{Schema, Table};
use super::side::{Answer, Carrier, Side};
use super::{Grammar, Statement};
use crate::wire::Target;
use crate::{Error, Result};
use std::time::{Duration, Instant};

/// How long one statement may take on pgherd.
const LIMIT: Duration = Duration::from_secs(30);
/// A statement that takes PostgreSQL longer is left out.
const PLAIN_LIMIT: &str = "SET statement_timeout = '2s'";
/// How long a difference is made smaller.
const SHRINK_LIMIT: Duration = Duration::from_secs(30);

/// Both sides with the round's schema.
pub(super) struct Round<'a> {
    options: &'a Options,
    schema: Schema,
    plain: Side,
    herd: Side,
}

impl<'a> Round<'a> {
    /// Makes the schema on both sides.
    ///
    /// # Errors
    /// What pgherd cannot make ends the run: the script is in the message.
    pub(super) async fn make(options: &'a Options, number: u64, plain: &Target, herd: &Target) -> Result<Round<'a>> {
        let schema = Schema::random(options.seed, number);
        let tables: Vec<&Table> = schema.tables.iter().collect();
        let mut plain = Side::open(plain.clone(), LIMIT).await?;
        let mut herd = Side::open(herd.clone(), LIMIT).await?;
        plain.prepare(&schema.script(false, &tables)).await?;
        let made = herd.prepare(&schema.script(true, &tables)).await;
        made.map_err(|error| Error::Script(format!("round {number} on pgherd: {error}")))?;
        plain.prepare(&[PLAIN_LIMIT.to_owned()]).await?;
        Ok(Round {
            options,
            schema,
            plain,
            herd,
        })
    }

    /// Runs the statement of that number and reports what came of it.
    pub(super) async fn statement(&mut self, number: u64, report: &mut Report) -> Result<()> {
        let chance = Chance::new(self.options.seed, number | 1 << 40);
        let statement = Grammar::new(&self.schema, chance).any(&self.options.kinds);
        for carrier in Carrier::ALL {
            let verdict = self.check(&statement, carrier).await?;
            report.count(number, carrier, &statement.sql(), &verdict);
            if let Verdict::Differs(what) = verdict {
                let (statement, what) = self.shrink(statement, carrier, what).await?;
                let rendered = statement.node.render(statement.has_parameters(carrier));
                let difference = Difference {
                    number,
                    carrier,
                    what,
                    script: self.script(&statement, &rendered),
                };
                if self.options.show {
                    eprintln!("{difference}");
                }
                report.differences.push(difference);
                return Ok(());
            }
        }
        Ok(())
    }

    /// Removes the schema.
    pub(super) async fn drop(mut self) -> Result<()> {
        let drop = [format!("DROP SCHEMA {} CASCADE", self.schema.name)];
        self.plain.prepare(&drop).await?;
        self.herd.prepare(&drop).await
    }

    async fn check(&mut self, statement: &Statement, carrier: Carrier) -> Result<Verdict> {
        if statement.is_script || !statement.before.is_empty() {
            let verdict = self.check_in_block(statement, carrier).await?;
            self.both_simple("ROLLBACK").await?;
            if statement.is_script {
                // Prepared statements outlive their transaction.
                self.both_simple("DEALLOCATE ALL").await?;
            }
            return Ok(verdict);
        }
        let rendered = statement.node.render(carrier.has_parameters());
        let Some(table) = &statement.writes else {
            let (plain, herd) = self.both(&rendered, carrier).await?;
            let verdict = compare(statement, &rendered, carrier, &plain, &herd);
            if let (Verdict::Differs(_), Answer::Failed(_), Answer::Failed(_)) = (&verdict, &plain, &herd)
                && self.another_order_agrees(statement, &rendered, carrier, &herd).await?
            {
                return Ok(Verdict::Open);
            }
            return Ok(verdict);
        };
        let table = self.table(table)?;
        // In a block or by itself: the one commits nothing, the other as one statement does.
        let in_block = rendered.sql.len().is_multiple_of(2);
        if in_block {
            self.both_simple("BEGIN").await?;
        }
        let (plain, herd) = self.both(&rendered, carrier).await?;
        let mut verdict = compare(statement, &rendered, carrier, &plain, &herd);
        let failed = matches!(plain, Answer::Failed(_)) || matches!(herd, Answer::Failed(_));
        if !(in_block && failed) {
            let contents = self.contents(statement, &table).await?;
            if let (Verdict::Same(_) | Verdict::SameError(_), Verdict::Differs(what)) = (&verdict, contents) {
                verdict = Verdict::Differs(format!("afterwards, in {}: {what}", table.name));
            }
        }
        match in_block {
            true => self.both_simple("ROLLBACK").await?,
            false => self.put_back(&table).await?,
        }
        Ok(verdict)
    }

    /// One after the other in one transaction, as far as both sides say the same; a script goes on behind an error.
    async fn check_in_block(&mut self, statement: &Statement, carrier: Carrier) -> Result<Verdict> {
        let begin = format!("BEGIN ISOLATION LEVEL {}", statement.isolation);
        self.both_simple(&begin).await?;
        let (mut rows, mut failed) = (0, None);
        for node in statement.before.iter().chain([&statement.node]) {
            let rendered = node.render(statement.has_parameters(carrier));
            let (plain, herd) = self.both(&rendered, carrier).await?;
            match compare(statement, &rendered, carrier, &plain, &herd) {
                Verdict::Same(more) => rows += more,
                Verdict::SameError(code) if statement.is_script => _ = failed.get_or_insert(code),
                Verdict::Differs(what) if statement.is_script => {
                    return Ok(Verdict::Differs(format!("in {}\n{what}", rendered.sql)));
                }
                other => return Ok(other),
            }
        }
        if let Some(table) = &statement.writes {
            let table = self.table(table)?;
            if let Verdict::Differs(what) = self.contents(statement, &table).await? {
                return Ok(Verdict::Differs(format!("afterwards, in {}: {what}", table.name)));
            }
        }
        Ok(match failed {
            Some(code) => Verdict::SameError(code),
            None => Verdict::Same(rows),
        })
    }

    /// Whether PostgreSQL gives pgherd's error once the rows lie in another order: which of several rows that fail is met
    /// first is open.
    async fn another_order_agrees(
        &mut self,
        statement: &Statement,
        rendered: &Rendered,
        carrier: Carrier,
        herd: &Answer,
    ) -> Result<bool> {
        const ORDERS: u64 = 12;
        for order in 0..ORDERS {
            let mut chance = Chance::new(self.options.seed, order | 1 << 41);
            self.plain.simple("BEGIN").await?;
            for table in &self.schema.tables {
                self.plain.simple(&format!("DELETE FROM {}", table.name)).await?;
                if let Some(fill) = table.shuffled(&mut chance).fill() {
                    self.plain.simple(&fill).await?;
                }
            }
            let again = self.plain.answer(rendered, carrier).await?;
            self.plain.simple("ROLLBACK").await?;
            if matches!(
                compare(statement, rendered, carrier, &again, herd),
                Verdict::SameError(_)
            ) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn table(&self, name: &str) -> Result<Table> {
        let found = self.schema.tables.iter().find(|table| table.name == name);
        found.cloned().ok_or_else(|| Error::Script(format!("no table {name}")))
    }

    async fn both(&mut self, rendered: &Rendered, carrier: Carrier) -> Result<(Answer, Answer)> {
        let plain = self.plain.answer(rendered, carrier).await?;
        let herd = self.herd.answer(rendered, carrier).await?;
        Ok((plain, herd))
    }

    async fn both_simple(&mut self, sql: &str) -> Result<()> {
        self.plain.simple(sql).await?;
        self.herd.simple(sql).await?;
        Ok(())
    }

    /// Compares a table's rows; only the keys where a statement may choose among rows.
    async fn contents(&mut self, statement: &Statement, table: &Table) -> Result<Verdict> {
        let columns = match statement.picks_rows {
            true => table
                .key_columns()
                .iter()
                .map(|column| column.name.as_str())
                .collect::<Vec<_>>()
                .join(", "),
            false => "*".to_owned(),
        };
        let read = Rendered {
            sql: format!("SELECT {columns} FROM {}", table.name),
            ..Rendered::default()
        };
        let (plain, herd) = self.both(&read, Carrier::Simple).await?;
        let statement = Statement {
            picks_rows: false,
            ..statement.clone()
        };
        Ok(compare(&statement, &read, Carrier::Simple, &plain, &herd))
    }

    async fn put_back(&mut self, table: &Table) -> Result<()> {
        let mut script = vec!["BEGIN".to_owned(), format!("DELETE FROM {}", table.name)];
        script.extend(table.fill());
        script.push("COMMIT".to_owned());
        for sql in &script {
            for side in [&mut self.plain, &mut self.herd] {
                if let Answer::Failed(error) = side.simple(sql).await? {
                    return Err(Error::Script(format!("rows cannot be put back: {error}\nin: {sql}")));
                }
            }
        }
        Ok(())
    }

    /// Leaves out of the statement what can be left out while it still differs.
    async fn shrink(
        &mut self,
        mut statement: Statement,
        carrier: Carrier,
        mut what: String,
    ) -> Result<(Statement, String)> {
        let start = Instant::now();
        // Which of the nodes is being made smaller, and where.
        let (mut part, mut site) = (0, 0);
        // Each look at something that does not answer takes as long as waiting for it did.
        let answers = !what.starts_with(super::compare::LOST);
        while self.options.shrink && answers && start.elapsed() < SHRINK_LIMIT && part <= statement.before.len() {
            let Some(smaller) = statement.smaller(part, site) else {
                (part, site) = (part + 1, 0);
                continue;
            };
            match self.check(&smaller, carrier).await? {
                Verdict::Differs(still) => {
                    if smaller.before.len() < statement.before.len() {
                        (part, site) = (0, 0);
                    }
                    (statement, what) = (smaller, still);
                }
                _ => site += 1,
            }
        }
        Ok((statement, what))
    }

    /// What shows the difference in psql, on pgherd and (but for unknown settings) on PostgreSQL.
    fn script(&self, statement: &Statement, rendered: &Rendered) -> String {
        let whole = statement.sql();
        let is_word = |at: usize, len: usize| {
            let outside = |c: Option<char>| !c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
            outside(whole[..at].chars().next_back()) && outside(whole[at + len..].chars().next())
        };
        let used = |table: &&Table| {
            let name = table.name.as_str();
            whole.match_indices(name).any(|(at, _)| is_word(at, name.len()))
        };
        let tables: Vec<&Table> = self.schema.tables.iter().filter(used).collect();
        let mut script = self.schema.script(true, &tables).join(";\n");
        script.push_str(";\n");
        if statement.is_script || !statement.before.is_empty() {
            script += &format!("BEGIN ISOLATION LEVEL {};\n", statement.isolation);
            script.extend(statement.before.iter().map(|node| node.render(false).for_psql()));
        }
        if rendered.parameters.is_empty() {
            return script + &rendered.for_psql();
        }
        let values: Vec<_> = rendered
            .parameters
            .iter()
            .map(|value| value.as_deref().map_or_else(|| "NULL".to_owned(), quoted))
            .collect();
        script + &format!("PREPARE p AS {};\nEXECUTE p({});\n", rendered.sql, values.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The grammar gives the same statement for the same seed and number, whatever else was made before.
    #[test]
    fn statements_are_reproducible() {
        let schema = Schema::random(3, 1);
        let make = |number: u64| {
            let kinds = [
                super::super::Kind::Query,
                super::super::Kind::Write,
                super::super::Kind::Block,
                super::super::Kind::Error,
                super::super::Kind::Script,
            ];
            Grammar::new(&schema, Chance::new(3, number)).any(&kinds).node
        };
        let first: Vec<_> = (0..200).map(|number| make(number).render(false).sql).collect();
        let again: Vec<_> = (0..200).rev().map(|number| make(number).render(false).sql).collect();
        assert!(first.iter().eq(again.iter().rev()));
    }
}
