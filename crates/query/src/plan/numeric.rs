//! PostgreSQL's numeric, exactly: read from and written to its binary format, added, divided and printed by PostgreSQL's
//! rules for scale (`select_div_scale` and `numeric_out` of numeric.c).

use bigdecimal::num_bigint::{BigInt, BigUint, Sign};
use bigdecimal::{BigDecimal, ToPrimitive, Zero};

/// A numeric. `Finite` keeps PostgreSQL's display scale as the decimal's own scale.
#[derive(Debug, Clone)]
pub(crate) enum Numeric {
    Finite(BigDecimal),
    NaN,
    Infinity,
    NegativeInfinity,
}

const POSITIVE: u16 = 0x0000;
const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xC000;
const INFINITY: u16 = 0xD000;
const NEGATIVE_INFINITY: u16 = 0xF000;
const NUMERIC_MIN_SIG_DIGITS: i64 = 16;
const NUMERIC_MAX_DISPLAY_SCALE: i64 = 1000;
/// decimal digits in one digit of PostgreSQL's base 10000
const DEC_DIGITS: i64 = 4;

impl Numeric {
    /// A whole number, scale 0.
    pub fn from_i64(value: i64) -> Self {
        Self::Finite(BigDecimal::from(value))
    }

    /// From the binary format: int16 digits, weight, sign, display scale, then digits of base 10000
    /// (`numeric_send`). None for what is no numeric.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let word = |i: usize| Some(u16::from_be_bytes(bytes.get(2 * i..2 * i + 2)?.try_into().ok()?));
        let (count, weight, sign, scale) = (word(0)? as usize, word(1)? as i16, word(2)?, word(3)?);
        let sign = match sign {
            POSITIVE => Sign::Plus,
            NEGATIVE => Sign::Minus,
            NAN => return Some(Self::NaN),
            INFINITY => return Some(Self::Infinity),
            NEGATIVE_INFINITY => return Some(Self::NegativeInfinity),
            _ => return None,
        };
        let mut integer = BigInt::zero();
        for i in 0..count {
            integer = integer * 10_000 + word(4 + i)?;
        }
        // The last digit stands for 10000^(weight - count + 1).
        let exponent = DEC_DIGITS * (i64::from(weight) - count as i64 + 1);
        let value = BigDecimal::new(BigInt::from_biguint(sign, integer.magnitude().clone()), -exponent);
        Some(Self::Finite(value.with_scale(i64::from(scale))))
    }

    /// The binary format.
    pub fn write(&self, out: &mut Vec<u8>) {
        let special = |sign: u16, out: &mut Vec<u8>| {
            for word in [0, 0, sign, 0] {
                out.extend_from_slice(&word.to_be_bytes());
            }
        };
        let value = match self {
            Self::NaN => return special(NAN, out),
            Self::Infinity => return special(INFINITY, out),
            Self::NegativeInfinity => return special(NEGATIVE_INFINITY, out),
            Self::Finite(value) => value,
        };
        let (integer, scale) = value.as_bigint_and_exponent();
        let (digits, weight) = base_10000(&integer, scale);
        let sign = if integer.sign() == Sign::Minus {
            NEGATIVE
        } else {
            POSITIVE
        };
        for word in [digits.len() as u16, weight as u16, sign, scale.max(0) as u16] {
            out.extend_from_slice(&word.to_be_bytes());
        }
        for digit in digits {
            out.extend_from_slice(&digit.to_be_bytes());
        }
    }

    /// As `numeric_out` prints it.
    pub fn to_text(&self) -> String {
        match self {
            Self::Finite(value) => value.to_plain_string(),
            Self::NaN => "NaN".into(),
            Self::Infinity => "Infinity".into(),
            Self::NegativeInfinity => "-Infinity".into(),
        }
    }

    /// The sum; its scale is the larger of both.
    pub fn add(self, other: &Self) -> Self {
        use Numeric::{Finite, Infinity, NaN, NegativeInfinity};
        match (self, other) {
            (Finite(a), Finite(b)) => Finite(a + b),
            (NaN, _) | (_, NaN) | (Infinity, NegativeInfinity) | (NegativeInfinity, Infinity) => NaN,
            (Infinity, _) | (_, Infinity) => Infinity,
            (NegativeInfinity, _) | (_, NegativeInfinity) => NegativeInfinity,
        }
    }

    /// Divided by a count > 0, rounded to the scale that `select_div_scale` chooses.
    pub fn divide_by_count(self, count: i64) -> Self {
        let Self::Finite(value) = self else {
            return self;
        };
        let divisor = BigDecimal::from(count);
        let scale = division_scale(&value, &divisor);
        let (integer, own_scale) = value.as_bigint_and_exponent();
        // Half away from zero, as PostgreSQL rounds.
        let shift = scale - own_scale;
        let ten = BigInt::from(10);
        let (mut numerator, mut denominator) = (integer, BigInt::from(count));
        if shift >= 0 {
            numerator *= ten.pow(shift as u32);
        } else {
            denominator *= ten.pow(-shift as u32);
        }
        let denominator = denominator.magnitude();
        let quotient: BigUint = (numerator.magnitude() * 2u32 + denominator) / (denominator * 2u32);
        let signed = BigInt::from_biguint(numerator.sign(), quotient);
        Self::Finite(BigDecimal::new(signed, scale))
    }

    /// Bytes that compare as numerics do, equal for equal values: NaN above Infinity above all.
    pub fn sort_key(&self) -> Vec<u8> {
        let value = match self {
            Self::NegativeInfinity => return vec![0],
            Self::Infinity => return vec![4],
            Self::NaN => return vec![5],
            Self::Finite(value) => value,
        };
        let (integer, scale) = value.as_bigint_and_exponent();
        let (digits, weight) = base_10000(&integer, scale);
        if digits.is_empty() {
            return vec![2];
        }
        let mut key = Vec::with_capacity(4 + 2 * digits.len());
        key.extend_from_slice(&((i32::from(weight) + 0x8000) as u16).to_be_bytes());
        // Digits are shifted by one, so that the end, 0, is below every digit.
        digits
            .iter()
            .for_each(|d| key.extend_from_slice(&(d + 1).to_be_bytes()));
        key.extend_from_slice(&[0, 0]);
        match integer.sign() {
            Sign::Minus => {
                key.iter_mut().for_each(|b| *b = !*b);
                key.insert(0, 1);
            }
            _ => key.insert(0, 3),
        }
        key
    }

    /// The value, where it is a whole number in the range of int8.
    pub fn to_i64(&self) -> Option<i64> {
        match self {
            Self::Finite(value) => value.to_i64(),
            _ => None,
        }
    }

    /// As PostgreSQL compares.
    #[cfg(test)]
    pub fn compare(&self, other: &Self) -> std::cmp::Ordering {
        self.sort_key().cmp(&other.sort_key())
    }
}

