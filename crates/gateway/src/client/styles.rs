//! How a session reads constants of dates, times and intervals.

use std::sync::Arc;

/// The settings that decide how constants of dates, times and intervals are read, as the client was told of them.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Styles {
    date: String,
    time_zone: String,
    interval: String,
    number: u64,
}

impl Styles {
    /// The settings by their names.
    pub(crate) fn named(&self) -> [(&'static str, &str); 3] {
        [
            ("DateStyle", &self.date),
            ("TimeZone", &self.time_zone),
            ("IntervalStyle", &self.interval),
        ]
    }

    /// A number that other styles do not have.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Notes a setting; others than these are none of it. Who keeps the present ones keeps them as they are.
    pub(crate) fn set(this: &mut Arc<Self>, name: &str, value: &str) {
        let changes = |(own, known): &(&str, &str)| *own == name && *known != value;
        if !this.named().iter().any(changes) {
            return;
        }
        let styles = Arc::make_mut(this);
        match name {
            "DateStyle" => styles.date = value.to_owned(),
            "TimeZone" => styles.time_zone = value.to_owned(),
            _ => styles.interval = value.to_owned(),
        }
        styles.number = ahash::RandomState::with_seeds(9, 10, 11, 12).hash_one(styles.named());
    }
}
