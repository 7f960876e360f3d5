//! Medians and how far the rounds lie apart.

use serde::Serialize;

/// The middle, the smallest and the largest of some numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The median; between the two middle ones for an even count.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// `None` when there are no numbers.
    pub fn of(numbers: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = numbers.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = match sorted.len() {
            0 => return None,
            count if count % 2 == 1 => sorted[middle],
            _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
        };
        Some(Self {
            median,
            min: sorted[0],
            max: sorted[sorted.len() - 1],
        })
    }

    /// The median, and the smallest and largest in parentheses, with this many digits behind the point; a dash for none.
    pub fn show(spread: Option<Self>, digits: usize) -> String {
        spread.map_or("–".into(), |Self { median, min, max }| {
            format!("{median:.digits$} ({min:.digits$}–{max:.digits$})")
        })
    }

    /// The spread of the ratios of two sides, formed round by round; rounds that only one of them has do not count.
    pub fn of_ratios(side: &[(usize, f64)], reference: &[(usize, f64)]) -> Option<Self> {
        let same_round = |round: usize| reference.iter().find(|(other, _)| *other == round);
        Self::of(side.iter().filter_map(|(round, tps)| {
            let (_, reference) = same_round(*round)?;
            (*reference > 0.0).then(|| tps / reference)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(Spread::of([]), None);
        let odd = Spread::of([3.0, 1.0, 2.0]).expect("some");
        assert_eq!((odd.median, odd.min, odd.max), (2.0, 1.0, 3.0));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 10.0]).expect("some").median, 3.0);
    }

    #[test]
    fn ratios_are_formed_within_a_round() {
        // The machine became twice as fast in round 2; the ratio did not change.
        let side = [(1, 50.0), (2, 100.0), (3, 70.0)];
        let reference = [(1, 100.0), (2, 200.0)];
        let spread = Spread::of_ratios(&side, &reference).expect("two rounds");
        assert_eq!((spread.min, spread.median, spread.max), (0.5, 0.5, 0.5));
        assert_eq!(Spread::of_ratios(&side, &[(1, 0.0)]), None, "nothing to compare with");
    }
}
