//! What SQL asks about the session itself and no shard knows: its process id, the ends of its connection, its prepared
//! statements and cursors, and the end of other sessions. The calls are replaced by calls of functions of schema `pgherd` that are given the answer, and have
//! PostgreSQL's names, since they become names of columns.
//!
//! A session's process id is the gateway's: what BackendKeyData says, beyond any operating system's. `pg_stat_activity` shows it, with what
//! the session does, in place of the pools' connections. Other statistics views of
//! PostgreSQL show the home shard's processes, so where a statement reads them, this one does as well, and `pg_backend_pid()` stays PostgreSQL's.

use super::extended::Prepared;
use super::{Mode, Problem, Session, Unit};
use crate::cancel::Why;
use crate::signals::Signals;
use pgherd_model::{ServerError, SqlState, quote_literal};
use pgherd_sql::lexer::{Token, TokenKind};
use pgherd_sql::{DdlKind, Instead, Kind};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::ops::Range;
use std::time::UNIX_EPOCH;

const BACKEND_PID: &str = "pg_backend_pid";
const PREPARED_STATEMENTS: &str = "pg_prepared_statements";
const CURSORS: &str = "pg_cursors";
const TERMINATE: &str = "pg_terminate_backend";
const CANCEL: &str = "pg_cancel_backend";
/// The view of this gateway's sessions, in schema `pgherd`.
const SESSIONS: &str = "sessions";
const ACTIVITY: &str = "pg_stat_activity";
const EXPORT_SNAPSHOT: &str = "pg_export_snapshot";

const CLIENT_ADDRESS: &str = "inet_client_addr";
const CLIENT_PORT: &str = "inet_client_port";
const SERVER_ADDRESS: &str = "inet_server_addr";
const SERVER_PORT: &str = "inet_server_port";

/// What shows the home shard's processes, or acts on them, beside the statistics views.
const OF_PROCESSES: [&str; 3] = ["pg_locks", "pg_blocking_pids", "pg_log_backend_memory_contexts"];

/// Statistics views that are about tables or the server, not about processes.
const NOT_OF_PROCESSES: [&str; 14] = [
    ACTIVITY,
    "pg_stat_all_indexes",
    "pg_stat_all_tables",
    "pg_stat_archiver",
    "pg_stat_bgwriter",
    "pg_stat_database",
    "pg_stat_slru",
    "pg_stat_sys_indexes",
    "pg_stat_sys_tables",
    "pg_stat_user_functions",
    "pg_stat_user_indexes",
    "pg_stat_user_tables",
    "pg_stat_wal",
    "pg_stat_xact_user_tables",
];

/// Whether a text has to do with other sessions.
pub(super) fn acts_on_sessions(lower: &str) -> bool {
    [TERMINATE, CANCEL, ACTIVITY].iter().any(|name| lower.contains(name))
}

/// Whether a statement may have to be run in other words.
pub(crate) fn asks_session(lower: &str) -> bool {
    [
        BACKEND_PID,
        PREPARED_STATEMENTS,
        CURSORS,
        TERMINATE,
        CANCEL,
        ACTIVITY,
        EXPORT_SNAPSHOT,
        "inet_client_",
        "inet_server_",
    ]
    .iter()
    .any(|name| lower.contains(name))
        || (lower.contains(SESSIONS) && lower.contains("pgherd"))
}

/// A call in the text: its first token, the tokens inside of its parentheses, and the bytes from the name (with schema)
/// to the closing parenthesis.
struct Call {
    inside: Range<usize>,
    span: Range<usize>,
}

impl Call {
    fn arguments<'t>(&self, text: &'t str, tokens: &[Token]) -> &'t str {
        match &tokens[self.inside.clone()] {
            [first, .., last] => &text[first.start as usize..last.end as usize],
            [only] => only.text(text),
            [] => "",
        }
    }
}

