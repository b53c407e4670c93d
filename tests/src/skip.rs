//! Leaving a test out. Other crates' tests take this file in by its path: they have no dependency on this one.

use std::io::Write;

/// Tells on standard error that a test is left out and why, and appends it to the file named by `ASHLAR_SKIPPED` if there is one (test
/// runners hide what a passing test prints). With `ASHLAR_REQUIRE_ALL=1`, where everything is supposed to be there, it is a failure.
#[track_caller]
pub fn skip(message: &str) {
    assert!(std::env::var_os("ASHLAR_REQUIRE_ALL").is_none_or(|v| v != "1"), "{message}");
    eprintln!("{message}");
    if let Some(list) = std::env::var_os("ASHLAR_SKIPPED") {
        let file = std::fs::OpenOptions::new().append(true).create(true).open(&list);
        if let Err(e) = file.and_then(|mut file| writeln!(file, "{message}")) {
            eprintln!("{}: {e}", list.display());
        }
    }
}
