//! A session's settings, as the list of SET statements that make a fresh backend equal to it.
//!
//! PostgreSQL validates every SET: it runs on a home-shard backend first and enters the list when it
//! succeeded. Backends are brought in line when they are checked out under another fingerprint.

use super::Session;
use crate::encoding::Encoding;
use pgherd_model::{ServerError, SqlState, quote_identifier, quote_literal};
use pgherd_operations::Distribution;
use pgherd_shards::{RESET_SQL, SessionSettings};
use pgherd_transaction::Isolation;
use std::sync::Arc;
use std::time::Duration;

/// The settings, their fingerprint and what routing needs of them.
#[derive(Clone, Default)]
pub(crate) struct Settings {
    /// from the start-up message: name and value, where RESET goes back to
    startup: Vec<(String, String)>,
    /// lower-case name and the statement that sets it, in the order they were first set
    list: Vec<(String, Arc<str>)>,
    fingerprint: u64,
    /// the schemas of search_path, `$user` replaced
    pub(crate) search_path: Arc<[Arc<str>]>,
    pub(crate) search_path_id: u64,
    pub(crate) default_distribution: String,
    pub(crate) initial_bounds: String,
    /// whether PostgreSQL has a value for the two settings above
    own: [bool; 2],
    /// default_transaction_isolation, where it is more than READ COMMITTED
    pub(crate) default_isolation: Option<Isolation>,
    /// default_transaction_read_only
    pub(crate) default_read_only: bool,
    /// pgherd.pool_mode is `session`, see [`super::start`]
    pub(crate) keeps_backend: bool,
    pub(crate) timeouts: Timeouts,
    /// client_min_messages
    pub(crate) least_severity: Severity,
    /// standard_conforming_strings is off
    pub(crate) escapes_in_strings: bool,
    /// escape_string_warning
    pub(crate) warns_of_escapes: bool,
    /// client_encoding, where it is not UTF8: the shards' stays UTF8
    pub(crate) encoding: Option<Arc<Encoding>>,
    /// the same at the start, where RESET goes back to
    pub(crate) startup_encoding: Option<Arc<Encoding>>,
    /// after SET LOCAL: what `encoding` is to be again when the transaction has committed
    pub(crate) encoding_afterwards: Option<Option<Arc<Encoding>>>,
}

/// How severe a message is for `client_min_messages`, lowest first.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Severity {
    /// DEBUG5 to DEBUG2
    Debug(u8),
    /// DEBUG1, which is what RAISE DEBUG says
    Debug1,
    /// LOG
    Log,
    /// NOTICE
    #[default]
    Notice,
    /// WARNING
    Warning,
    /// ERROR and above, and INFO: never held back
    Error,
}

impl Severity {
    /// By PostgreSQL's word for it, as a message or the setting has it.
    fn from_word(word: &str) -> Self {
        match word.to_ascii_lowercase().as_str() {
            "debug5" => Self::Debug(0),
            "debug4" => Self::Debug(1),
            "debug3" => Self::Debug(2),
            "debug2" => Self::Debug(3),
            "debug1" | "debug" => Self::Debug1,
            "log" => Self::Log,
            "warning" => Self::Warning,
            "error" | "fatal" | "panic" | "info" => Self::Error,
            _ => Self::Notice,
        }
    }
}

/// The time limits that the gateway keeps itself, where a shard sees a part of the time only.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Timeouts {
    /// statement_timeout
    pub(crate) statement: Option<Duration>,
    /// idle_in_transaction_session_timeout
    pub(crate) idle_in_transaction: Option<Duration>,
    /// idle_session_timeout
    pub(crate) idle: Option<Duration>,
}

impl Settings {
    /// The settings of a start-up message.
    pub(crate) fn from_startup(startup: Vec<(String, String)>) -> Self {
        let mut settings = Self {
            startup,
            ..Self::default()
        };
        settings.reset_all();
        settings
    }