impl Session {
    /// What to run in the statement's place; None where nothing in it is about this session. Sessions that it ends are
    /// told here.
    pub(crate) async fn with_own_state(&mut self, unit: Unit<'_>) -> Result<Option<Instead>, Problem> {
        let (text, tokens) = (&unit.statement.text, &unit.statement.parsed.tokens);
        if is_kept(&unit.statement.parsed.kind, text, tokens) {
            return Ok(None);
        }
        let (mut replacements, mut computed) = (Vec::new(), Vec::new());
        self.client.signals = None;
        for (name, why) in [(TERMINATE, Why::Terminated), (CANCEL, Why::Client)] {
            for call in calls(text, tokens, name) {
                let Some(process_id) = self.process_id_in(unit, call.inside.clone()) else {
                    if let Some(first) = tokens.get(call.inside.start).filter(|_| !call.inside.is_empty()) {
                        let sessions = self.signalled(why).await?;
                        let name_of_call = call.span.start..first.start as usize;
                        computed.push((name_of_call, format!("pgherd.{name}({sessions}, ")));
                    }
                    continue;
                };
                if self.signal(process_id, why).await? {
                    let arguments = call.arguments(text, tokens);
                    replacements.push((call.span, format!("pgherd.{name}(true, {arguments})")));
                }
            }
        }
        if !reads_statistics(text, tokens) {
            let own = self.cancel.process_id;
            let within = |span: &Range<usize>, done: &[(Range<usize>, String)]| {
                done.iter().any(|(d, _)| d.start <= span.start && span.end <= d.end)
            };
            for call in calls(text, tokens, BACKEND_PID) {
                if !within(&call.span, &replacements) {
                    replacements.push((call.span, format!("pgherd.{BACKEND_PID}({own})")));
                }
            }
        }
        if let Some((client, server)) = self.client.ends() {
            let address = |ip: IpAddr| format!("{}::pg_catalog.inet", quote_literal(&ip.to_canonical().to_string()));
            for (name, answer) in [
                (CLIENT_ADDRESS, address(client.ip())),
                (CLIENT_PORT, client.port().to_string()),
                (SERVER_ADDRESS, address(server.ip())),
                (SERVER_PORT, server.port().to_string()),
            ] {
                replacements
                    .extend(calls(text, tokens, name).map(|call| (call.span, format!("pgherd.{name}({answer})"))));
            }
        }
        for call in calls(text, tokens, EXPORT_SNAPSHOT) {
            if let Some(name) = self.exported_snapshot().await? {
                let literal = quote_literal(&name);
                replacements.push((call.span, format!("pgherd.{EXPORT_SNAPSHOT}({literal})")));
            }
        }
        for span in relations(unit, SESSIONS, |schema| schema == Some("pgherd")) {
            let sessions = quote_literal(&self.gateway.cancels.shown(self.cancel.process_id).to_string());
            let gateway = quote_literal(&self.gateway.options.gateway_name);
            replacements.push((span, format!("pgherd.{SESSIONS}({gateway}, {sessions})")));
        }
        if !reads_statistics(text, tokens) {
            for span in relations(unit, ACTIVITY, of_system) {
                replacements.push((span, self.activity(unit)));
            }
        }
        for span in relations(unit, CURSORS, of_system) {
            let [elsewhere, texts] = self.open_cursors().await?.map(|json| quote_literal(&json));
            replacements.push((span, format!("pgherd.{CURSORS}({elsewhere}, {texts})")));
        }
        for span in relations(unit, PREPARED_STATEMENTS, of_system) {
            let statements = self.prepared_statements(unit).await?;
            let literal = quote_literal(&statements);
            replacements.push((span, format!("pgherd.{PREPARED_STATEMENTS}({literal})")));
        }
        replacements.extend(computed);
        replacements.sort_by_key(|(span, _)| span.start);
        Ok((!replacements.is_empty()).then(|| Instead::new(text, &replacements)))
    }

