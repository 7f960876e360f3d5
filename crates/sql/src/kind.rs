//! What a statement is, as far as a gateway must know before it decides anything. Made by
//! [`crate::classify`] from the tokens alone, so that it is there for grammar that sqlparser lacks.

use std::ops::Range;

/// An isolation level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Isolation {
    /// which PostgreSQL runs as READ COMMITTED
    ReadUncommitted,
    /// the default
    ReadCommitted,
    /// a snapshot for the transaction
    RepeatableRead,
    /// serializable
    Serializable,
}

/// A name as written, resolved no further: folded or unquoted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectName {
    /// the schema, where one is given
    pub schema: Option<String>,
    /// the object
    pub name: String,
    /// bytes within the statement
    pub span: Range<usize>,
}

/// A constant in a CALL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Literal {
    /// NULL
    Null,
    /// TRUE, FALSE
    Boolean(bool),
    /// a number as written, with its sign
    Number(String),
    /// a string's value; a type in front of it or a cast behind it is dropped
    Text(String),
    /// ARRAY[…]
    Array(Vec<Literal>),
    /// ROW(…) or (a, b)
    Row(Vec<Literal>),
    /// `$1`, from 1
    Parameter(u16),
    /// something else, as written
    Other(String),
}

/// What SET gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetValue {
    /// DEFAULT, and FROM CURRENT
    Default,
    /// the values; strings and numbers without quotes, words folded as PostgreSQL does
    Values(Vec<String>),
}

/// The table or query of a COPY.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopySource {
    /// COPY t
    Table(ObjectName),
    /// COPY (query): bytes within the statement, without the parentheses
    Query(Range<usize>),
}

/// The other end of a COPY.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyTarget {
    /// STDIN or STDOUT
    Client,
    /// a file on the server
    File,
    /// a program on the server
    Program,
}

/// What is to happen to a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DatabaseChange {
    /// CREATE DATABASE
    Create {
        /// the database
        name: String,
        /// TEMPLATE
        template: Option<String>,
    },
    /// ALTER DATABASE: its owner and options
    Alter {
        /// the database
        name: String,
    },
    /// ALTER DATABASE … RENAME TO or SET TABLESPACE: nobody may use it meanwhile
    Move {
        /// the database
        name: String,
        /// its new name
        to: Option<String>,
    },
    /// DROP DATABASE
    Drop {
        /// the database
        name: String,
        /// IF EXISTS
        if_exists: bool,
        /// WITH (FORCE)
        force: bool,
    },
}

/// A COPY's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyFormat {
    /// the default
    Text,
    /// CSV
    Csv,
    /// BINARY
    Binary,
}

/// A COPY, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyShape {
    /// what is copied
    pub source: CopySource,
    /// the columns named; None for all
    pub columns: Option<Vec<String>>,
    /// COPY … FROM
    pub from: bool,
    /// where from or to
    pub target: CopyTarget,
    /// all behind the target (`WITH (…)`, old-style options, WHERE), as bytes within the statement
    pub options: Range<usize>,
    /// FORMAT, from new or old style options
    pub format: CopyFormat,
    /// has a WHERE
    pub has_where: bool,
    /// the options by name, lower-case, with their value as written but unquoted; "" without one
    pub option_list: Vec<(String, String)>,
}

/// Which schema change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are PostgreSQL's commands")]
pub enum DdlKind {
    CreateTable,
    CreateTableAs,
    AlterTable,
    DropTable,
    Truncate,
    CreateIndex,
    AlterIndex,
    DropIndex,
    CreateView,
    CreateMaterializedView,
    RefreshMaterializedView,
    AlterView,
    DropView,
    CreateSequence,
    AlterSequence,
    DropSequence,
    CreateSchema,
    AlterSchema,
    DropSchema,
    CreateType,
    AlterType,
    DropType,
    CreateDomain,
    AlterDomain,
    DropDomain,
    CreateFunction,
    AlterFunction,
    DropFunction,
    CreateTrigger,
    AlterTrigger,
    DropTrigger,
    CreateRule,
    AlterRule,
    DropRule,
    CreatePolicy,
    AlterPolicy,
    DropPolicy,
    CreateExtension,
    AlterExtension,
    DropExtension,
    CreateRole,
    AlterRole,
    DropRole,
    AlterDatabase,
    Grant,
    Revoke,
    AlterDefaultPrivileges,
    ReassignOwned,
    DropOwned,
    Comment,
    SecurityLabel,
    CreateStatistics,
    AlterStatistics,
    DropStatistics,
    /// publications, subscriptions, casts, collations, foreign tables and the like
    OtherDdl,
}

/// A schema change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ddl {
    /// which
    pub kind: DdlKind,
    /// the relations (or types, functions …) that it is about, as written. For CREATE INDEX, TRIGGER, RULE and
    /// POLICY the table, not the index; for CREATE TABLE the table; for DROP all of the list
    pub relations: Vec<ObjectName>,
    /// the object's own name where it is not the relation: an index, trigger, rule, policy
    pub object: Option<ObjectName>,
    /// `PARTITION OF` this table, or ATTACH/DETACH PARTITION that one
    pub partition: Option<ObjectName>,
    /// CREATE TEMPORARY
    pub temporary: bool,
    /// CONCURRENTLY
    pub concurrently: bool,
}