    /// 0 when nothing differs from the role's own settings.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    fn refingerprint(&mut self) {
        self.fingerprint = match self.list.is_empty() {
            true => 0,
            false => ahash::RandomState::with_seeds(1, 2, 3, 4).hash_one(&self.list) | 1,
        };
    }

    /// Notes a SET that a shard has accepted.
    pub(crate) fn set(&mut self, name: &str, sql: &str) {
        let name = name.to_ascii_lowercase();
        self.list.retain(|(n, _)| *n != name);
        self.forget_role(&name);
        // A new role or session user resets nothing else, but what follows runs as it: keep the order.
        self.list.push((name, sql.into()));
        self.refingerprint();
    }

    /// Another session user, or the first one again, has no role set, as in PostgreSQL.
    fn forget_role(&mut self, name: &str) {
        if name == "session_authorization" {
            self.list.retain(|(n, _)| n != "role");
        }
    }

    /// Notes a RESET of one setting.
    pub(crate) fn reset(&mut self, name: &str) {
        let name = name.to_ascii_lowercase();
        self.list.retain(|(n, _)| *n != name);
        self.forget_role(&name);
        if let Some(sql) = self
            .startup
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(&name))
            .map(|(n, v)| set_statement(n, v))
        {
            self.list.push((name, sql.into()));
        }
        self.refingerprint();
    }

    /// Whether the session has set it.
    fn has(&self, name: &str) -> bool {
        self.list.iter().any(|(n, _)| n.eq_ignore_ascii_case(name))
    }

    /// It is as if it had never been set.
    fn lose(&mut self, name: &str) {
        self.startup.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
        self.reset(name);
    }

    /// What the application calls itself: the last constant of the SET.
    pub(crate) fn application_name(&self) -> String {
        let set = self.list.iter().find(|(name, _)| name == "application_name");
        let name = set.and_then(|(_, sql)| {
            let tokens = pgherd_sql::lexer::tokenize(sql).ok()?;
            let last = tokens.last().filter(|_| tokens.len() > 2)?;
            last.string(sql).or_else(|| last.identifier(sql))
        });
        pgherd_sql::lexer::cut_name(name.filter(|name| name != "default").unwrap_or_default())
    }

    /// What the start-up message gives for a setting.
    pub(crate) fn startup_value(&self, name: &str) -> Option<&str> {
        let mut given = self.startup.iter().rev();
        let last = given.find(|(n, _)| n.eq_ignore_ascii_case(name));
        last.map(|(_, value)| value.as_str())
    }

    /// Notes a RESET ALL.
    pub(crate) fn reset_all(&mut self) {
        // RESET ALL leaves role and session authorization as they are.
        self.list.retain(|(n, _)| n == "role" || n == "session_authorization");
        let startup: Vec<_> = self
            .startup
            .iter()
            .map(|(n, v)| (n.to_ascii_lowercase(), Arc::from(set_statement(n, v))))
            .collect();
        self.list.extend(startup);
        self.refingerprint();
    }

    /// Forgets all but the start-up's (DISCARD ALL).
    pub(crate) fn discard(&mut self) {
        self.list.clear();
        self.reset_all();
    }

    /// What makes a backend with any earlier settings equal to this session; None for the role's own.
    pub(crate) fn for_backends(&self) -> Option<Arc<SessionSettings>> {
        if self.fingerprint == 0 {
            return None;
        }
        let mut sync_sql = String::from(RESET_SQL);
        for (_, statement) in &self.list {
            sync_sql.push_str("; ");
            sync_sql.push_str(statement);
        }
        Some(Arc::new(SessionSettings {
            fingerprint: self.fingerprint,
            sync_sql,
        }))
    }

    /// The SETs alone, for a fresh connection.
    pub(crate) fn set_sql(&self) -> String {
        self.list.iter().map(|(_, s)| format!("{s};")).collect()
    }

    /// Takes over what the home shard says of the settings that routing depends on.
    fn take_effective(&mut self, role: &str, values: [Option<&str>; 3]) {
        let [path, distribution, bounds] = values;
        let path: Vec<Arc<str>> = split_identifiers(path.unwrap_or_default())
            .into_iter()
            .map(|s| if s == "$user" { Arc::from(role) } else { Arc::from(s) })
            .collect();
        self.search_path_id = ahash::RandomState::with_seeds(5, 6, 7, 8).hash_one(&path);
        self.search_path = path.into();
        self.default_distribution = distribution.filter(|v| !v.is_empty()).unwrap_or("local").to_owned();
        self.initial_bounds = bounds.unwrap_or_default().to_owned();
        // A setting that another session made known on the backend is there, but empty.
        self.own = [distribution, bounds].map(|value| value.is_some_and(|v| !v.is_empty()));
    }

    /// pgherd's own settings, where neither the role, the database nor the start-up message gives them: PostgreSQL knows
    /// no default for a setting that it does not know, so the session starts with the gateway's.
    pub(crate) fn add_defaults(&mut self, configured: [(&str, Option<&str>); 2]) {
        for ((name, value), given) in configured.into_iter().zip(self.own) {
            if given {
                continue;
            }
            let [distribution, bounds] = [&mut self.default_distribution, &mut self.initial_bounds];
            let effective = if name == "pgherd.initial_bounds" {
                bounds
            } else {
                distribution
            };
            if let Some(value) = value {
                value.clone_into(effective);
            }
            self.startup.push((name.to_owned(), effective.clone()));
        }
        self.reset_all();
    }

    /// What makes a setting on a backend of this session's what RESET makes it for a connection: the start-up's value.
    /// None for all settings.
    pub(crate) fn startup_sql(&self, name: Option<&str>) -> String {
        let wanted = |n: &str| name.is_none_or(|name| n.eq_ignore_ascii_case(name));
        let of = self.startup.iter().filter(|(n, _)| wanted(n));
        of.map(|(n, v)| format!("; {}", set_statement(n, v))).collect()
    }
}

