//! The answer for people.

use blockdev::estimate::{Estimate, Figure};
use blockdev::report::Tolerance;

use super::Report;
use crate::output::{Align, Table, pairs, percent, ratio, size};

/// What to say of so many files that could not be read.
pub fn left_out(count: u64) -> String {
    match count {
        1 => "1 file or directory could not be read and is not counted".into(),
        n => format!("{n} files or directories could not be read and are not counted"),
    }
}

/// A figure with its range, if it has one.
fn ranged<T: PartialEq + Copy>(figure: Figure<T>, text: impl Fn(T) -> String) -> String {
    let Figure { value, low, high } = figure;
    let (value, low, high) = (text(value), text(low), text(high));
    if low == high { value } else { format!("{value} ({low} to {high})") }
}

fn ratio_in_range(figure: Option<Figure<f64>>) -> String {
    figure.map_or_else(|| ratio(None), |f| ranged(f, |r| ratio(Some(r))))
}

/// The figures, what follows from them, and what was read.
pub fn describe(report: &Report) -> String {
    let e = &report.estimate;
    let mut table = Table::new(&[
        ("", Align::Left),
        ("SIZE", Align::Right),
        ("SHARE", Align::Right),
        ("RANGE", Align::Left),
        ("KNOWN", Align::Left),
    ]);
    let counted = |bytes| Figure { value: bytes, low: bytes, high: bytes };
    for (what, figure) in [
        ("data", counted(e.size)),
        ("zeroes", e.zeroes),
        ("  of these holes", counted(e.holes)),
        ("duplicates", e.duplicate),
        ("distinct", e.unique),
        ("stored", e.stored),
    ] {
        let Figure { value, low, high } = figure;
        let exact = low == high;
        let range = if exact { String::new() } else { format!("{} to {}", size(low), size(high)) };
        let known = if exact { "counted" } else { "estimated" };
        table.row([what.into(), size(value), format!("{} %", percent(value, e.size)), range, known.into()]);
    }
    let mut lines = vec![
        (
            "reduction",
            format!(
                "{}: dedupe {}, compression {}",
                ratio_in_range(e.total_ratio),
                ratio_in_range(e.dedupe_ratio),
                ratio_in_range(e.compression_ratio)
            ),
        ),
        ("savings", format!("{} of {}", ranged(savings(e), size), size(e.size))),
    ];
    for raw in &report.raw {
        let bytes = ranged(raw.bytes, size);
        let what = if raw.tolerance == Tolerance::Single { "single tolerance" } else { "double tolerance" };
        lines.push((what, format!("{bytes} with parity, {} on {} drives", raw.layout, raw.drives)));
    }
    lines.push(("read", describe_reading(report)));
    table.render(0) + "\n" + &pairs(&lines, 0)
}

/// Bytes that are not stored: zeroes, duplicates, and what compression takes away.
fn savings(e: &Estimate) -> Figure<u64> {
    let Figure { value, low, high } = e.stored;
    let without = |stored: u64| e.size.saturating_sub(stored);
    Figure { value: without(value), low: without(high), high: without(low) }
}

/// What was measured, and what was not.
fn describe_reading(report: &Report) -> String {
    let e = &report.estimate;
    let mut text = match &report.sample {
        None => format!("{}, all of it", size(e.read)),
        Some(sample) => format!(
            "{} of {} in regions of 1 MiB, chosen at random (--seed {}); what was not read is inferred",
            size(e.read),
            size(e.size - e.holes),
            sample.seed
        ),
    };
    if e.distinct_known_one_in > 1 {
        text.push_str(&format!(
            "; of distinct blocks one in {} is known (--memory), the others are inferred",
            e.distinct_known_one_in
        ));
    }
    text.push_str(&format!(
        "; {} of data",
        if report.files == 1 { "1 file".into() } else { format!("{} files", report.files) }
    ));
    if report.unreadable.files > 0 {
        text.push_str(&format!("; {}", left_out(report.unreadable.files)));
    }
    if report.interrupted {
        text.push_str("; interrupted: the rest is not counted");
    }
    text
}
