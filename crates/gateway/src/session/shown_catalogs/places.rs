//! Where a statement names catalogs that are shown in other words, and what stands there instead.

use super::Facts;
use pgherd_sql::Sample;
use pgherd_sql::lexer::{Token, TokenKind};
use std::ops::Range;

/// Relations of `pg_catalog`, and what of the tables' facts each of them needs.
const RELATIONS: [(&str, Facts); 30] = [
    ("pg_attrdef", Facts::None),
    ("pg_class", Facts::Class),
    ("pg_constraint", Facts::None),
    ("pg_database", Facts::None),
    ("pg_event_trigger", Facts::None),
    ("pg_indexes", Facts::Names),
    ("pg_inherits", Facts::None),
    ("pg_namespace", Facts::None),
    ("pg_partitioned_table", Facts::Names),
    ("pg_proc", Facts::None),
    ("pg_publication_tables", Facts::None),
    ("pg_rewrite", Facts::None),
    ("pg_sequences", Facts::None),
    ("pg_stat_all_indexes", Facts::IndexActivity),
    ("pg_stat_all_tables", Facts::Activity),
    ("pg_stat_user_functions", Facts::None),
    ("pg_stat_user_indexes", Facts::IndexActivity),
    ("pg_stat_user_tables", Facts::Activity),
    ("pg_stat_xact_all_tables", Facts::None),
    ("pg_stat_xact_user_tables", Facts::None),
    ("pg_statio_all_indexes", Facts::IndexBlocks),
    ("pg_statio_all_sequences", Facts::None),
    ("pg_statio_all_tables", Facts::Blocks),
    ("pg_statio_user_indexes", Facts::IndexBlocks),
    ("pg_statio_user_sequences", Facts::None),
    ("pg_statio_user_tables", Facts::Blocks),
    ("pg_stats", Facts::Names),
    ("pg_tables", Facts::None),
    ("pg_type", Facts::None),
    ("pg_views", Facts::None),
];
/// Those that are tables, and no views.
const TABLES: [&str; 10] = [
    "pg_attrdef",
    "pg_class",
    "pg_constraint",
    "pg_event_trigger",
    "pg_inherits",
    "pg_namespace",
    "pg_partitioned_table",
    "pg_proc",
    "pg_rewrite",
    "pg_type",
];
/// Functions likewise.
const FUNCTIONS: [(&str, Facts); 7] = [
    ("pg_relation_size", Facts::Sizes),
    ("pg_table_size", Facts::Sizes),
    ("pg_indexes_size", Facts::Sizes),
    ("pg_total_relation_size", Facts::Sizes),
    ("pg_get_indexdef", Facts::Names),
    ("pg_get_partkeydef", Facts::Names),
    ("pg_partition_tree", Facts::Names),
];
/// Views of `information_schema` that list what is in schemas; `shown.sql` has a function for each.
const STANDARD_VIEWS: [&str; 27] = [
    "check_constraints",
    "column_column_usage",
    "column_domain_usage",
    "column_privileges",
    "column_udt_usage",
    "columns",
    "constraint_column_usage",
    "constraint_table_usage",
    "data_type_privileges",
    "element_types",
    "key_column_usage",
    "parameters",
    "referential_constraints",
    "role_column_grants",
    "role_routine_grants",
    "role_table_grants",
    "routine_privileges",
    "routines",
    "schemata",
    "sequences",
    "table_constraints",
    "table_privileges",
    "tables",
    "triggers",
    "view_column_usage",
    "view_table_usage",
    "views",
];
const STANDARD: &str = "information_schema";

/// Whether a statement may have to be run in other words.
pub(crate) fn reads_catalogs(lower: &str) -> bool {
    let named = || RELATIONS.iter().chain(&FUNCTIONS).any(|(name, _)| lower.contains(name));
    (lower.contains("pg_") && named()) || lower.contains(STANDARD)
}

/// Where a statement names one of these.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    name: &'static str,
    pub(super) facts: Facts,
    /// a relation's name (with schema); a function's with its parenthesis
    pub(super) span: Range<usize>,
    of: Of,
    /// a relation of whose rows a sample is taken
    pub(super) sampled: Sampled,
}

/// TABLESAMPLE, of which a function's rows have none.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sampled {
    No,
    /// as a condition
    As(Sample),
    /// in another way, or of a view, which PostgreSQL refuses
    Otherwise,
}

#[derive(Debug, PartialEq, Eq)]
enum Of {
    Function,
    /// `bare`: without an alias
    Relation {
        bare: bool,
        standard: bool,
    },
    /// the schema before the relation of a column, as SQLAlchemy writes them: a function's rows have its name alone
    Qualifier,
}

