//! Key values from PostgreSQL's text and binary formats, and back to text.
//!
//! `None` means «not understood»: the caller then asks all ranges, or lets a shard evaluate the text.
//! Text forms that depend on settings (DateStyle, TimeZone) are understood in ISO form only, and a
//! timestamptz only with an explicit offset.

use super::{KeyType, KeyValue, Numeric};
use bigdecimal::BigDecimal;
use bigdecimal::num_bigint::{BigInt, Sign};
use std::str::FromStr;

/// Days from 1970-01-01 to 2000-01-01.
const EPOCH_DAYS: i64 = 10_957;
const DAY_US: i64 = 86_400_000_000;
/// 4714-11-24 BC, the first day of PostgreSQL's dates and timestamps, in days since 2000-01-01.
const FIRST_DAY: i64 = -2_451_545;
/// The day after the last date, 5874897-12-31.
const DATE_END: i64 = 2_145_031_949;
/// The day after the last timestamp's, 294276-12-31.
const TIMESTAMP_END_DAY: i64 = 106_751_983;

impl KeyType {
    /// From a type's OID in pg_type.
    pub fn from_oid(oid: u32) -> Option<Self> {
        Some(match oid {
            20 => Self::BigInt,
            21 => Self::SmallInt,
            23 => Self::Int,
            25 => Self::Text,
            1043 => Self::Varchar,
            1082 => Self::Date,
            1114 => Self::Timestamp,
            1184 => Self::TimestampTz,
            1700 => Self::Numeric,
            2950 => Self::Uuid,
            _ => return None,
        })
    }

    /// The type's OID in pg_type.
    pub fn oid(self) -> u32 {
        match self {
            Self::BigInt => 20,
            Self::SmallInt => 21,
            Self::Int => 23,
            Self::Text => 25,
            Self::Varchar => 1043,
            Self::Date => 1082,
            Self::Timestamp => 1114,
            Self::TimestampTz => 1184,
            Self::Numeric => 1700,
            Self::Uuid => 2950,
        }
    }

    /// Whether values of both types compare as one [`KeyValue`] kind.
    pub fn comparable(self, other: Self) -> bool {
        use KeyType::*;
        let kind = |t| match t {
            SmallInt | Int | BigInt => 0,
            Text | Varchar => 1,
            Uuid => 2,
            Date => 3,
            Timestamp => 4,
            TimestampTz => 5,
            Numeric => 6,
        };
        kind(self) == kind(other)
    }

    /// A value from PostgreSQL's text format.
    pub fn parse_text(self, text: &str) -> Option<KeyValue> {
        let trimmed = text.trim_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
        match self {
            Self::SmallInt => trimmed.parse::<i16>().ok().map(|v| KeyValue::Int(v.into())),
            Self::Int => trimmed.parse::<i32>().ok().map(|v| KeyValue::Int(v.into())),
            Self::BigInt => trimmed.parse().ok().map(KeyValue::Int),
            Self::Text | Self::Varchar => Some(KeyValue::Text(text.to_owned())),
            Self::Uuid => uuid::Uuid::try_parse(trimmed)
                .ok()
                .map(|u| KeyValue::Uuid(u.into_bytes())),
            Self::Date => parse_date(trimmed),
            Self::Timestamp => parse_timestamp(trimmed, false),
            Self::TimestampTz => parse_timestamp(trimmed, true),
            Self::Numeric => parse_numeric(trimmed),
        }
    }

    /// A value from PostgreSQL's binary format.
    pub fn parse_binary(self, bytes: &[u8]) -> Option<KeyValue> {
        match self {
            Self::SmallInt => bytes
                .try_into()
                .ok()
                .map(|b| KeyValue::Int(i16::from_be_bytes(b).into())),
            Self::Int => bytes
                .try_into()
                .ok()
                .map(|b| KeyValue::Int(i32::from_be_bytes(b).into())),
            Self::BigInt => bytes.try_into().ok().map(|b| KeyValue::Int(i64::from_be_bytes(b))),
            Self::Text | Self::Varchar => std::str::from_utf8(bytes).ok().map(|t| KeyValue::Text(t.to_owned())),
            Self::Uuid => bytes.try_into().ok().map(KeyValue::Uuid),
            Self::Date => bytes.try_into().ok().map(|b| KeyValue::Date(i32::from_be_bytes(b))),
            Self::Timestamp | Self::TimestampTz => bytes
                .try_into()
                .ok()
                .map(|b| KeyValue::Timestamp(i64::from_be_bytes(b))),
            Self::Numeric => numeric_from_binary(bytes),
        }
    }
}