/// What a statement is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// BEGIN, START TRANSACTION
    Begin {
        /// where given
        isolation: Option<Isolation>,
        /// READ ONLY or READ WRITE, where given
        read_only: Option<bool>,
        /// [NOT] DEFERRABLE, where given
        deferrable: Option<bool>,
    },
    /// COMMIT, END
    Commit {
        /// AND CHAIN
        chain: bool,
    },
    /// ROLLBACK, ABORT
    Rollback {
        /// AND CHAIN
        chain: bool,
    },
    /// SAVEPOINT
    Savepoint(String),
    /// ROLLBACK TO
    RollbackTo(String),
    /// RELEASE
    Release(String),
    /// PREPARE TRANSACTION 'name'; None for a name that is written in a way that is not read here
    PrepareTransaction(Option<String>),
    /// COMMIT PREPARED 'name'
    CommitPrepared(Option<String>),
    /// ROLLBACK PREPARED 'name'
    RollbackPrepared(Option<String>),
    /// SET TRANSACTION, and SET SESSION CHARACTERISTICS AS TRANSACTION
    SetTransaction {
        /// where given
        isolation: Option<Isolation>,
        /// where given
        read_only: Option<bool>,
        /// where given
        deferrable: Option<bool>,
        /// SESSION CHARACTERISTICS
        session: bool,
        /// SNAPSHOT 'id'
        snapshot: Option<String>,
    },
    /// SET CONSTRAINTS
    SetConstraints,
    /// SET name; TIME ZONE is `timezone`, NAMES `client_encoding`, SCHEMA `search_path`
    Set {
        /// lower-case
        name: String,
        /// SET LOCAL
        local: bool,
        /// what it is set to
        value: SetValue,
    },
    /// RESET name, None for ALL
    Reset(Option<String>),
    /// SHOW name, None for ALL
    Show {
        /// lower-case
        name: Option<String>,
    },
    /// DISCARD ALL, PLANS, SEQUENCES or TEMP, in upper case
    Discard(String),
    /// SELECT, VALUES, TABLE, and WITH before them
    Select {
        /// FOR UPDATE, SHARE … at any depth
        locking: bool,
        /// a WITH has INSERT, UPDATE, DELETE or MERGE
        writes: bool,
    },
    /// INSERT
    Insert,
    /// UPDATE
    Update,
    /// DELETE
    Delete,
    /// MERGE
    Merge,
    /// COPY
    Copy(CopyShape),
    /// CALL pgherd.…
    CallPgherd {
        /// without the schema
        procedure: String,
        /// with their names, where given
        arguments: Vec<(Option<String>, Literal)>,
    },
    /// any other CALL
    Call,
    /// DO
    Do,
    /// schema change
    Ddl(Ddl),
    /// VACUUM; the tables named, none for all
    Vacuum(Vec<ObjectName>),
    /// ANALYZE
    Analyze(Vec<ObjectName>),
    /// REINDEX TABLE, INDEX, SCHEMA, DATABASE, SYSTEM: the word in upper case and the name
    Reindex(String, Option<ObjectName>),
    /// CLUSTER
    Cluster(Option<ObjectName>),
    /// LOCK TABLE
    Lock(Vec<ObjectName>),
    /// EXPLAIN
    Explain {
        /// ANALYZE
        analyze: bool,
        /// the statement explained, bytes within the text
        inner: Range<usize>,
    },
    /// PREPARE name AS
    Prepare {
        /// the name
        name: String,
        /// the types given, as written
        types: Vec<String>,
        /// the statement, bytes within the text
        inner: Range<usize>,
    },
    /// EXECUTE name
    Execute(String),
    /// DEALLOCATE name, None for ALL
    Deallocate(Option<String>),
    /// DECLARE name CURSOR
    Declare {
        /// the cursor
        name: String,
        /// WITH HOLD
        hold: bool,
        /// the query, bytes within the text
        inner: Range<usize>,
    },
    /// FETCH and MOVE
    Fetch {
        /// the cursor
        name: String,
        /// MOVE
        moves: bool,
    },
    /// CLOSE name, None for ALL
    Close(Option<String>),
    /// LISTEN
    Listen(String),
    /// UNLISTEN name, None for *
    Unlisten(Option<String>),
    /// NOTIFY
    Notify(String),
    /// CREATE, ALTER or DROP DATABASE
    Database(DatabaseChange),
    /// CREATE, ALTER or DROP TABLESPACE, ALTER SYSTEM: not in a transaction block
    WholeServer,
    /// CHECKPOINT, LOAD
    Server,
    /// not known, or not even tokens: PostgreSQL on the home shard judges
    Other,
}