impl Place {
    /// `shown`: the facts as a constant; `listed`: the statement is one that lists what there is, so that pgherd's own schema is left
    /// out; `with_oid`: it asks for the relation's `tableoid`.
    pub(super) fn instead(&self, shown: &str, listed: bool, with_oid: bool) -> String {
        let name = self.name;
        let arguments = match self.facts {
            Facts::None => listed.to_string(),
            _ => format!("{shown}, {listed}"),
        };
        match self.of {
            Of::Function => format!("pgherd.{name}({shown}, "),
            Of::Qualifier => String::new(),
            Of::Relation { bare, standard: true } => {
                format!("pgherd.information_schema_{name}({arguments}){}", self.alias(bare))
            }
            Of::Relation { bare, .. } => {
                let function = format!("pgherd.{name}({arguments})");
                let rows = match with_oid {
                    true => format!(
                        "(SELECT 'pg_catalog.{name}'::pg_catalog.regclass::pg_catalog.oid AS tableoid, f.* FROM {function} f)"
                    ),
                    false => function,
                };
                match &self.sampled {
                    Sampled::As(sample) => format!("{}{}", sample.rows_sql(&rows), self.alias(bare)),
                    _ if with_oid => format!("{rows}{}", self.alias(bare)),
                    _ => rows,
                }
            }
        }
    }

    /// The bytes of TABLESAMPLE, which the words in the relation's place do.
    pub(super) fn left_out(&self) -> Option<Range<usize>> {
        match &self.sampled {
            Sampled::As(sample) => Some(sample.clause.clone()),
            _ => None,
        }
    }

    fn alias(&self, bare: bool) -> String {
        match bare {
            true => format!(" AS {}", self.name),
            false => String::new(),
        }
    }
}

/// All places, ascending.
pub(super) fn places(text: &str, tokens: &[Token]) -> Vec<Place> {
    const CLAUSES: [&str; 14] = [
        "select",
        "from",
        "join",
        "where",
        "group",
        "order",
        "having",
        "limit",
        "union",
        "except",
        "intersect",
        "window",
        "returning",
        "offset",
    ];
    let is = |i: usize, symbol: &str| tokens.get(i).is_some_and(|t| t.is(text, symbol));
    let mut found = Vec::new();
    // In which clause each open parenthesis stands, and the present one.
    let (mut around, mut clause) = (Vec::new(), "");
    for (i, token) in tokens.iter().enumerate() {
        if token.is(text, "(") {
            // `FROM (a JOIN b)`: still FROM, until a SELECT says otherwise.
            around.push(clause);
        } else if token.is(text, ")") {
            clause = around.pop().unwrap_or_default();
        } else if let Some(word) = CLAUSES.iter().find(|word| token.is_word(text, word)) {
            clause = word;
        }
        let Some(name) = token.identifier(text) else { continue };
        let has_schema = i > 1 && is(i - 1, ".");
        let standard = has_schema && tokens[i - 2].names(text, STANDARD);
        if i > 0 && is(i - 1, ".") && !standard && !(has_schema && tokens[i - 2].names(text, "pg_catalog")) {
            continue;
        }
        let first = if has_schema { i - 2 } else { i };
        let start = tokens[first].start as usize;
        let function = FUNCTIONS.iter().find(|(known, _)| *known == name);
        if let Some((name, facts)) = function.filter(|_| is(i + 1, "(") && !standard) {
            found.push(Place {
                name,
                facts: *facts,
                span: start..tokens[i + 1].end as usize,
                of: Of::Function,
                sampled: Sampled::No,
            });
        }
        let Some((name, facts)) = relation(&name, standard) else {
            continue;
        };
        if has_schema && is(i + 1, ".") {
            found.push(Place {
                name,
                facts: Facts::None,
                span: start..token.start as usize,
                of: Of::Qualifier,
                sampled: Sampled::No,
            });
            continue;
        }
        let begins = first > 0
            && (["from", "join", "lateral"]
                .iter()
                .any(|word| tokens[first - 1].is_word(text, word))
                || is(first - 1, ",")
                || is(first - 1, "("));
        let word_at = |at: usize, word: &str| tokens.get(at).is_some_and(|t| t.is_word(text, word));
        let is_target = first > 1 && word_at(first - 1, "from") && word_at(first - 2, "delete");
        // Of MERGE and DELETE; that of a join has a parenthesis.
        let is_used = first > 0 && word_at(first - 1, "using");
        let is_source = begins && matches!(clause, "from" | "join") && !is_target || is_used;
        if is_source && !is(i + 1, ".") && !is(i + 1, "(") {
            let bare = !tokens.get(i + 1).is_some_and(|t| is_alias(text, t));
            found.push(Place {
                name,
                facts,
                span: start..token.end as usize,
                of: Of::Relation { bare, standard },
                sampled: sampled(text, &tokens[i + 1..], name, standard),
            });
        }
    }
    found
}