    /// The first argument of a call, where it is a constant, a parameter or this session's own process id.
    fn process_id_in(&self, unit: Unit<'_>, inside: Range<usize>) -> Option<i32> {
        let (text, tokens) = (&unit.statement.text, &unit.statement.parsed.tokens);
        let first = tokens.get(inside.start)?;
        let is = |i: usize, symbol: &str| tokens.get(i).is_some_and(|t| t.is(text, symbol));
        if let Some(own) = calls(text, &tokens[inside.clone()], BACKEND_PID).next() {
            let is_all = own.inside.is_empty() && own.span.start == first.start as usize;
            return is_all.then_some(self.cancel.process_id);
        }
        // Behind it: nothing, a cast, or the limit of the time to wait.
        let end = inside.start + 1;
        (end == inside.end || is(end, ",") || is(end, "::")).then_some(())?;
        match first.kind {
            TokenKind::Parameter => {
                let number: usize = first.text(text).trim_start_matches('$').parse().ok()?;
                match unit.parameters.get(number.checked_sub(1)?)? {
                    (false, Some(value)) => std::str::from_utf8(value).ok()?.trim().parse().ok(),
                    (true, Some(value)) => match value.len() {
                        2 => Some(i16::from_be_bytes(value[..].try_into().ok()?).into()),
                        4 => Some(i32::from_be_bytes(value[..].try_into().ok()?)),
                        8 => i64::from_be_bytes(value[..].try_into().ok()?).try_into().ok(),
                        _ => None,
                    },
                    (_, None) => None,
                }
            }
            TokenKind::String => first.string(text)?.trim().parse().ok(),
            _ => first.text(text).parse().ok(),
        }
    }

    /// Ends a session of this gateway, or cancels what it runs; false for a process that is none.
    async fn signal(&mut self, process_id: i32, why: Why) -> Result<bool, Problem> {
        let Some(role) = self.gateway.cancels.role(process_id) else {
            return Ok(false);
        };
        if role != self.who.role {
            self.check_may_signal(&role, why).await?;
        }
        if process_id == self.cancel.process_id {
            return match why {
                Why::Terminated => Err(terminated().into()),
                _ => Err(ServerError::new(SqlState::QUERY_CANCELED, "canceling statement due to user request").into()),
            };
        }
        self.gateway.cancels.signal(process_id, why).await;
        Ok(true)
    }

    /// `pg_stat_activity` with this gateway's sessions. The cluster's own connections are shown to who asks for them.
    fn activity(&self, unit: Unit<'_>) -> String {
        let home = self.gateway.shards.home();
        let sessions = self.gateway.cancels.activity(self.cancel.process_id, home);
        let pooled = json!(self.gateway.shards.processes(home)).to_string();
        let hidden = match unit.statement.text.to_ascii_lowercase().contains("pgherd") {
            true => "NULL".to_owned(),
            false => quote_literal(self.gateway.shards.service_role()),
        };
        let (sessions, pooled) = (quote_literal(&sessions.to_string()), quote_literal(&pooled));
        format!("pgherd.{ACTIVITY}({sessions}, {pooled}, {hidden})")
    }

    /// The sessions that a computed process id may mean, as the functions that stand for PostgreSQL's take them; and from now on
    /// those are signalled that the role may signal.
    async fn signalled(&mut self, why: Why) -> Result<String, Problem> {
        let sessions = self.gateway.cancels.roles(self.gateway.shards.home());
        let mut refused: HashMap<_, Option<ServerError>> = HashMap::new();
        for (_, role, _) in &sessions {
            if *role != self.who.role && !refused.contains_key(role) {
                let refusal = match self.check_may_signal(role, why).await {
                    Ok(()) => None,
                    Err(Problem::Error(error)) if error.sqlstate() == SqlState::INSUFFICIENT_PRIVILEGE => Some(error),
                    Err(problem) => return Err(problem),
                };
                refused.insert(role.clone(), refusal);
            }
        }
        let (mut told, mut allowed) = (serde_json::Map::new(), HashSet::new());
        for (process_id, role, at) in sessions {
            let refusal = refused.get(&role).and_then(Option::as_ref);
            if refusal.is_none() {
                allowed.insert(process_id);
            }
            let entry = json!({
                "pid": process_id,
                "refused": refusal.map(|error| &error.fields().message),
                "own": process_id == self.cancel.process_id,
            });
            if let Some(at) = at.filter(|at| *at != process_id) {
                told.insert(at.to_string(), entry.clone());
            }
            told.insert(process_id.to_string(), entry);
        }
        self.client.signals = Some(Signals::new(self.gateway.cancels.clone(), allowed));
        let literal = quote_literal(&Value::Object(told).to_string());
        Ok(format!("{literal}::pg_catalog.jsonb"))
    }

