//! The types that columns and expressions have, with values that are known to be awkward.

/// A type of the generated schemas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Type {
    Bool,
    Int2,
    Int4,
    Int8,
    Numeric,
    Float4,
    Float8,
    Money,
    Text,
    Varchar,
    Bpchar,
    Citext,
    Bytea,
    Date,
    Time,
    Timestamp,
    Timestamptz,
    Interval,
    Uuid,
    Json,
    Jsonb,
    Hstore,
    Inet,
    Bit,
    Varbit,
    Int4Range,
    NumRange,
    TsRange,
    Int4Multirange,
    Int4Array,
    TextArray,
    NumericArray,
    Mood,
    MoodArray,
    Small,
    Pair,
    Wide,
    PairArray,
    SmallArray,
    Spread,
    TstzRange,
    DateMultirange,
    DateArray,
    Timetz,
    Cidr,
    Macaddr,
    Tsvector,
    Point,
    Box,
    Circle,
    Name,
}

struct Traits {
    of: Type,
    /// as a cast writes it
    sql: &'static str,
    /// In a cast's input; the first ones are the likely ones.
    values: &'static [&'static str],
    /// It has a default btree operator class.
    ordered: bool,
    /// Values can be equal and yet print differently.
    ambiguous: bool,
    /// `min` and `max` are defined.
    extremes: bool,
}

const fn row(of: Type, sql: &'static str, flags: &'static str, values: &'static [&'static str]) -> Traits {
    let (bytes, mut i) = (flags.as_bytes(), 0);
    let (mut ordered, mut ambiguous, mut extremes) = (false, false, false);
    while i < bytes.len() {
        match bytes[i] {
            b'o' => ordered = true,
            b'a' => ambiguous = true,
            b'x' => extremes = true,
            _ => panic!("o, a or x"),
        }
        i += 1;
    }
    Traits {
        of,
        sql,
        values,
        ordered,
        ambiguous,
        extremes,
    }
}

