//! What the tests share: volumes, attachments, commands of other projects.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;

use ashlar_tests::lab::LIMIT;
use ashlar_tests::{Lab, Output, run};

/// Six small disks that tolerate two failures, and little memory.
pub const SMALL: &[&str] = &["--disks", "6", "--disk-size", "512M", "--tolerance", "double", "--memory", "256M"];

/// Runs a command of the system with a time limit.
#[track_caller]
pub fn tool<S: AsRef<OsStr>>(name: &str, arguments: &[S]) -> Output {
    let path = ashlar_tests::require::find(name).unwrap_or_else(|| name.into());
    run(Command::new(path).args(arguments), LIMIT)
}

/// Runs a line of shell that stops at its first error, with its arguments as `$1`, `$2` and so on.
#[track_caller]
pub fn shell<S: AsRef<OsStr>>(script: &str, arguments: &[S]) -> Output {
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", script, "shell"]).args(arguments);
    command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
    run(&mut command, LIMIT)
}

/// Makes a volume.
#[track_caller]
pub fn create(lab: &Lab, name: &str, size: &str) {
    lab.ashlar(&["volume", "create", name, "--size", size]).expect_ok();
}

/// Presents a volume; gives the URI, path or device.
#[track_caller]
pub fn attach(lab: &Lab, name: &str, how: &[&str]) -> String {
    let mut arguments = vec!["volume", "attach", name, "--via"];
    arguments.extend(how);
    lab.ashlar(&arguments).expect_ok().stdout.trim().to_owned()
}

/// Ends the presentation of a volume.
#[track_caller]
pub fn detach(lab: &Lab, name: &str) {
    lab.ashlar(&["volume", "detach", name]).expect_ok();
}

/// The NBD server's socket.
pub fn nbd_socket(lab: &Lab) -> PathBuf {
    lab.dir().join("run/nbd.sock")
}

/// `pool check` finds nothing.
#[track_caller]
pub fn expect_sound(lab: &Lab) {
    lab.ashlar(&["pool", "check"]).expect_ok();
}

/// The message and the exit code of a command that must fail.
#[track_caller]
pub fn expect_refused(output: Output, code: i32, message: &str) {
    let output = output.expect_failure();
    assert_eq!(output.status.code(), Some(code), "{output}");
    assert!(output.stderr.contains(message), "{message:?} is not in {output}");
    assert!(!output.stderr.contains("panicked"), "{output}");
}

/// Codes of the alerts of a pool.
#[track_caller]
pub fn alerts(lab: &Lab) -> Vec<String> {
    let status = lab.json(&["pool", "status"]);
    let all = status["alerts"].as_array().cloned().unwrap_or_default();
    all.iter().filter_map(|alert| alert["code"].as_str()).map(str::to_owned).collect()
}