/// Digits of base 10000 without leading and trailing zeros, and the weight of the first.
fn base_10000(integer: &BigInt, scale: i64) -> (Vec<u16>, i16) {
    if integer.is_zero() {
        return (Vec::new(), 0);
    }
    // Fill up to a multiple of four decimals.
    let fill = scale.rem_euclid(DEC_DIGITS);
    let fill = if fill == 0 { 0 } else { DEC_DIGITS - fill };
    let scaled = integer.magnitude() * BigUint::from(10u32).pow(fill as u32);
    let mut words = Vec::new();
    let mut rest = scaled;
    let base = BigUint::from(10_000u32);
    while let Some(big) = (!rest.is_zero()).then(|| rest.to_u128()) {
        // Nearly always it fits a machine's number.
        let Some(mut small) = big else {
            words.push((&rest % &base).to_u16().unwrap_or(0));
            rest /= &base;
            continue;
        };
        while small > 0 {
            words.push((small % 10_000) as u16);
            small /= 10_000;
        }
        break;
    }
    words.reverse();
    let weight = words.len() as i64 - 1 - (scale + fill) / DEC_DIGITS;
    while words.last() == Some(&0) {
        words.pop();
    }
    (words, weight as i16)
}

/// `select_div_scale`: at least 16 significant digits, and no fewer decimals than either side has.
fn division_scale(dividend: &BigDecimal, divisor: &BigDecimal) -> i64 {
    let first = |value: &BigDecimal| {
        let (integer, scale) = value.as_bigint_and_exponent();
        let (digits, weight) = base_10000(&integer, scale);
        (i64::from(weight), digits.first().copied().unwrap_or(0), scale)
    };
    let (weight1, digit1, scale1) = first(dividend);
    let (weight2, digit2, scale2) = first(divisor);
    let mut weight = weight1 - weight2;
    if digit1 <= digit2 {
        weight -= 1;
    }
    let scale = NUMERIC_MIN_SIG_DIGITS - weight * DEC_DIGITS;
    scale.max(scale1).max(scale2).clamp(0, NUMERIC_MAX_DISPLAY_SCALE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cmp::Ordering;
    use std::str::FromStr;

    fn n(text: &str) -> Numeric {
        match text {
            "NaN" => Numeric::NaN,
            "Infinity" => Numeric::Infinity,
            "-Infinity" => Numeric::NegativeInfinity,
            _ => Numeric::Finite(BigDecimal::from_str(text).expect(text)),
        }
    }

    #[test]
    fn binary_and_back() {
        for text in [
            "0",
            "0.00",
            "1",
            "-1",
            "10000",
            "0.0001",
            "12345678.9",
            "-0.00000012",
            "1e20",
            "99990000",
            "NaN",
            "Infinity",
        ] {
            let mut bytes = Vec::new();
            let value = match n(text) {
                Numeric::Finite(v) if v.as_bigint_and_exponent().1 < 0 => Numeric::Finite(v.with_scale(0)),
                other => other,
            };
            value.write(&mut bytes);
            assert_eq!(Numeric::parse(&bytes).expect(text).to_text(), value.to_text());
        }
    }

    #[test]
    fn keys_order_as_values() {
        let ordered = [
            "-Infinity",
            "-20000.5",
            "-20000",
            "-1.5",
            "-0.001",
            "0",
            "0.0001",
            "0.5",
            "1",
            "9999",
            "10000",
            "10000.1",
            "Infinity",
            "NaN",
        ];
        for (i, a) in ordered.iter().enumerate() {
            for (j, b) in ordered.iter().enumerate() {
                assert_eq!(n(a).compare(&n(b)), i.cmp(&j), "{a} {b}");
            }
        }
        assert_eq!(n("1.0").compare(&n("1.000")), Ordering::Equal);
    }

    #[test]
    fn averages_have_postgresqls_scale() {
        // SELECT avg(x) on PostgreSQL 15.
        for (sum, count, average) in [
            ("10", 4, "2.5000000000000000"),
            ("1", 3, "0.33333333333333333333"),
            ("20000", 3, "6666.6666666666666667"),
            ("-2", 3, "-0.66666666666666666667"),
            ("100000", 3, "33333.333333333333"),
            ("0", 3, "0.00000000000000000000"),
            ("7.50", 2, "3.7500000000000000"),
        ] {
            assert_eq!(n(sum).divide_by_count(count).to_text(), average, "{sum} / {count}");
        }
    }
}