/// In the order of [`Type`]. Sums of these floats are exact unless a function has made others of them.
const TRAITS: &[Traits] = &[
    row(Type::Bool, "bool", "o", &["t", "f"]),
    row(
        Type::Int2,
        "int2",
        "ox",
        &["1", "2", "3", "4", "5", "7", "0", "-1", "32767", "-32768"],
    ),
    row(
        Type::Int4,
        "int4",
        "ox",
        &[
            "1",
            "2",
            "3",
            "4",
            "5",
            "6",
            "8",
            "0",
            "-1",
            "42",
            "2147483647",
            "-2147483648",
        ],
    ),
    row(
        Type::Int8,
        "int8",
        "ox",
        &[
            "1",
            "2",
            "3",
            "4",
            "6",
            "7",
            "9",
            "0",
            "-1",
            "4294967296",
            "9223372036854775807",
            "-9223372036854775808",
        ],
    ),
    row(
        Type::Numeric,
        "numeric",
        "oax",
        &[
            "1",
            "2",
            "3",
            "1.5",
            "-0.25",
            "0",
            "7.10",
            "1000000000000000000000.5",
            "-1e-10",
            "NaN",
            "Infinity",
            "-Infinity",
            "12345678901234567890123456789.123456789",
        ],
    ),
    row(
        Type::Float4,
        "float4",
        "oax",
        &[
            "1",
            "0.5",
            "-2.25",
            "0",
            "3",
            "-0",
            "NaN",
            "Infinity",
            "-Infinity",
            "1e10",
        ],
    ),
    row(
        Type::Float8,
        "float8",
        "oax",
        &[
            "1",
            "0.5",
            "-2.25",
            "0",
            "3",
            "6.5",
            "-0",
            "NaN",
            "Infinity",
            "-Infinity",
            "1e15",
            "0.1",
        ],
    ),
    row(
        Type::Money,
        "money",
        "ox",
        &["1", "2.50", "0", "-3.07", "1000.99", "123456789.01"],
    ),
    row(
        Type::Text,
        "text",
        "ox",
        &[
            "a",
            "b",
            "abc",
            "",
            "h",
            "q",
            "Zebra",
            "it's",
            "ü",
            "日本",
            "a b",
            "%_\\",
            "\"quoted\"",
            "null",
            "aaaaaaaaaaaaaaaaaaaaaaaa",
            "x\ty",
            "🐘",
            "1",
        ],
    ),
    row(
        Type::Varchar,
        "varchar(20)",
        "ox",
        &["a", "b", "c", "", "hello", "m", "r", "O'Brien", "ß", "A", "z z "],
    ),
    row(Type::Bpchar, "char(4)", "ox", &["a", "b", "abcd", "", "é", "A", "h  "]),
    row(
        Type::Citext,
        "citext",
        "oax",
        &["a", "A", "b", "Mixed", "mixed", "", "Ü"],
    ),
    row(
        Type::Bytea,
        "bytea",
        "o",
        &["\\x", "\\x00", "\\x61", "\\xff00", "\\x6162", "\\xdeadbeef"],
    ),
    row(
        Type::Date,
        "date",
        "ox",
        &[
            "2024-01-01",
            "2024-02-29",
            "2024-03-15",
            "2024-07-01",
            "2023-12-31",
            "1999-12-31",
            "2000-01-01",
            "infinity",
            "-infinity",
            "0044-03-15 BC",
            "9999-12-31",
        ],
    ),
    row(
        Type::Time,
        "time",
        "ox",
        &["00:00", "12:30:15.5", "23:59:59.999999", "24:00", "06:00"],
    ),
    row(
        Type::Timestamp,
        "timestamp",
        "ox",
        &[
            "2024-01-01 00:00",
            "2024-02-29 12:30:15.5",
            "2024-07-01 23:59:59.999999",
            "2023-12-31 06:00",
            "1970-01-01",
            "infinity",
            "-infinity",
            "0001-01-01 BC",
        ],
    ),
    row(
        Type::Timestamptz,
        "timestamptz",
        "ox",
        &[
            "2024-01-01 00:00+00",
            "2024-03-31 01:30:00+00",
            "2024-07-01 12:00:00.000001+02",
            "2024-11-03 05:30+00",
            "2023-12-31 18:30-06",
            "infinity",
            "-infinity",
            "1900-01-01 00:00+00",
        ],
    ),
    row(
        Type::Interval,
        "interval",
        "oax",
        &[
            "1 day",
            "1 mon",
            "-3 hours",
            "0",
            "1 year 2 mons 3 days 04:05:06.789",
            "100 days",
            "00:00:00.000001",
        ],
    ),
    row(
        Type::Uuid,
        "uuid",
        "o",
        &[
            "00000000-0000-0000-0000-000000000000",
            "55555555-5555-5555-5555-555555555555",
            "11111111-2222-3333-4444-555555555555",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
            "aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa",
            "c0ffee00-0000-4000-8000-000000000001",
        ],
    ),
    row(
        Type::Json,
        "json",
        "",
        &[
            "{\"a\": 1}",
            "[1, 2, null]",
            "{\"a\": {\"b\": [true, \"x\"]}, \"a\": 2}",
            "\"text\"",
            "1.50",
            "null",
        ],
    ),
    row(
        Type::Jsonb,
        "jsonb",
        "oa",
        &[
            "{\"a\": 1}",
            "[1, 2, null]",
            "{\"a\": {\"b\": [true, \"x\"]}}",
            "\"text\"",
            "1.50",
            "null",
            "{}",
            "[]",
            "{\"a\": 1.0}",
        ],
    ),
    row(
        Type::Hstore,
        "hstore",
        "o",
        &["a=>1", "a=>1, b=>NULL", "", "\"x y\"=>\"z\"", "b=>2"],
    ),
    row(
        Type::Inet,
        "inet",
        "ox",
        &["10.0.0.1", "10.0.0.0/8", "192.168.1.5/24", "::1", "2001:db8::/32"],
    ),
    row(Type::Bit, "bit(4)", "o", &["0000", "1010", "1111", "0001"]),
    row(Type::Varbit, "varbit", "o", &["", "1", "10", "0101101"]),
    row(
        Type::Int4Range,
        "int4range",
        "o",
        &["[1,5)", "[3,8]", "empty", "(,4]", "[5,)", "(,)"],
    ),
    row(
        Type::NumRange,
        "numrange",
        "oa",
        &["[1,5)", "[2.5,8.25]", "empty", "(,4]", "[-0.5,)"],
    ),
    row(
        Type::TsRange,
        "tsrange",
        "o",
        &[
            "[2024-01-01,2024-02-01)",
            "empty",
            "[2024-01-15 12:00,infinity]",
            "(,2024-06-01)",
        ],
    ),
    row(
        Type::Int4Multirange,
        "int4multirange",
        "o",
        &["{}", "{[1,3)}", "{[1,3),[5,8)}", "{(,2),[9,)}"],
    ),
    row(
        Type::Int4Array,
        "int4[]",
        "ox",
        &["{1,2,3}", "{}", "{NULL,1}", "{{1,2},{3,4}}", "{5}", "[0:1]={7,8}"],
    ),
    row(
        Type::TextArray,
        "text[]",
        "ox",
        &["{a,b}", "{}", "{NULL,\"it's\",\"\"}", "{\"a,b\",\"{x}\"}", "{ü}"],
    ),
    row(
        Type::NumericArray,
        "numeric[]",
        "oax",
        &["{1.5,2}", "{}", "{NaN,NULL}", "{0.10}"],
    ),
    row(Type::Mood, "mood", "ox", &["sad", "ok", "happy", "it's fine"]),
    row(
        Type::MoodArray,
        "mood[]",
        "ox",
        &["{sad,happy}", "{}", "{NULL}", "{ok}"],
    ),
    row(Type::Small, "small", "o", &["1", "2", "3", "99", "0"]),
    row(Type::Pair, "pair", "o", &["(1,a)", "(2,)", "(,b)", "(1,\"x, y\")"]),
    row(
        Type::Wide,
        "wide",
        "oa",
        &[
            "(ok,\"{1.50,NULL}\",\"2024-07-01 12:00+02\")",
            "(,,)",
            "(sad,{},infinity)",
        ],
    ),
    row(
        Type::PairArray,
        "pair[]",
        "o",
        &["{\"(1,a)\",NULL}", "{}", "{\"(2,)\"}"],
    ),
    row(Type::SmallArray, "small[]", "o", &["{1,2}", "{}", "{99,NULL}"]),
    row(Type::Spread, "spread", "oa", &["[1,2.5)", "empty", "(,0]", "[-0.5,)"]),
    row(
        Type::TstzRange,
        "tstzrange",
        "o",
        &[
            "[2024-01-01 00:00+00,2024-07-01 00:00+00)",
            "empty",
            "(,2024-03-31 01:30+00]",
        ],
    ),
    row(
        Type::DateMultirange,
        "datemultirange",
        "o",
        &["{}", "{[2024-01-01,2024-02-01)}", "{(,1999-12-31),[2024-07-01,)}"],
    ),
    row(
        Type::DateArray,
        "date[]",
        "ox",
        &["{2024-01-01}", "{}", "{infinity,NULL}"],
    ),
    row(
        Type::Timetz,
        "timetz",
        "ox",
        &["12:30+00", "12:30+02", "23:59:59.5-06", "00:00+00"],
    ),
    row(Type::Cidr, "cidr", "o", &["10.0.0.0/8", "192.168.1.0/24", "::/0"]),
    row(
        Type::Macaddr,
        "macaddr",
        "o",
        &["08:00:2b:01:02:03", "00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff"],
    ),
    row(
        Type::Tsvector,
        "tsvector",
        "o",
        &["'cat':3 'fat':2", "", "'a':1A 'b':2", "'it''s'"],
    ),
    row(Type::Point, "point", "", &["(1,2)", "(0,-0.5)", "(1e10,3)"]),
    row(Type::Box, "box", "", &["(1,2),(0,0)", "(3,3),(3,3)"]),
    row(Type::Circle, "circle", "", &["<(0,0),1>", "<(1,2),0>"]),
    row(Type::Name, "name", "o", &["a", "pg_class", "", "Ü"]),
];

impl Type {
    fn traits(self) -> &'static Traits {
        &TRAITS[self as usize]
    }

    /// All types, the common ones first.
    pub(super) fn every() -> impl Iterator<Item = Type> {
        TRAITS.iter().map(|traits| traits.of)
    }

    /// As SQL names it.
    pub(super) fn sql(self) -> &'static str {
        self.traits().sql
    }

    /// Values as a cast from text takes them.
    pub(super) fn values(self) -> &'static [&'static str] {
        self.traits().values
    }

    /// Whether it can be compared, grouped and sorted by.
    pub(super) fn is_ordered(self) -> bool {
        self.traits().ordered
    }

    /// Whether values can be equal and print differently, so that PostgreSQL itself is free to show either.
    pub(super) fn is_ambiguous(self) -> bool {
        self.traits().ambiguous
    }

    /// Whether `min` and `max` take it.
    pub(super) fn has_extremes(self) -> bool {
        self.traits().extremes
    }

    /// Whether a constant without quotes is of this type.
    pub(super) fn is_plain_number(self) -> bool {
        matches!(self, Type::Int4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_in_the_order_of_the_types() {
        for (position, of) in Type::every().enumerate() {
            assert_eq!(of as usize, position, "{of:?}");
        }
    }
}
