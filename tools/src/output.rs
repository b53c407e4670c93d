//! Output for people (tables, sizes as 1.5 GiB) and for scripts (JSON with exact bytes).

use std::io::{IsTerminal, Write};

use blockdev::report::{DiskState, Tolerance};
use serde::Serialize;

use crate::exit::{CommandResult, Failure};

/// How a command answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For scripts: exact bytes, stable keys.
    Json,
}

/// Writes `text` and a line end to standard output. A reader that went away (`| head`) is no error.
pub fn say(text: impl AsRef<str>) -> CommandResult {
    say_on(text).map(drop)
}

/// The same; says whether the reader is still there.
pub fn say_on(text: impl AsRef<str>) -> CommandResult<bool> {
    let text = text.as_ref();
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| match text.ends_with('\n') || text.is_empty() {
        true => Ok(()),
        false => out.write_all(b"\n"),
    });
    match written.and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(Failure::other(format!("writing the output: {e}"))),
    }
}

/// Writes `value` as indented JSON.
pub fn say_json(value: &impl Serialize) -> CommandResult {
    say(serde_json::to_string_pretty(value).map_err(|e| Failure::other(format!("writing JSON: {e}")))?)
}

/// JSON or what `table` makes of the value, by `format`.
pub fn show<T: Serialize>(format: Format, value: &T, table: impl FnOnce(&T) -> String) -> CommandResult {
    match format {
        Format::Json => say_json(value),
        Format::Table => say(table(value)),
    }
}

/// Bytes for people: three to four significant digits and a binary unit.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let name = UNITS[unit];
    let short = format!("{value:.1}");
    match short.strip_suffix(".0") {
        Some(whole) => format!("{whole} {name}"),
        None => format!("{short} {name}"),
    }
}

/// A ratio for people: `2.41:1`, `-` when there is none.
pub fn ratio(ratio: Option<f64>) -> String {
    ratio.filter(|r| r.is_finite()).map_or_else(|| "-".into(), |r| format!("{r:.2}:1"))
}

/// Share of `part` in `whole`, in per cent rounded down; 0 of an empty whole.
pub fn percent(part: u64, whole: u64) -> u64 {
    if whole == 0 { 0 } else { (u128::from(part) * 100 / u128::from(whole)) as u64 }
}

/// A bar such as `[#####---------------]` of `width` cells.
pub fn bar(part: u64, whole: u64, width: usize) -> String {
    let share = if whole == 0 { 0.0 } else { (part as f64 / whole as f64).clamp(0.0, 1.0) };
    let mut cells = (share * width as f64).round() as usize;
    // Never shows empty what is not, nor full what is not.
    if part > 0 && cells == 0 {
        cells = 1;
    }
    if part < whole && cells == width {
        cells = width - 1;
    }
    format!("[{}{}]", "#".repeat(cells), "-".repeat(width - cells))
}

/// Seconds for people.
pub fn duration(seconds: f64) -> String {
    let s = seconds.max(0.0) as u64;
    match s {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        3600..86400 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        _ => format!("{} d {} h", s / 86400, s % 86400 / 3600),
    }
}

/// A short time in microseconds for people, exactly.
pub fn micros(us: u64) -> String {
    match us {
        us if us.is_multiple_of(1_000_000) => format!("{} s", us / 1_000_000),
        us if us.is_multiple_of(1000) => format!("{} ms", us / 1000),
        us => format!("{us} us"),
    }
}

/// Date and time in UTC of seconds since 1970, as `2026-11-21 18:04:05Z`.
pub fn timestamp(seconds: u64) -> String {
    // Civil date from a day number: the era is 400 years of 146,097 days, years begin in March.
    let (days, rest) = (seconds / 86400, seconds % 86400);
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}Z", rest / 3600, rest % 3600 / 60, rest % 60)
}