/// `SET "name" TO 'value'`; a list-valued setting's value is one that quoting would make a single element.
pub(crate) fn set_statement(name: &str, value: &str) -> String {
    let list = [
        "search_path",
        "datestyle",
        "temp_tablespaces",
        "session_preload_libraries",
        "local_preload_libraries",
    ];
    let quoted_name = name.split('.').map(quote_identifier).collect::<Vec<_>>().join(".");
    if list.contains(&name.to_ascii_lowercase().as_str()) {
        let elements: Vec<_> = split_identifiers(value).iter().map(|e| quote_literal(e)).collect();
        return format!(
            "SET {quoted_name} TO {}",
            if elements.is_empty() {
                "''".into()
            } else {
                elements.join(", ")
            }
        );
    }
    format!("SET {quoted_name} TO {}", quote_literal(value))
}

/// PostgreSQL's SplitIdentifierString: commas, double quotes, unquoted parts folded to lower case.
pub(crate) fn split_identifiers(list: &str) -> Vec<String> {
    let (mut parts, mut current, mut quoted, mut was_quoted) = (Vec::new(), String::new(), false, false);
    let mut chars = list.chars().peekable();
    while let Some(c) = chars.next() {
        match (quoted, c) {
            (true, '"') if chars.peek() == Some(&'"') => {
                chars.next();
                current.push('"');
            }
            (_, '"') => {
                quoted = !quoted;
                was_quoted = true;
            }
            (false, ',') => {
                push_part(&mut parts, &mut current, was_quoted);
                was_quoted = false;
            }
            (false, c) if c.is_whitespace() => {}
            (false, c) => current.extend(c.to_lowercase()),
            (true, c) => current.push(c),
        }
    }
    push_part(&mut parts, &mut current, was_quoted);
    parts
}

fn push_part(parts: &mut Vec<String>, current: &mut String, was_quoted: bool) {
    let part = std::mem::take(current);
    if !part.is_empty() || was_quoted {
        parts.push(part);
    }
}