impl KeyValue {
    /// The value as PostgreSQL reads it back. Timestamps are written without a zone: as a timestamptz
    /// literal, append `+00`, which [`KeyValue::to_literal`] does.
    pub fn to_text(&self) -> String {
        match self {
            KeyValue::Int(v) => v.to_string(),
            KeyValue::Text(v) => v.clone(),
            KeyValue::Uuid(v) => uuid::Uuid::from_bytes(*v).to_string(),
            KeyValue::Date(i32::MAX) | KeyValue::Timestamp(i64::MAX) => "infinity".into(),
            KeyValue::Date(i32::MIN) | KeyValue::Timestamp(i64::MIN) => "-infinity".into(),
            KeyValue::Date(days) => date_text(i64::from(*days)),
            KeyValue::Timestamp(us) => {
                let (day, rest) = (us.div_euclid(DAY_US), us.rem_euclid(DAY_US));
                let (s, fraction) = (rest / 1_000_000, rest % 1_000_000);
                let date = date_text(day);
                let (date, era) = date.strip_suffix(" BC").map_or((date.as_str(), ""), |d| (d, " BC"));
                let time = format!("{:02}:{:02}:{:02}.{fraction:06}", s / 3600, s / 60 % 60, s % 60);
                format!("{date} {time}+00{era}")
            }
            KeyValue::Numeric(Numeric::NaN) => "NaN".into(),
            KeyValue::Numeric(Numeric::Infinity) => "Infinity".into(),
            KeyValue::Numeric(Numeric::NegativeInfinity) => "-Infinity".into(),
            KeyValue::Numeric(Numeric::Finite(v)) => v.to_plain_string(),
        }
    }

    /// The value as an SQL literal with its type.
    pub fn to_literal(&self, key_type: KeyType) -> String {
        let type_name = match key_type {
            KeyType::SmallInt => "smallint",
            KeyType::Int => "integer",
            KeyType::BigInt => "bigint",
            KeyType::Text => "text",
            KeyType::Varchar => "character varying",
            KeyType::Uuid => "uuid",
            KeyType::Date => "date",
            KeyType::Timestamp => "timestamp",
            KeyType::TimestampTz => "timestamptz",
            KeyType::Numeric => "numeric",
        };
        format!("{}::{type_name}", crate::table::quote_literal(&self.to_text()))
    }
}

fn parse_numeric(text: &str) -> Option<KeyValue> {
    let value = match text.to_ascii_lowercase().as_str() {
        "nan" => Numeric::NaN,
        "inf" | "infinity" | "+inf" | "+infinity" => Numeric::Infinity,
        "-inf" | "-infinity" => Numeric::NegativeInfinity,
        // BigDecimal takes underscores and other forms that PostgreSQL 15 does not.
        _ if text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b)) && text.len() < 1000 => {
            let exponent = text
                .split(['e', 'E'])
                .nth(1)
                .map_or(Some(0), |e| e.parse::<i64>().ok())?;
            if exponent.abs() > 1000 {
                return None;
            }
            Numeric::Finite(BigDecimal::from_str(text).ok()?.normalized())
        }
        _ => return None,
    };
    Some(KeyValue::Numeric(value))
}

/// numeric_recv: ndigits, weight, sign, dscale, then digits in base 10000.
fn numeric_from_binary(bytes: &[u8]) -> Option<KeyValue> {
    let word = |i: usize| Some(i16::from_be_bytes(bytes.get(2 * i..2 * i + 2)?.try_into().ok()?));
    let (digits, weight, sign) = (word(0)? as u16 as usize, i64::from(word(1)?), word(2)? as u16);
    let value = match sign {
        0xC000 => Numeric::NaN,
        0xD000 => Numeric::Infinity,
        0xF000 => Numeric::NegativeInfinity,
        0 | 0x4000 => {
            let mut sum = BigInt::from(0);
            for i in 0..digits {
                sum = sum * 10_000 + word(4 + i)?;
            }
            let sign = if sign == 0 { Sign::Plus } else { Sign::Minus };
            let sum = if sign == Sign::Minus { -sum } else { sum };
            // The last digit has the place value 10000^(weight - digits + 1).
            Numeric::Finite(BigDecimal::new(sum, -(weight - digits as i64 + 1) * 4).normalized())
        }
        _ => return None,
    };
    Some(KeyValue::Numeric(value))
}

fn parse_date(text: &str) -> Option<KeyValue> {
    match text {
        "infinity" => return Some(KeyValue::Date(i32::MAX)),
        "-infinity" => return Some(KeyValue::Date(i32::MIN)),
        _ => {}
    }
    let (text, before_christ) = era(text);
    let days = iso_days(text, before_christ)?;
    (FIRST_DAY..DATE_END).contains(&days).then_some(())?;
    i32::try_from(days).ok().map(KeyValue::Date)
}

/// The text without its era, and whether that is BC.
fn era(text: &str) -> (&str, bool) {
    text.strip_suffix(" BC").map_or((text, false), |t| (t, true))
}