fn relation(name: &str, standard: bool) -> Option<(&'static str, Facts)> {
    if standard {
        let view = STANDARD_VIEWS.iter().find(|view| **view == name)?;
        return Some((view, Facts::None));
    }
    RELATIONS.iter().find(|(known, _)| *known == name).copied()
}

/// The sample that these tokens, which stand behind a relation's name and an alias, if any, take of it.
fn sampled(text: &str, behind: &[Token], name: &str, standard: bool) -> Sampled {
    let is = |i: usize, word: &str| behind.get(i).is_some_and(|t| t.is_word(text, word));
    let alias = match behind.first() {
        _ if is(0, "as") => 2,
        Some(token) if is_alias(text, token) => 1,
        _ => 0,
    };
    if !is(alias, "tablesample") {
        return Sampled::No;
    }
    let sample = Sample::at(text, behind, alias).filter(|_| !standard && TABLES.contains(&name));
    sample.map_or(Sampled::Otherwise, Sampled::As)
}

/// Whether the token behind a relation's name begins an alias.
fn is_alias(text: &str, token: &Token) -> bool {
    const OTHERS: [&str; 24] = [
        "where",
        "join",
        "left",
        "right",
        "full",
        "inner",
        "cross",
        "natural",
        "on",
        "using",
        "group",
        "order",
        "having",
        "limit",
        "offset",
        "fetch",
        "for",
        "union",
        "except",
        "intersect",
        "window",
        "tablesample",
        "returning",
        "with",
    ];
    matches!(token.kind, TokenKind::Word | TokenKind::Quoted) && !OTHERS.iter().any(|word| token.is_word(text, word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<(String, bool)> {
        let tokens = pgherd_sql::lexer::tokenize(text).expect("tokens");
        let places = places(text, &tokens).into_iter();
        places
            .map(|place| {
                (
                    text[place.span].to_owned(),
                    matches!(place.of, Of::Relation { bare: true, .. }),
                )
            })
            .collect()
    }

    #[test]
    fn samples_are_seen_behind_any_alias() {
        let sampled = |text: &str| {
            let tokens = pgherd_sql::lexer::tokenize(text).expect("tokens");
            places(text, &tokens).iter().any(|place| place.sampled != Sampled::No)
        };
        assert!(sampled("SELECT 1 FROM pg_class TABLESAMPLE system (1)"));
        assert!(sampled("SELECT 1 FROM t, pg_class AS c tablesample bernoulli (1)"));
        assert!(sampled("SELECT 1 FROM pg_class c TABLESAMPLE system (1)"));
        assert!(!sampled("SELECT 1 FROM pg_class c, t TABLESAMPLE system (1)"));
    }

    fn place(text: &str, bare: bool) -> (String, bool) {
        (text.to_owned(), bare)
    }

    #[test]
    fn relations_are_found_where_rows_come_from() {
        assert_eq!(
            found(
                "SELECT c.oid, pg_class FROM pg_catalog.pg_class c JOIN pg_inherits ON inhparent = c.oid, pg_tables AS t"
            ),
            [
                place("pg_catalog.pg_class", false),
                place("pg_inherits", true),
                place("pg_tables", false)
            ]
        );
        assert_eq!(found("SELECT 'pg_class'::regclass, pg_class.x FROM t AS pg_class"), []);
        assert_eq!(found("SELECT 1 FROM mine.pg_class, x"), []);
        assert_eq!(
            found(
                "SELECT * FROM information_schema.tables JOIN information_schema.columns c USING (table_name), tables"
            ),
            [
                place("information_schema.tables", true),
                place("information_schema.columns", false)
            ]
        );
        assert_eq!(
            found("SELECT (SELECT 1 FROM (pg_class CROSS JOIN t)) FROM u"),
            [place("pg_class", true)]
        );
        assert_eq!(
            found("MERGE INTO t USING pg_class c ON true WHEN MATCHED THEN DELETE"),
            [place("pg_class", false)]
        );
        assert_eq!(
            found("DELETE FROM pg_type USING pg_catalog.pg_class WHERE EXISTS (SELECT FROM pg_proc)"),
            [place("pg_catalog.pg_class", true), place("pg_proc", true)]
        );
        assert_eq!(found("UPDATE pg_class SET relname = 'x' FROM t JOIN u USING (k)"), []);
        assert_eq!(
            found("SELECT 1 FROM pg_class WHERE pg_catalog.pg_class.oid = pg_catalog.pg_index.indrelid"),
            [place("pg_class", true), place("pg_catalog.", false)]
        );
    }

    #[test]
    fn functions_are_found_with_their_parenthesis() {
        assert_eq!(
            found("SELECT pg_catalog.pg_table_size(c.oid), mine.pg_table_size(1), pg_table_size FROM t"),
            [place("pg_catalog.pg_table_size(", false)]
        );
    }
}
