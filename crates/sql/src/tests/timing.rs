use super::fixture::snapshot;
use super::{analyzed, text};
use crate::Route;
use std::sync::Arc;

/// A cached point SELECT is routed without making its text again.
#[test]
fn a_cached_text_is_shared() {
    let snapshot = snapshot();
    let analysis = analyzed("select * from t where k = $1", &snapshot);
    let part = |value: &str| match analysis.route(&snapshot, &[text(value)]) {
        Route::Forward(part) => part,
        other => panic!("{other:?}"),
    };
    assert!(Arc::ptr_eq(&part("5").text, &part("6").text));
    assert!(!Arc::ptr_eq(&part("5").text, &part("8").text));
    let start = std::time::Instant::now();
    let rounds = 20_000;
    for _ in 0..rounds {
        std::hint::black_box(analysis.route(&snapshot, &[text("5")]));
    }
    let each = start.elapsed() / rounds;
    println!("route of a cached point SELECT: {each:?}");
    // Far above what it takes, also in a debug build on a busy machine: it catches work that grew with the text.
    assert!(each.as_micros() < 200, "{each:?}");
}