/// Parses a start-up packet's `options`: `-c name=value`, `-cname=value`, `--name=value`, with backslash escapes.
pub(crate) fn parse_options(options: &str) -> Vec<(String, String)> {
    let (mut words, mut word, mut escaped) = (Vec::new(), String::new(), false);
    for c in options.chars() {
        match c {
            _ if escaped => {
                word.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            c if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    let mut settings = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let setting = match word.as_str() {
            "-c" => words.next(),
            w if w.starts_with("--") => Some(w[2..].to_owned()),
            w if w.starts_with("-c") => Some(w[2..].to_owned()),
            _ => None,
        };
        if let Some((name, value)) = setting.as_deref().and_then(|s| s.split_once('=')) {
            settings.push((name.replace('-', "_"), value.to_owned()));
        }
    }
    settings
}

/// The setting that a backend refuses by its name.
fn refused_name(error: &ServerError) -> Option<&str> {
    let message = error
        .fields()
        .message
        .strip_prefix("invalid configuration parameter name \"")?;
    message
        .strip_suffix('"')
        .filter(|_| error.sqlstate() == SqlState::INVALID_NAME)
}

impl Session {
    /// Where a statement stands that may have to be run again: whether it is alone, and what of the reply is of others.
    pub(crate) fn mark(&self) -> (bool, (u64, usize)) {
        (self.block.is_none(), self.client.position())
    }

    /// Where a backend would not take a setting of the session's, since a library has been loaded there whose settings have that prefix:
    /// the session loses it, as PostgreSQL drops it when the library is loaded. The backend has not seen the statement. True where it
    /// can be run again, from the mark.
    pub(crate) fn runs_without_setting(&mut self, error: &ServerError, (alone, mark): (bool, (u64, usize))) -> bool {
        let Some(name) = refused_name(error).filter(|name| self.settings.has(name)) else {
            return false;
        };
        self.settings.lose(name);
        self.settings_changed();
        let (sendings, length) = mark;
        let again = alone && self.block.is_none() && self.client.position().0 == sendings;
        if again {
            self.client.out.truncate(length);
        }
        again
    }

    /// Refuses values of pgherd's own settings that PostgreSQL, which knows nothing of them, has let pass.
    pub(crate) fn check_own_settings(&self) -> Result<(), ServerError> {
        let settings = &self.settings;
        Distribution::from_settings(Some(&settings.default_distribution), Some(&settings.initial_bounds)).map(|_| ())
    }

    /// Puts a notice or warning of the gateway's own, unless the client wants none of its kind. Shards hold theirs back themselves.
    pub(crate) fn put_notice(&mut self, notice: &ServerError) {
        if Severity::from_word(&notice.fields().severity) >= self.settings.least_severity {
            self.client.put_notice(notice);
        }
    }

    /// Asks the home shard what the settings that routing depends on are now.
    pub(crate) async fn refresh_effective_settings(&mut self) -> Result<(), ServerError> {
        const ASK: &str = "SELECT current_setting('search_path'), \
             current_setting('pgherd.default_distribution', true), current_setting('pgherd.initial_bounds', true), \
             current_setting('default_transaction_isolation'), \
             (SELECT string_agg((extract(epoch FROM current_setting(n)::interval) * 1000)::bigint::text, ' ' ORDER BY i) \
              FROM unnest(ARRAY['statement_timeout', 'idle_in_transaction_session_timeout', 'idle_session_timeout']) \
              WITH ORDINALITY AS u (n, i)), current_setting('default_transaction_read_only'), \
             current_setting('pgherd.pool_mode', true), current_setting('client_min_messages'), \
             current_setting('standard_conforming_strings'), current_setting('escape_string_warning'), current_user";
        let results = self.ask_home(ASK).await?;
        let text = |i| results.first().and_then(|r| r.text(0, i));
        // `$user` is whoever the session is now: SET ROLE and SET SESSION AUTHORIZATION change where names are looked for.
        let role = text(10).unwrap_or(&self.who.role);
        self.settings.take_effective(role, [text(0), text(1), text(2)]);
        let isolation = text(3).and_then(Isolation::from_setting);
        self.settings.default_isolation = isolation.filter(|level| level.is_one_snapshot());
        self.settings.default_read_only = text(5) == Some("on");
        self.settings.keeps_backend = text(6) == Some("session");
        self.settings.escapes_in_strings = text(8) == Some("off");
        self.settings.warns_of_escapes = text(9) == Some("on");
        self.settings.least_severity = text(7).map(Severity::from_word).unwrap_or_default();
        let mut limits = text(4).unwrap_or_default().split(' ').map(|ms| {
            let ms = ms.parse().unwrap_or(0);
            (ms > 0).then(|| Duration::from_millis(ms))
        });
        let mut next = || limits.next().flatten();
        self.settings.timeouts = Timeouts {
            statement: next(),
            idle_in_transaction: next(),
            idle: next(),
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_split_as_postgresql_splits_them() {
        assert_eq!(split_identifiers("\"$user\", public"), ["$user", "public"]);
        assert_eq!(split_identifiers("A, \"B\"\"c\""), ["a", "B\"c"]);
        assert_eq!(split_identifiers("\"\""), [""]);
        assert!(split_identifiers("").is_empty());
    }

    #[test]
    fn options_of_a_startup_packet() {
        let options = parse_options(r"-c a.b=int\ 3,7 --work-mem=4MB -cx=1");
        let expect = [("a.b", "int 3,7"), ("work_mem", "4MB"), ("x", "1")];
        assert_eq!(options, expect.map(|(n, v)| (n.to_owned(), v.to_owned())));
    }

    #[test]
    fn equal_settings_have_equal_fingerprints() {
        let (mut a, mut b) = (Settings::default(), Settings::default());
        a.set("TimeZone", "SET timezone TO 'UTC'");
        b.set("timezone", "SET timezone TO 'UTC'");
        assert_eq!(a.fingerprint(), b.fingerprint());
        a.reset("timezone");
        assert_eq!(a.fingerprint(), 0);
    }
}