/// `YYYY-MM-DD` to days since 2000-01-01; the year before 1 is 1 BC. Years have four digits or more.
fn iso_days(text: &str, before_christ: bool) -> Option<i64> {
    let mut parts = text.split('-');
    let (y, m, d) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some()
        || !(4..=7).contains(&y.len())
        || !(1..=2).contains(&m.len())
        || !(1..=2).contains(&d.len())
    {
        return None;
    }
    if ![y, m, d].iter().all(|p| p.bytes().all(|b| b.is_ascii_digit())) {
        return None;
    }
    let (y, m, d): (i64, i64, i64) = (y.parse().ok()?, m.parse().ok()?, d.parse().ok()?);
    if y == 0 {
        return None;
    }
    let y = if before_christ { 1 - y } else { y };
    let leap = y % 4 == 0 && (y % 100 != 0 || y % 400 == 0);
    let last = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    if !(1..=12).contains(&m) || d < 1 || d > last[m as usize - 1] {
        return None;
    }
    Some(days_from_civil(y, m, d) - EPOCH_DAYS)
}

/// Howard Hinnant's `days_from_civil`: days since 1970-01-01 in the proleptic Gregorian calendar.
fn days_from_civil(y: i64, m: i64, d: i64) -> i64 {
    let y = if m <= 2 { y - 1 } else { y };
    let era = y.div_euclid(400);
    let year_of_era = y.rem_euclid(400);
    let day_of_year = (153 * ((m + 9) % 12) + 2) / 5 + d - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The inverse, from days since 2000-01-01.
fn date_text(days: i64) -> String {
    let z = days + EPOCH_DAYS + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let mp = (5 * day_of_year + 2) / 153;
    let (d, m) = (
        day_of_year - (153 * mp + 2) / 5 + 1,
        if mp < 10 { mp + 3 } else { mp - 9 },
    );
    let y = year_of_era + era * 400 + i64::from(m <= 2);
    if y > 0 {
        format!("{y:04}-{m:02}-{d:02}")
    } else {
        format!("{:04}-{m:02}-{d:02} BC", 1 - y)
    }
}

/// `YYYY-MM-DD[ T]HH:MM[:SS[.ffffff]][±HH[[:]MM[[:]SS]]|Z][ BC]`, or a bare date.
fn parse_timestamp(text: &str, with_zone: bool) -> Option<KeyValue> {
    match text {
        "infinity" => return Some(KeyValue::Timestamp(i64::MAX)),
        "-infinity" => return Some(KeyValue::Timestamp(i64::MIN)),
        _ => {}
    }
    let (text, before_christ) = era(text);
    let Some((date, time)) = text.split_once([' ', 'T']) else {
        return if with_zone {
            None
        } else {
            timestamp(iso_days(text, before_christ)?, 0)
        };
    };
    let zone_at = time.find(['+', '-', 'Z']);
    let (clock, zone) = time.split_at(zone_at.unwrap_or(time.len()));
    // A zone in a plain timestamp is ignored by PostgreSQL; a timestamptz without one depends on TimeZone.
    let offset_us = match (with_zone, zone) {
        (true, "") => return None,
        (true, zone) => parse_offset(zone)?,
        // PostgreSQL reads and drops it; our own text form has this one.
        (false, "" | "+00") => 0,
        (false, _) => return None,
    };
    timestamp(iso_days(date, before_christ)?, parse_clock(clock)? - offset_us)
}

/// Within the limits of PostgreSQL's timestamps.
fn timestamp(days: i64, clock_us: i64) -> Option<KeyValue> {
    let us = days.checked_mul(DAY_US)?.checked_add(clock_us)?;
    let within = (FIRST_DAY * DAY_US..TIMESTAMP_END_DAY * DAY_US).contains(&us);
    within.then_some(KeyValue::Timestamp(us))
}

fn two_digits(text: &str) -> Option<i64> {
    (text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

fn parse_clock(text: &str) -> Option<i64> {
    let mut parts = text.split(':');
    let (hour, minute) = (two_digits(parts.next()?)?, two_digits(parts.next()?)?);
    let seconds = parts.next().unwrap_or("00");
    let (second, fraction) = seconds.split_once('.').unwrap_or((seconds, ""));
    let second = two_digits(second)?;
    if parts.next().is_some() || hour > 23 || minute > 59 || second > 59 || fraction.len() > 6 {
        return None;
    }
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let micros: i64 = format!("{fraction:0<6}").parse().ok()?;
    Some(((hour * 60 + minute) * 60 + second) * 1_000_000 + micros)
}

fn parse_offset(text: &str) -> Option<i64> {
    if text == "Z" {
        return Some(0);
    }
    let sign = if text.starts_with('-') { -1 } else { 1 };
    let digits = text[1..].replace(':', "");
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let (hours, minutes, seconds) = match digits.len() {
        2 => (two_digits(&digits)?, 0, 0),
        4 => (two_digits(&digits[..2])?, two_digits(&digits[2..])?, 0),
        6 => (
            two_digits(&digits[..2])?,
            two_digits(&digits[2..4])?,
            two_digits(&digits[4..])?,
        ),
        _ => return None,
    };
    let within = hours <= 15 && minutes <= 59 && seconds <= 59;
    within.then_some(sign * ((hours * 60 + minutes) * 60 + seconds) * 1_000_000)
}
