//! Child processes that cannot hang a test: bounded in time, output kept, the whole process group ended at the limit.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// What a finished process left.
#[derive(Debug)]
pub struct Output {
    /// The command as it was run, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output; bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// Standard error, likewise.
    pub stderr: String,
    /// Whether it was ended because its time was over.
    pub timed_out: bool,
}

impl Output {
    /// Whether it ended by itself with status 0.
    pub fn ok(&self) -> bool {
        self.status.success() && !self.timed_out
    }

    /// The output, or a panic that tells everything about the failure.
    #[track_caller]
    pub fn expect_ok(self) -> Self {
        assert!(self.ok(), "{self}");
        self
    }

    /// The output of a command that must fail by itself: not by a signal, not by the time limit.
    #[track_caller]
    pub fn expect_failure(self) -> Self {
        assert!(!self.timed_out && self.status.code().is_some_and(|code| code != 0), "should have failed: {self}");
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("not JSON ({e}): {self}"))
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let end = match (self.timed_out, self.status.signal()) {
            (true, _) => "ended at its time limit".to_owned(),
            (false, Some(signal)) => format!("killed by signal {signal}"),
            (false, None) => self.status.to_string(),
        };
        write!(f, "{}: {end}\n--- stdout\n{}\n--- stderr\n{}", self.command, self.stdout, self.stderr)
    }
}

/// Runs `command` to its end, at most `limit`; then its process group is killed.
///
/// Output goes through unlinked files rather than pipes: a daemon that the command leaves behind and that inherited them
/// neither blocks nor delays the result. Panics if the command cannot be started at all.
#[track_caller]
pub fn run(command: &mut Command, limit: Duration) -> Output {
    let shown = format!("{command:?}");
    let mut out = tempfile::tempfile().expect("a temporary file for standard output");
    let mut err = tempfile::tempfile().expect("a temporary file for standard error");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(duplicate(&out))
        .stderr(duplicate(&err))
        .process_group(0)
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start {shown}: {e}"));
    let (status, timed_out) = match wait(&mut child, limit) {
        Some(status) => (status, false),
        None => {
            signal(&format!("-{}", child.id()), "KILL");
            (child.wait().expect("the status of a killed child"), true)
        }
    };
    Output { command: shown, status, stdout: contents(&mut out), stderr: contents(&mut err), timed_out }
}

/// The status of `child` if it ends within `limit`.
pub fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait().expect("the status of a child") {
            return Some(status);
        }
        if start.elapsed() >= limit {
            return None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Waits until `condition` holds, at most `limit`; whether it does.
pub fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if start.elapsed() >= limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sends a signal by name to a process, or to a process group when `target` starts with "-". A target that is gone is fine.
pub fn signal(target: &str, name: &str) {
    let _ = Command::new("kill").args(["-s", name, "--", target]).stderr(Stdio::null()).status();
}

/// Processes whose command line has `word` in one of its arguments and whose executable is `program`.
pub fn processes_of(program: &Path, word: &Path) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let Some(word) = word.to_str() else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A rebuilt binary shows as "path (deleted)".
        let exe = std::fs::read_link(entry.path().join("exe")).unwrap_or_default();
        let exe = exe.to_string_lossy();
        if Path::new(exe.trim_end_matches(" (deleted)")) != program {
            continue;
        }
        let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if arguments.split(|b| *b == 0).any(|a| String::from_utf8_lossy(a).contains(word)) {
            found.push(pid);
        }
    }
    found
}

fn duplicate(file: &File) -> Stdio {
    file.try_clone().expect("a second handle of a temporary file").into()
}

fn contents(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("reading a temporary file");
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_and_status_are_kept() {
        let output = run(&mut shell("echo to-out; echo to-err >&2; exit 3"), Duration::from_secs(60));
        assert_eq!(output.stdout, "to-out\n");
        assert_eq!(output.stderr, "to-err\n");
        assert_eq!(output.status.code(), Some(3));
        assert!(!output.ok() && !output.timed_out);
        assert!(output.expect_failure().to_string().contains("to-err"));
    }

    #[test]
    fn json_is_parsed() {
        let output = run(&mut shell(r#"echo '{"size": 5}'"#), Duration::from_secs(60)).expect_ok();
        assert_eq!(output.json()["size"], 5);
    }

    #[test]
    fn limit_ends_the_whole_group() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("pid");
        let script = format!("sleep 600 & echo $! > {}; wait", mark.display());
        let output = run(&mut shell(&script), Duration::from_millis(500));
        assert!(output.timed_out && !output.ok());
        let grandchild = std::fs::read_to_string(&mark).unwrap();
        let gone = || !alive(grandchild.trim());
        assert!(wait_until(Duration::from_secs(30), gone), "the grandchild {grandchild} lives on");
    }

    #[test]
    fn daemon_holding_the_output_does_not_block() {
        let output = run(&mut shell("sleep 30 & echo $!"), Duration::from_secs(20));
        signal(output.stdout.trim(), "KILL");
        assert!(output.ok(), "{output}");
    }

    #[test]
    fn processes_are_found_by_program_and_argument() {
        let dir = tempfile::tempdir().unwrap();
        let word = dir.path().join("needle");
        let tail = std::fs::canonicalize("/usr/bin/tail").unwrap();
        std::fs::write(&word, "").unwrap();
        let mut child = Command::new("tail").arg("-f").arg(&word).stdout(Stdio::null()).spawn().unwrap();
        let found = wait_until(Duration::from_secs(30), || processes_of(&tail, &word) == [child.id()]);
        let _ = child.kill();
        let _ = child.wait();
        assert!(found, "tail -f {} was not found", word.display());
        assert!(processes_of(&tail, &word).is_empty());
    }

    /// Whether a process exists and is not merely waiting to be reaped.
    fn alive(pid: &str) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
    }
}