    /// 42501 as PostgreSQL's.
    async fn check_may_signal(&mut self, role: &str, why: Why) -> Result<(), Problem> {
        let role = quote_literal(role);
        let sql = format!(
            "SELECT me.rolsuper OR NOT him.rolsuper, me.rolsuper OR pg_catalog.pg_has_role(him.oid, 'USAGE') \
             OR pg_catalog.pg_has_role('pg_signal_backend', 'USAGE') \
             FROM pg_catalog.pg_roles me, pg_catalog.pg_roles him WHERE me.rolname = current_user AND him.rolname = {role}"
        );
        let results = self.ask_home(&sql).await?;
        let is = |column| results.first().and_then(|r| r.text(0, column)) == Some("t");
        let verb = if why == Why::Terminated { "terminate" } else { "cancel" };
        let message = match (is(0), is(1)) {
            (true, true) => return Ok(()),
            (false, _) => format!("must be a superuser to {verb} superuser process"),
            (true, false) => format!(
                "must be a member of the role whose {} or member of pg_signal_backend",
                match why {
                    Why::Terminated => "process is being terminated",
                    _ => "query is being canceled",
                }
            ),
        };
        Err(ServerError::new(SqlState::INSUFFICIENT_PRIVILEGE, message).into())
    }

    /// The session's named prepared statements, as a JSON array of rows of PostgreSQL's view; `prepared_at` is in seconds.
    async fn prepared_statements(&mut self, unit: Unit<'_>) -> Result<String, Problem> {
        let all: Vec<_> = self.prepared.iter().filter(|(name, _)| !name.is_empty()).collect();
        let all: Vec<_> = all.into_iter().map(|(name, p)| (name.clone(), p.clone())).collect();
        let mut rows = Vec::with_capacity(all.len());
        for (name, prepared) in all {
            let types = self.parameter_types_of(&prepared, unit.mode).await?;
            rows.push(view_row(&name, &prepared, &types));
        }
        Ok(Value::Array(rows).to_string())
    }

    /// As the home shard settles them; as declared where the statement is none any more.
    async fn parameter_types_of(&mut self, prepared: &Prepared, mode: Mode<'_>) -> Result<Vec<u32>, Problem> {
        let Some(statement) = prepared.statement.as_ref().filter(|s| s.has_parameters) else {
            return Ok(prepared.types.clone());
        };
        let unit = Unit {
            statement,
            types: &prepared.types,
            parameters: &[],
            mode,
            template: None,
        };
        let snapshot = self.catalog().snapshot();
        match self.description(unit, &snapshot).await {
            Ok(described) => Ok(described.parameter_types.clone()),
            Err(Problem::Error(_)) if self.block.is_none() => Ok(prepared.types.clone()),
            Err(problem) => Err(problem),
        }
    }
}

/// What ends a session that another one has ended.
pub(crate) fn terminated() -> ServerError {
    ServerError::new(
        SqlState::ADMIN_SHUTDOWN,
        "terminating connection due to administrator command",
    )
    .fatal()
}

/// All calls of a function of PostgreSQL's, ascending.
fn calls<'a>(text: &'a str, tokens: &'a [Token], name: &'a str) -> impl Iterator<Item = Call> + 'a {
    let is = move |i: usize, symbol: &str| tokens.get(i).is_some_and(|t| t.is(text, symbol));
    (0..tokens.len()).filter_map(move |i| {
        let named = tokens[i].identifier(text).is_some_and(|n| n == name);
        (named && is(i + 1, "(")).then_some(())?;
        let mut first = i;
        if i > 1 && is(i - 1, ".") {
            tokens[i - 2].names(text, "pg_catalog").then_some(())?;
            first = i - 2;
        }
        let mut depth = 0;
        let close = (i + 1..tokens.len()).find(|&at| {
            depth += i32::from(is(at, "(")) - i32::from(is(at, ")"));
            depth == 0
        })?;
        Some(Call {
            inside: i + 2..close,
            span: tokens[first].start as usize..tokens[close].end as usize,
        })
    })
}

