//! A laboratory appliance that goes away with the test, whatever happened to it.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::binary::ashlar;
use crate::process::{Output, processes_of, run, signal, wait_until};

/// Longest time an ordinary command may take; generous, because machines are shared.
pub const LIMIT: Duration = Duration::from_secs(120);

/// A running laboratory in a directory of its own. Dropping it takes it down by `ashlar lab down`, then removes whatever is
/// left below the directory: mounts, loop devices, daemons, files.
pub struct Lab {
    dir: tempfile::TempDir,
    guard: Guard,
}

impl Lab {
    /// `ashlar lab up` with `arguments` after the directory, in a fresh directory under the system's temporary one.
    #[track_caller]
    pub fn up(arguments: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("ashlar-lab-").tempdir().expect("a directory for the laboratory");
        let guard = Guard::over(ashlar(), dir.path());
        let lab = Self { dir, guard };
        lab.lab("up", arguments).expect_ok();
        lab
    }

    /// The directory of the laboratory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Runs `ashlar --dir DIR ARGUMENTS`.
    #[track_caller]
    pub fn ashlar<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Output {
        run(Command::new(ashlar()).arg("--dir").arg(self.dir()).args(arguments), LIMIT)
    }

    /// Runs `ashlar -o json --dir DIR ARGUMENTS`, which must succeed.
    #[track_caller]
    pub fn json<S: AsRef<OsStr>>(&self, arguments: &[S]) -> serde_json::Value {
        let mut command = Command::new(ashlar());
        run(command.args(["-o", "json"]).arg("--dir").arg(self.dir()).args(arguments), LIMIT).expect_ok().json()
    }

    /// Runs `ashlar lab VERB --dir DIR ARGUMENTS`: `stop`, `start`, `kill`, `disk-pull`, `disk-push`.
    #[track_caller]
    pub fn lab(&self, verb: &str, arguments: &[&str]) -> Output {
        run(Command::new(ashlar()).args(["lab", verb, "--dir"]).arg(self.dir()).args(arguments), LIMIT)
    }

    /// Processes of the daemon.
    pub fn daemons(&self) -> Vec<u32> {
        processes_of(ashlar(), self.dir())
    }
}

/// Ends the daemon when a test fails, so that threads that write until it is gone come to an end.
pub struct EndOnFailure<'a>(pub &'a Lab);

impl Drop for EndOnFailure<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.daemons().iter().for_each(|pid| signal(&pid.to_string(), "KILL"));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let mut down = Command::new(ashlar());
        down.args(["lab", "down", "--dir"]).arg(self.dir.path());
        let down = run(&mut down, LIMIT);
        if !down.ok() {
            eprintln!("{down}");
        }
        force_down(ashlar(), self.dir.path());
        self.guard.dismiss();
    }
}

/// A process that outlives a test ended by a signal (a time limit, an interrupt), when nothing is dropped, and clears away
/// what is left below a directory. It notices the end by its standard input, which only the test holds open.
struct Guard(Child);

/// `$1` is the command, `$2` the directory. What lies on top goes first.
const GUARD: &str = r#"
cat >/dev/null
below() { awk -v d="$1/" 'index($5 "/", d) == 1 { print $5 }' /proc/self/mountinfo | tac; }
for i in 1 2 3; do
    below "$2" | while IFS= read -r point; do umount -l "$point" || fusermount3 -u -z "$point"; done
    losetup -n -O NAME,BACK-FILE | awk -v d="$2/" 'index($2, d) == 1 { print $1 }' | xargs -r -n 1 losetup -d
    "$1" lab kill --dir "$2"
    "$1" lab down --dir "$2"
done
rm -rf --one-file-system "$2"
"#;

impl Guard {
    fn over(program: &Path, dir: &Path) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", GUARD, "ashlar-lab-guard"]).arg(program).arg(dir);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        Self(command.spawn().expect("starting sh"))
    }

    /// Everything is cleared away already.
    fn dismiss(&mut self) {
        signal(&format!("-{}", self.0.id()), "KILL");
        let _ = self.0.wait();
    }
}

/// Removes mounts and loop devices below `dir` and ends processes of `program` that name it. What lies on top goes first.
pub fn force_down(program: &Path, dir: &Path) {
    let quick = Duration::from_secs(20);
    let loops = loops_below(dir);
    for _ in 0..3 {
        for mount in mounts_below(dir, &loops).into_iter().rev() {
            let lazily = run(Command::new("umount").arg("-l").arg(&mount), quick);
            if !lazily.ok() {
                run(Command::new("fusermount3").args(["-u", "-z", "--"]).arg(&mount), quick);
            }
        }
        for device in loops_below(dir) {
            run(Command::new("losetup").arg("-d").arg(device), quick);
        }
        for pid in processes_of(program, dir) {
            signal(&pid.to_string(), "KILL");
        }
        let clean = || {
            mounts_below(dir, &loops).is_empty() && loops_below(dir).is_empty() && processes_of(program, dir).is_empty()
        };
        if wait_until(Duration::from_secs(5), clean) {
            return;
        }
    }
    eprintln!(
        "left behind below {}: mounts {:?}, loop devices {:?}, processes {:?}",
        dir.display(),
        mounts_below(dir, &loops),
        loops_below(dir),
        processes_of(program, dir)
    );
}

