//! The `ashlar` command under test, built once per test process.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use crate::process::run;

/// Path of the `ashlar` command: `ASHLAR_BIN` if set, else what cargo builds from this source tree.
///
/// It is built as a package of its own, so that the features the tests ask of the engine (planted bugs) are not in it.
#[track_caller]
pub fn ashlar() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(given) = std::env::var_os("ASHLAR_BIN") {
            let given = std::fs::canonicalize(&given).unwrap_or_else(|e| panic!("ASHLAR_BIN={given:?}: {e}"));
            assert!(given.is_file(), "ASHLAR_BIN={} is not a file", given.display());
            return given;
        }
        let mut cargo = Command::new(option_env!("CARGO").unwrap_or("cargo"));
        cargo.current_dir(workspace()).args(["build", "--quiet", "--message-format=json-render-diagnostics"]);
        cargo.args(["-p", "ashlar-tools", "--bin", "ashlar"]);
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        let output = run(&mut cargo, Duration::from_secs(1800)).expect_ok();
        executable(&output.stdout).unwrap_or_else(|| panic!("cargo named no executable: {output}"))
    })
}

/// Root of the source tree.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests crate lies in the workspace")
}

/// The executable named by cargo's messages, one JSON object a line.
fn executable(messages: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executable_is_taken_from_the_artifact_message() {
        let messages = r#"{"reason":"compiler-artifact","executable":null}
not json
{"reason":"compiler-artifact","executable":"/x/target/debug/ashlar"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages), Some(PathBuf::from("/x/target/debug/ashlar")));
        assert_eq!(executable("{}"), None);
    }

    #[test]
    fn workspace_is_the_source_tree() {
        assert!(workspace().join("blockdev/src/lib.rs").is_file());
    }
}
