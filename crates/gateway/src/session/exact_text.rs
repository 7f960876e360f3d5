//! Values that travel as text from one statement of the gateway's to the next: whether the session's settings let that text be
//! read as the same value.

use super::{Problem, Session};
use pgherd_model::ServerError;
use pgherd_query::{EXACT_TEXT, text_is_not_exact};

/// How the session's text of some types is read again.
pub(super) struct Text {
    /// with time zones that are abbreviated, or floats cut short
    pub(super) style_is_exact: bool,
    /// with an array's NULLs
    pub(super) nulls_are_exact: bool,
    /// SQL that sets what `EXACT_STYLE` has set back to what it is now
    pub(super) back: String,
}

/// A list of expressions that make text exact, for the rest of the transaction; each is evaluated before the row it stands in becomes text.
pub(super) const EXACT_STYLE: &str = "pg_catalog.set_config('DateStyle', 'ISO, MDY', true), \
     pg_catalog.set_config('IntervalStyle', 'postgres', true), pg_catalog.set_config('extra_float_digits', '3', true)";

impl Session {
    /// What holds for text of these types; None where the settings do not matter.
    pub(super) async fn text_of(&mut self, types: impl IntoIterator<Item = u32>) -> Result<Option<Text>, ServerError> {
        let asked: Vec<_> = types.into_iter().filter(|oid| !EXACT_TEXT.contains(oid)).collect();
        if asked.is_empty() {
            return Ok(None);
        }
        let numbers = |oids: &[u32]| oids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
        let (asked, exact) = (numbers(&asked), numbers(EXACT_TEXT));
        let back = ["DateStyle", "IntervalStyle", "extra_float_digits"]
            .map(|name| format!("quote_literal(current_setting('{name}'))"))
            .join(", ");
        let results = self
            .ask_home(&format!(
                "SELECT current_setting('DateStyle') ILIKE 'ISO%' AND current_setting('extra_float_digits')::integer > 0 \
                   OR coalesce(bool_and(e.typtype = 'e' OR e.oid IN ({exact})), true), \
                 current_setting('array_nulls')::boolean OR coalesce(bool_and(t.typtype = 'e'), true), {back} \
                 FROM pg_catalog.pg_type t JOIN pg_catalog.pg_type e \
                   ON e.oid = CASE WHEN t.typcategory = 'A' THEN t.typelem ELSE t.oid END \
                 WHERE t.oid IN ({asked})"
            ))
            .await?;
        let text = |column| results.first().and_then(|r| r.text(0, column)).unwrap_or_default();
        Ok(Some(Text {
            style_is_exact: text(0) == "t",
            nulls_are_exact: text(1) == "t",
            back: format!(
                "SELECT pg_catalog.set_config('DateStyle', {}, true), pg_catalog.set_config('IntervalStyle', {}, true), \
                 pg_catalog.set_config('extra_float_digits', {}, true)",
                text(2),
                text(3),
                text(4)
            ),
        }))
    }

    /// Refuses values of these types where their text may be read as other ones.
    pub(super) async fn check_text(&mut self, types: impl IntoIterator<Item = u32>) -> Result<(), Problem> {
        match self.text_of(types).await? {
            Some(text) if !text.style_is_exact || !text.nulls_are_exact => Err(text_is_not_exact().into()),
            _ => Ok(()),
        }
    }
}