/// Mount points at or below `dir`, and those of the loop devices `loops` wherever they are, in the order of mounting.
fn mounts_below(dir: &Path, loops: &[PathBuf]) -> Vec<PathBuf> {
    mounts(&std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
        .into_iter()
        .filter(|(point, source)| point.starts_with(dir) || loops.contains(source))
        .map(|(point, _)| point)
        .collect()
}

/// Mount point and source of each line of a mountinfo file (proc(5)).
fn mounts(mountinfo: &str) -> Vec<(PathBuf, PathBuf)> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (head, tail) = line.split_once(" - ")?;
            Some((unescape(head.split(' ').nth(4)?), unescape(tail.split(' ').nth(1)?)))
        })
        .collect()
}

/// Undoes the octal escapes of mountinfo.
fn unescape(field: &str) -> PathBuf {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\").into()
}

/// Loop devices whose backing file lies below `dir`.
fn loops_below(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir("/sys/block") else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| {
            let backing = std::fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
            Path::new(backing.trim_end_matches('\n').trim_end_matches(" (deleted)")).starts_with(dir)
        })
        .map(|entry| Path::new("/dev").join(entry.file_name()))
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::require::{Need, met};

    #[test]
    fn mountinfo_is_read_with_its_escapes() {
        let text = "36 35 98:0 /r /mnt/a\\040b rw,noatime master:1 - ext4 /dev/loop7 rw\n\
                    37 35 0:9 / /proc rw shared:2 shared:3 - proc proc rw\nbroken line\n";
        let expected = [("/mnt/a b", "/dev/loop7"), ("/proc", "proc")].map(|(a, b)| (a.into(), b.into()));
        assert_eq!(mounts(text), expected);
        assert_eq!(unescape("back\\134slash"), PathBuf::from("back\\slash"));
    }

    #[test]
    fn a_clean_directory_needs_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert!(mounts_below(dir.path(), &[]).is_empty());
        assert!(loops_below(dir.path()).is_empty());
        force_down(Path::new("/nonexistent/ashlar"), dir.path());
    }

    /// An ext4 image below `dir`, on a loop device, mounted below `dir`.
    struct Stack {
        image: PathBuf,
        device: PathBuf,
        mount: PathBuf,
    }

    fn stack(test: &str, dir: &Path) -> Option<Stack> {
        if !met(test, &[Need::Loop, Need::Tool("losetup"), Need::Tool("mkfs.ext4"), Need::Tool("mount")]) {
            return None;
        }
        let (image, mount) = (dir.join("disk.img"), dir.join("mnt"));
        std::fs::create_dir(&mount).unwrap();
        std::fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
        run(Command::new("mkfs.ext4").arg("-q").arg(&image), LIMIT).expect_ok();
        let shown = run(Command::new("losetup").args(["-f", "--show"]).arg(&image), LIMIT).expect_ok();
        let device = PathBuf::from(shown.stdout.trim());
        let mounted = run(Command::new("mount").arg(&device).arg(&mount), LIMIT);
        if !mounted.ok() {
            force_down(Path::new("/nonexistent/ashlar"), dir);
            panic!("{mounted}");
        }
        Some(Stack { image, device, mount })
    }

    #[test]
    fn mounts_loops_and_processes_are_removed_by_force() {
        let dir = tempfile::tempdir().unwrap();
        let path = std::fs::canonicalize(dir.path()).unwrap();
        let Some(Stack { image, device, mount }) = stack("lab::force_down", &path) else { return };
        let seen = (loops_below(&path), mounts_below(&path, &[]));
        let tail = std::fs::canonicalize("/usr/bin/tail").unwrap();
        let mut busy = Command::new("tail").arg("-f").arg(&image).stdout(Stdio::null()).spawn().unwrap();

        force_down(&tail, &path);
        let _ = busy.wait();
        assert_eq!(seen, (vec![device], vec![mount]));
        assert!(mounts_below(&path, &[]).is_empty() && loops_below(&path).is_empty());
    }

    #[test]
    fn guard_clears_away_when_the_test_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = std::fs::canonicalize(dir.path()).unwrap();
        let Some(Stack { device, .. }) = stack("lab::Guard", &path) else { return };
        let mut guard = Guard::over(Path::new("/bin/true"), &path);
        assert_eq!(loops_below(&path), [device]);
        drop(guard.0.stdin.take());
        let ended = crate::process::wait(&mut guard.0, LIMIT);
        let left = (path.exists(), mounts_below(&path, &[]), loops_below(&path));
        force_down(Path::new("/nonexistent/ashlar"), &path);
        guard.dismiss();
        assert!(ended.is_some(), "the guard did not end");
        assert_eq!(left, (false, vec![], vec![]));
    }

    #[test]
    fn dismissed_guard_does_nothing() {
        let dir = tempfile::tempdir().unwrap();
        Guard::over(Path::new("/bin/true"), dir.path()).dismiss();
        assert!(dir.path().exists());
    }
}