/// Whether a name with this schema is PostgreSQL's own.
fn of_system(schema: Option<&str>) -> bool {
    schema.is_none_or(|s| s == "pg_catalog")
}

/// Where the view is named, in a schema like that.
fn relations(unit: Unit<'_>, view: &str, is_schema: impl Fn(Option<&str>) -> bool) -> Vec<Range<usize>> {
    let (text, tokens) = (&unit.statement.text, &unit.statement.parsed.tokens);
    if !tokens.iter().any(|t| t.identifier(text).is_some_and(|n| n == view)) {
        return Vec::new();
    }
    let tree = unit.statement.parsed.ast.as_deref();
    let references = tree.and_then(|tree| pgherd_sql::relations::references(tree, &|_, _| None));
    let references = references.into_iter().flatten();
    references
        .filter(|r| r.name.name == view && is_schema(r.name.schema.as_deref()))
        .map(|r| r.name.span)
        .collect()
}

/// Whether the text is a definition that other sessions run later: a default, a view, a trigger.
fn is_kept(kind: &Kind, text: &str, tokens: &[Token]) -> bool {
    match kind {
        Kind::Ddl(ddl) => ddl.kind != DdlKind::CreateTableAs,
        Kind::Other => tokens
            .first()
            .is_some_and(|t| t.is_word(text, "create") || t.is_word(text, "alter")),
        _ => false,
    }
}

/// Whether the home shard's own processes are looked at.
fn reads_statistics(text: &str, tokens: &[Token]) -> bool {
    let names = tokens.iter().filter_map(|t| t.identifier(text));
    let mut of_processes = names.filter(|n| {
        let n = n.as_str();
        n.starts_with("pg_stat_") && !NOT_OF_PROCESSES.contains(&n) || OF_PROCESSES.contains(&n)
    });
    of_processes.next().is_some()
}

/// A row of PostgreSQL's view of prepared statements.
fn view_row(name: &str, prepared: &Prepared, types: &[u32]) -> Value {
    let since = prepared.prepared_at.duration_since(UNIX_EPOCH).unwrap_or_default();
    json!({
        "name": name,
        "statement": &*prepared.text,
        "prepared_at": since.as_secs_f64(),
        "parameter_types": types.iter().map(u32::to_string).collect::<Vec<_>>(),
        "from_sql": prepared.from_sql,
        "generic_plans": 0,
        "custom_plans": 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(text: &str, name: &str) -> Vec<String> {
        let parsed = pgherd_sql::parse(text).expect("SQL").remove(0);
        let found = calls(text, &parsed.tokens, name);
        found.map(|call| text[call.span].to_owned()).collect()
    }

    #[test]
    fn calls_are_found_with_their_schema_and_arguments() {
        assert_eq!(
            spans("SELECT pg_catalog.pg_terminate_backend((1) + 2, 5), x", TERMINATE),
            ["pg_catalog.pg_terminate_backend((1) + 2, 5)"]
        );
        assert_eq!(spans("SELECT mine.pg_backend_pid()", BACKEND_PID), [""; 0]);
        assert_eq!(spans("SELECT pg_backend_pid FROM t", BACKEND_PID), [""; 0]);
    }

    #[test]
    fn names_and_texts_are_json() {
        let odd = "a\"b\\c\n\u{e9}";
        let prepared = Prepared {
            statement: None,
            types: Vec::new(),
            named: true,
            text: odd.into(),
            offset: 0,
            reading: None,
            from_sql: false,
            prepared_at: UNIX_EPOCH,
            told: Default::default(),
        };
        let row = view_row(odd, &prepared, &[23]).to_string();
        let read: Value = serde_json::from_str(&row).expect("JSON");
        assert_eq!((&read["name"], &read["statement"]), (&json!(odd), &json!(odd)));
        assert_eq!(read["parameter_types"], json!(["23"]));
    }
}
