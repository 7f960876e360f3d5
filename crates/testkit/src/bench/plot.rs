//! The bar plot: throughput of every side relative to PostgreSQL, with whiskers from the slowest to the fastest round.
//!
//! Written as SVG by hand: rectangles, lines and text, with the fonts of whoever looks at it.

use super::report::{Report, Row};
use super::side::Kind;
use std::fmt::Write;

const WIDTH: f64 = 860.0;
/// Where bars begin: titles stand to the left.
const LEFT: f64 = 240.0;
/// Room for numbers to the right of bars.
const RIGHT: f64 = 60.0;
const TOP: f64 = 56.0;
const BAR: f64 = 14.0;
const GAP: f64 = 12.0;
const BOTTOM: f64 = 36.0;

const fn color(kind: Kind) -> &'static str {
    match kind {
        Kind::Postgres => "#666666",
        Kind::Pgbouncer => "#c58b2b",
        Kind::PgherdLocal => "#7fb3d5",
        Kind::PgherdSharded => "#1f618d",
    }
}

/// The plot as the text of an SVG file.
pub(crate) fn svg(report: &Report) -> String {
    let sides: Vec<Kind> = report.environment.sides.iter().map(|side| side.kind).collect();
    let shown: Vec<Kind> = sides.into_iter().filter(|kind| *kind != Kind::Postgres).collect();
    let group = shown.len() as f64 * BAR + GAP;
    let height = TOP + report.rows.len() as f64 * group + BOTTOM;
    let most = report
        .rows
        .iter()
        .flat_map(|row| &row.cells)
        .filter_map(|cell| cell.to_postgres)
        .fold(1.0, |most: f64, spread| most.max(spread.max));
    // A tenth more than the longest bar, on a scale that ends on a tenth.
    let end = (most * 10.0).ceil() / 10.0 + 0.1;
    let x = |ratio: f64| LEFT + ratio / end * (WIDTH - LEFT - RIGHT);

    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"14\" fill=\"#222222\">Throughput relative to PostgreSQL (more is better)</text>\n"
    );
    legend(&mut text, &shown);
    axis(&mut text, end, height, x);
    for (number, row) in report.rows.iter().enumerate() {
        bars(&mut text, row, &shown, TOP + number as f64 * group, x);
    }
    text.push_str("</svg>\n");
    text
}

fn legend(text: &mut String, shown: &[Kind]) {
    let mut left = LEFT;
    for kind in shown {
        let label = kind.to_string();
        let _ = writeln!(
            text,
            "<rect x=\"{left:.1}\" y=\"30\" width=\"10\" height=\"10\" fill=\"{}\"/>\
             <text x=\"{:.1}\" y=\"39\" fill=\"#222222\">{}</text>",
            color(*kind),
            left + 14.0,
            escape(&label)
        );
        left += 34.0 + label.len() as f64 * 6.5;
    }
}

fn axis(text: &mut String, end: f64, height: f64, x: impl Fn(f64) -> f64) {
    let step = if end > 3.0 {
        1.0
    } else if end > 1.6 {
        0.5
    } else {
        0.2
    };
    let mut ratio = 0.0;
    while ratio < end {
        let strong = (ratio - 1.0_f64).abs() < 1e-9;
        let _ = writeln!(
            text,
            "<line x1=\"{0:.1}\" y1=\"{TOP}\" x2=\"{0:.1}\" y2=\"{1:.1}\" stroke=\"{2}\"/>\
             <text x=\"{0:.1}\" y=\"{3:.1}\" text-anchor=\"middle\" fill=\"#555555\">{ratio:.1}</text>",
            x(ratio),
            height - BOTTOM,
            if strong { "#222222" } else { "#dddddd" },
            height - BOTTOM + 16.0
        );
        ratio += step;
    }
}

fn bars(text: &mut String, row: &Row, shown: &[Kind], top: f64, x: impl Fn(f64) -> f64) {
    let middle = top + shown.len() as f64 * BAR / 2.0 + 4.0;
    let _ = writeln!(
        text,
        "<text x=\"{:.1}\" y=\"{middle:.1}\" text-anchor=\"end\" fill=\"#222222\">{}</text>",
        LEFT - 8.0,
        escape(row.title)
    );
    for (number, kind) in shown.iter().enumerate() {
        let top = top + number as f64 * BAR;
        let spread = row
            .cells
            .iter()
            .find(|cell| cell.side == *kind)
            .and_then(|cell| cell.to_postgres);
        let Some(spread) = spread else {
            let _ = writeln!(
                text,
                "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"#888888\">–</text>",
                LEFT + 4.0,
                top + 11.0
            );
            continue;
        };
        let _ = writeln!(
            text,
            "<rect x=\"{LEFT}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"/>",
            top + 1.0,
            x(spread.median) - LEFT,
            BAR - 2.0,
            color(*kind)
        );
        let center = top + BAR / 2.0;
        let _ = writeln!(
            text,
            "<line x1=\"{:.1}\" y1=\"{center:.1}\" x2=\"{:.1}\" y2=\"{center:.1}\" stroke=\"#222222\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"#222222\" font-size=\"11\">{:.2}</text>",
            x(spread.min),
            x(spread.max),
            x(spread.max) + 5.0,
            top + 11.0,
            spread.median
        );
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::{Cell, Environment, SideDescription};
    use crate::bench::statistics::Spread;

    #[test]
    fn a_bar_is_as_long_as_its_ratio() {
        let side = |kind| SideDescription {
            kind,
            connection: String::new(),
            peak_memory_bytes: None,
        };
        let cell = |ratio| Cell {
            side: Kind::Pgbouncer,
            tps: None,
            to_postgres: ratio,
            to_pgbouncer: None,
            p99_ms: None,
            failed: 0,
        };
        let row = |title, ratio| Row {
            name: "x",
            title,
            cells: vec![cell(ratio)],
        };
        let half = Spread::of([0.5]);
        let report = Report {
            environment: Environment {
                sides: vec![side(Kind::Postgres), side(Kind::Pgbouncer)],
                ..Environment::default()
            },
            rows: vec![row("a < b", half), row("none", None)],
            wrong_sums: Vec::new(),
            measurements: Vec::new(),
        };
        let text = svg(&report);
        // The scale ends at 1.1: half of PostgreSQL is 5/11 of the 560 units that bars may have.
        assert!(text.contains("width=\"254.5\""), "{text}");
        assert!(text.contains("a &lt; b") && text.contains(">–<"), "{text}");
        assert_eq!(text.matches("<svg").count(), 1);
        assert!(text.trim_end().ends_with("</svg>"));
    }
}
