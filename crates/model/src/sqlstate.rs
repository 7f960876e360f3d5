//! SQLSTATE codes that the gateway itself raises, as in PostgreSQL's Appendix A.

use std::fmt;

/// A five-character SQLSTATE.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState([u8; 5]);

macro_rules! states {
    ($($(#[$doc:meta])* $name:ident = $code:literal;)*) => {
        impl SqlState { $($(#[$doc])* pub const $name: SqlState = SqlState::from_bytes($code);)* }
    };
}

states! {
    /// successful_completion
    SUCCESS = b"00000";
    /// warning
    WARNING = b"01000";
    /// feature_not_supported
    FEATURE_NOT_SUPPORTED = b"0A000";
    /// connection_exception
    CONNECTION_EXCEPTION = b"08000";
    /// sqlclient_unable_to_establish_sqlconnection
    UNABLE_TO_CONNECT = b"08001";
    /// connection_failure
    CONNECTION_FAILURE = b"08006";
    /// transaction_resolution_unknown
    TRANSACTION_RESOLUTION_UNKNOWN = b"08007";
    /// protocol_violation
    PROTOCOL_VIOLATION = b"08P01";
    /// invalid_text_representation
    INVALID_TEXT_REPRESENTATION = b"22P02";
    /// bad_copy_file_format
    BAD_COPY_FILE_FORMAT = b"22P04";
    /// invalid_parameter_value
    INVALID_PARAMETER_VALUE = b"22023";
    /// not_null_violation
    NOT_NULL_VIOLATION = b"23502";
    /// unique_violation
    UNIQUE_VIOLATION = b"23505";
    /// foreign_key_violation
    FOREIGN_KEY_VIOLATION = b"23503";
    /// check_violation; also «no partition of relation found for row»
    CHECK_VIOLATION = b"23514";
    /// active_sql_transaction
    ACTIVE_TRANSACTION = b"25001";
    /// no_active_sql_transaction
    NO_ACTIVE_TRANSACTION = b"25P01";
    /// idle_in_transaction_session_timeout
    IDLE_IN_TRANSACTION_TIMEOUT = b"25P03";
    /// nonstandard_use_of_escape_character
    NONSTANDARD_USE_OF_ESCAPE_CHARACTER = b"22P06";
    /// in_failed_sql_transaction
    IN_FAILED_TRANSACTION = b"25P02";
    /// invalid_sql_statement_name
    INVALID_STATEMENT_NAME = b"26000";
    /// invalid_authorization_specification
    INVALID_AUTHORIZATION = b"28000";
    /// invalid_password
    INVALID_PASSWORD = b"28P01";
    /// invalid_cursor_name
    INVALID_CURSOR_NAME = b"34000";
    /// invalid_catalog_name
    INVALID_CATALOG_NAME = b"3D000";
    /// invalid_savepoint_specification
    INVALID_SAVEPOINT = b"3B001";
    /// serialization_failure
    SERIALIZATION_FAILURE = b"40001";
    /// deadlock_detected
    DEADLOCK_DETECTED = b"40P01";
    /// syntax_error
    SYNTAX_ERROR = b"42601";
    /// invalid_name
    INVALID_NAME = b"42602";
    /// insufficient_privilege
    INSUFFICIENT_PRIVILEGE = b"42501";
    /// undefined_column
    UNDEFINED_COLUMN = b"42703";
    /// undefined_function
    UNDEFINED_FUNCTION = b"42883";
    /// undefined_object
    UNDEFINED_OBJECT = b"42704";
    /// undefined_table
    UNDEFINED_TABLE = b"42P01";
    /// invalid_schema_name
    UNDEFINED_SCHEMA = b"3F000";
    /// duplicate_prepared_statement
    DUPLICATE_PREPARED_STATEMENT = b"42P05";
    /// invalid_object_definition
    INVALID_OBJECT_DEFINITION = b"42P17";
    /// invalid_table_definition
    INVALID_TABLE_DEFINITION = b"42P16";
    /// wrong_object_type
    WRONG_OBJECT_TYPE = b"42809";
    /// too_many_connections
    TOO_MANY_CONNECTIONS = b"53300";
    /// out_of_memory
    OUT_OF_MEMORY = b"53200";
    /// program_limit_exceeded
    PROGRAM_LIMIT_EXCEEDED = b"54000";
    /// object_not_in_prerequisite_state
    OBJECT_NOT_IN_PREREQUISITE_STATE = b"55000";
    /// object_in_use
    OBJECT_IN_USE = b"55006";
    /// lock_not_available
    LOCK_NOT_AVAILABLE = b"55P03";
    /// query_canceled
    QUERY_CANCELED = b"57014";
    /// admin_shutdown
    ADMIN_SHUTDOWN = b"57P01";
    /// idle_session_timeout
    IDLE_SESSION_TIMEOUT = b"57P05";
    /// cannot_connect_now
    CANNOT_CONNECT_NOW = b"57P03";
    /// internal_error: a bug of ours
    INTERNAL_ERROR = b"XX000";
}

impl SqlState {
    /// The code from its five bytes.
    pub const fn from_bytes(code: &[u8; 5]) -> Self {
        Self(*code)
    }

    /// The code from text; anything that is not five ASCII characters becomes XX000.
    pub fn from_code(code: &str) -> Self {
        match <[u8; 5]>::try_from(code.as_bytes()) {
            Ok(bytes) if code.is_ascii() => Self(bytes),
            _ => Self::INTERNAL_ERROR,
        }
    }

    /// The code as text.
    pub fn code(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("XX000")
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}