/// Alignment of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// A table with a heading, columns parted by two spaces, no lines.
pub struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table of these columns.
    pub fn new(columns: &[(&'static str, Align)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; missing cells are empty.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) -> &mut Self {
        let mut cells: Vec<String> = cells.into_iter().map(|c| printable(&c.into())).collect();
        cells.resize(self.columns.len(), String::new());
        self.rows.push(cells);
        self
    }

    /// The text, each line indented by `indent` spaces, without blanks at line ends.
    pub fn render(&self, indent: usize) -> String {
        let width = |i: usize, heading: &str| {
            self.rows.iter().map(|row| row[i].chars().count()).chain([heading.chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = self.columns.iter().enumerate().map(|(i, (heading, _))| width(i, heading)).collect();
        let mut out = String::new();
        let mut line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut text = " ".repeat(indent);
            for (i, cell) in cells.enumerate() {
                let w = widths[i];
                match self.columns[i].1 {
                    Align::Left => text.push_str(&format!("{cell:<w$}  ")),
                    Align::Right => text.push_str(&format!("{cell:>w$}  ")),
                }
            }
            out.push_str(text.trim_end());
            out.push('\n');
        };
        line(&mut self.columns.iter().map(|(heading, _)| *heading));
        for row in &self.rows {
            line(&mut row.iter().map(String::as_str));
        }
        out
    }
}

/// Lines of `key:  value`, the values in one column.
pub fn pairs(pairs: &[(&str, String)], indent: usize) -> String {
    let width = pairs.iter().map(|(key, _)| key.chars().count()).max().unwrap_or(0) + 1;
    let mut out = String::new();
    for (key, value) in pairs {
        let line = format!("{:indent$}{:<width$}  {}", "", format!("{key}:"), printable(value));
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// One word for a drive's state.
pub fn state_word(state: DiskState) -> &'static str {
    match state {
        DiskState::Online => "online",
        DiskState::Degraded => "degraded",
        DiskState::Stale => "stale",
        DiskState::Removing => "removing",
        DiskState::Failing => "failing",
        DiskState::Failed => "failed",
        DiskState::Missing => "missing",
        DiskState::Rebuilding => "rebuilding",
    }
}

/// One word for a tolerance.
pub fn tolerance_word(tolerance: Tolerance) -> &'static str {
    match tolerance {
        Tolerance::None => "none",
        Tolerance::Single => "single",
        Tolerance::Double => "double",
    }
}

/// Control characters (a path may hold any) would spoil the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Whether a progress bar makes sense: somebody watches standard error.
pub fn interactive() -> bool {
    std::io::stderr().is_terminal()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        let cases: [(u64, &str); 10] = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (10 << 30, "10 GiB"),
            (3 << 39, "1.5 TiB"),
            ((1 << 20) - 1, "1 MiB"),
            ((1 << 30) - 1, "1 GiB"),
            (u64::MAX, "16 EiB"),
            (1000 << 20, "1000 MiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(size(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn bars_and_shares() {
        assert_eq!(bar(0, 100, 10), "[----------]");
        assert_eq!(bar(1, 1000, 10), "[#---------]");
        assert_eq!(bar(50, 100, 10), "[#####-----]");
        assert_eq!(bar(999, 1000, 10), "[#########-]");
        assert_eq!(bar(100, 100, 10), "[##########]");
        assert_eq!(bar(0, 0, 4), "[----]");
        assert_eq!(percent(1, 3), 33);
        assert_eq!(percent(5, 0), 0);
        assert_eq!(percent(u64::MAX, u64::MAX), 100);
        assert_eq!(ratio(Some(2.414)), "2.41:1");
        assert_eq!(ratio(None), "-");
        assert_eq!(ratio(Some(f64::INFINITY)), "-");
    }

    #[test]
    fn times_read_well() {
        assert_eq!(timestamp(0), "1970-01-01 00:00:00Z");
        assert_eq!(timestamp(951_782_400), "2000-02-29 00:00:00Z");
        assert_eq!(timestamp(1_798_761_599), "2026-12-31 23:59:59Z");
        assert_eq!([20_000, 1_500, 2_000_000].map(micros), ["20 ms", "1500 us", "2 s"]);
        assert_eq!(duration(1.25), "1.2 s");
        assert_eq!(duration(61.0), "1 min 1 s");
        assert_eq!(duration(7260.0), "2 h 1 min");
        assert_eq!(duration(90_000.0), "1 d 1 h");
    }

    #[test]
    fn tables_line_up() {
        let mut table = Table::new(&[("NAME", Align::Left), ("SIZE", Align::Right), ("STATE", Align::Left)]);
        table.row(["a", "10 GiB", "online"]).row(["longer", "1 B", ""]);
        assert_eq!(table.render(0), "NAME      SIZE  STATE\na       10 GiB  online\nlonger     1 B\n");
        assert!(table.render(2).lines().all(|l| l.starts_with("  ")));
    }

    #[test]
    fn terminals_are_not_spoilt() {
        let mut table = Table::new(&[("PATH", Align::Left)]);
        table.row(["a\x1b[2Jb\n"]);
        assert_eq!(table.render(0), "PATH\na?[2Jb?\n");
        assert_eq!(pairs(&[("pool", "x".into()), ("state", String::new())], 1), " pool:   x\n state:\n");
    }
}
