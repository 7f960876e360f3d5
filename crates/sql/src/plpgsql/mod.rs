//! PL/pgSQL, as far as a gateway runs it itself: the body of a DO that uses sharded tables or changes the schema.
//!
//! [`parse`] makes a [`Block`] of the body's tokens. Expressions and statements stay text, which the gateway runs as SQL with
//! [`bind`] having put values in place of variables. What is not understood is an error that says what it is, never a guess.

mod assigns;
mod bind;
mod parse;
mod statements;
#[cfg(test)]
mod tests;

pub use assigns::may_assign_new;
pub use bind::{Bound, Found, bind, parameters};
pub use parse::{NotUnderstood, changes_schema, parse};

/// An SQL expression, as written: `SELECT` in front makes a query of it.
pub type Expression = String;

/// `[<<label>>] [DECLARE …] BEGIN … [EXCEPTION …] END`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// its name, for EXIT and for `label.variable`
    pub label: Option<String>,
    /// in the order in which they are initialised
    pub variables: Vec<Declaration>,
    /// what it does
    pub statements: Vec<Statement>,
    /// WHEN … THEN …; none: errors pass through, and no savepoint is needed
    pub handlers: Vec<Handler>,
}

/// A variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declaration {
    /// its name, folded
    pub name: String,
    /// what it may hold
    pub kind: VariableKind,
    /// CONSTANT
    pub constant: bool,
    /// NOT NULL
    pub not_null: bool,
    /// DEFAULT, or `:=`
    pub default: Option<Expression>,
    /// the line of the body it is on, from 1
    pub line: u32,
}

/// What a variable may hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VariableKind {
    /// a value of this type, as written
    Of(String),
    /// `column%TYPE`: the table as written, and the column
    OfColumn(String, String),
    /// RECORD
    Record,
    /// `table%ROWTYPE`: the table as written
    Row(String),
}

/// `WHEN condition [OR condition …] THEN statements`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handler {
    /// what it catches
    pub conditions: Vec<Condition>,
    /// what it does then
    pub statements: Vec<Statement>,
}

/// An error's name, or its code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// `unique_violation`, `others`
    Name(String),
    /// `SQLSTATE '23505'`
    Code(String),
}

/// A statement with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// the line of the body it begins on, from 1
    pub line: u32,
    /// what it does
    pub action: Action,
}

/// A variable, or a field of a record.
pub type Target = Vec<String>;

/// Which elements of an array are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subscript {
    /// `[i]`
    At(Expression),
    /// `[i:j]`, each of which may be left out
    Slice(Option<Expression>, Option<Expression>),
}

/// Where rows go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Into {
    /// STRICT: exactly one row
    pub strict: bool,
    /// one record, or a variable for each column
    pub targets: Vec<Target>,
}

/// What a statement does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// a block within
    Block(Block),
    /// `target := expression`
    Assign(Target, Expression),
    /// `target[1][2:3] := expression`
    AssignPart(Target, Vec<Subscript>, Expression),
    /// IF, ELSIF: the first whose condition is true; then ELSE
    If(Vec<(Expression, Vec<Statement>)>, Vec<Statement>),
    /// CASE with an expression or without, the WHENs, and ELSE
    Case(
        Option<Expression>,
        Vec<(Vec<Expression>, Vec<Statement>)>,
        Option<Vec<Statement>>,
    ),
    /// LOOP, WHILE, FOR and FOREACH
    Loop {
        /// its name
        label: Option<String>,
        /// what it goes through
        over: Over,
        /// what is repeated
        body: Vec<Statement>,
    },
    /// `EXIT [label] [WHEN condition]`
    Exit(Option<String>, Option<Expression>),
    /// `CONTINUE [label] [WHEN condition]`
    Continue(Option<String>, Option<Expression>),
    /// RETURN without a value
    Return,
    /// RAISE
    Raise(Raise),
    /// `ASSERT condition [, message]`
    Assert(Expression, Option<Expression>),
    /// PERFORM: a query whose rows nobody wants, without its SELECT
    Perform(String),
    /// EXECUTE
    Execute {
        /// gives the text
        text: Expression,
        /// where the rows go
        into: Option<Into>,
        /// the values of its parameters
        using: Vec<Expression>,
    },
    /// an SQL statement
    Sql(String, Option<Into>),
    /// `GET DIAGNOSTICS target = item, …`; true for STACKED
    Diagnostics(bool, Vec<(Target, String)>),
    /// COMMIT or ROLLBACK, with AND CHAIN
    End {
        /// COMMIT
        commits: bool,
        /// AND CHAIN
        chain: bool,
    },
    /// NULL
    Nothing,
}

/// What a loop goes through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Over {
    /// until it is left
    Forever,
    /// WHILE
    While(Expression),
    /// `FOR variable IN [REVERSE] from..to [BY step]`
    Range {
        /// a variable of the loop's own
        variable: String,
        /// REVERSE
        reverse: bool,
        /// the first value
        from: Expression,
        /// the last one
        to: Expression,
        /// BY
        step: Option<Expression>,
    },
    /// `FOR targets IN query`
    Query(Vec<Target>, String),
    /// `FOR targets IN EXECUTE text USING …`
    Dynamic(Vec<Target>, Expression, Vec<Expression>),
    /// `FOREACH target IN ARRAY expression`
    Array(Target, Expression),
}

/// RAISE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raise {
    /// DEBUG, LOG, INFO, NOTICE, WARNING or EXCEPTION, in upper case
    pub level: String,
    /// what is said
    pub what: Raised,
    /// `USING option = expression`: the option in lower case
    pub options: Vec<(String, Expression)>,
}

/// What a RAISE says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Raised {
    /// RAISE alone: the error that is being handled, again
    Again,
    /// a text with `%` for each value
    Text(String, Vec<Expression>),
    /// an error's name or code
    Condition(Condition),
    /// only USING
    Options,
}
