//! Programs that make applications ready for a snapshot.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use blockdev::error::{Error, ErrorKind, Result};
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use crate::daemon::state::now_s;
use crate::values::check_name;

/// Most that is kept of what a hook prints, in bytes.
const OUTPUT_MAX: usize = 4096;

/// Why a hook is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A snapshot is about to be taken.
    Pre,
    /// It was taken.
    Post,
    /// It was not.
    Failed,
}

impl Stage {
    fn word(self) -> &'static str {
        match self {
            Self::Pre => "pre",
            Self::Post => "post",
            Self::Failed => "failed",
        }
    }
}

/// How long a process may take to end that was killed.
const END: Duration = Duration::from_secs(5);
/// How long the last of what is printed is waited for.
const PRINTED: Duration = Duration::from_millis(200);
/// Variable by which everything a hook starts is known.
const MARK: &str = "ASHLAR_HOOK_RUN";

/// A program in the directory of hooks.
pub struct Hook {
    path: PathBuf,
    limit: Duration,
    /// Of this use: what it starts before a snapshot may go on until that is taken.
    mark: String,
}

/// Fails when a file or directory could be changed by others.
fn check_own(path: &Path, meta: &std::fs::Metadata) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let me = rustix::process::geteuid().as_raw();
    if meta.mode() & 0o022 == 0 && (meta.uid() == me || meta.uid() == 0) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{} could be changed by others than the daemon's user: no hook is run (chown, chmod go-w)",
        path.display()
    )))
}

impl Hook {
    /// The hook of a name.
    pub fn find(dir: &Path, name: &str, limit: Duration) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        check_name("hook", name)?;
        let path = dir.join(name);
        let missing =
            |e| Error::new(ErrorKind::NotFound, format!("there is no hook '{name}': {}: {e}", path.display()));
        let meta = std::fs::metadata(&path).map_err(missing)?;
        if !meta.is_file() || meta.permissions().mode() & 0o111 == 0 {
            return Err(Error::invalid(format!(
                "the hook {} is no program that can be run (chmod +x)",
                path.display()
            )));
        }
        check_own(&path, &meta)?;
        check_own(dir, &std::fs::metadata(dir).map_err(missing)?)?;
        static USES: AtomicU64 = AtomicU64::new(0);
        let mark = format!("{}-{}-{}", std::process::id(), now_s(), USES.fetch_add(1, Ordering::Relaxed));
        Ok(Self { path, limit, mark })
    }

    /// By which everything it starts is known.
    pub fn mark(&self) -> &str {
        &self.mark
    }

    /// Runs it to its end, or kills it with all it has started. What it leaves running before a snapshot goes on until [`Self::finish`].
    pub async fn run(&self, stage: Stage, variables: &[(&str, String)]) -> Result<()> {
        let what = format!("hook {} ({})", self.path.display(), stage.word());
        let mut command = Command::new(&self.path);
        command.arg(stage.word()).env(MARK, &self.mark).envs(variables.iter().map(|(name, value)| (name, value)));
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let child = command.spawn();
        let mut child = child.map_err(|e| Error::io(format!("{what}: {e}")))?;
        let texts: Texts = Arc::default();
        let readers = [
            child.stdout.take().map(|out| tokio::spawn(read(out, texts.clone(), 0))),
            child.stderr.take().map(|out| tokio::spawn(read(out, texts.clone(), 1))),
        ];
        let ended = tokio::time::timeout(self.limit, child.wait()).await;
        if !matches!(&ended, Ok(Ok(status)) if status.success()) {
            let _ = child.start_kill();
            kill_marked(&self.mark);
            // One that hangs in the kernel holds nobody up.
            let _ = tokio::time::timeout(END, child.wait()).await;
        }
        for reader in readers.into_iter().flatten() {
            // What goes on in the background may keep the pipe open: it is read until that ends.
            let _ = tokio::time::timeout(PRINTED, reader).await;
        }
        let [out, errors] = { texts.lock().clone() }.map(|text| String::from_utf8_lossy(&text).trim().to_owned());
        for text in [&out, &errors].into_iter().filter(|text| !text.is_empty()) {
            tracing::info!(hook = %self.path.display(), stage = stage.word(), "{text}");
        }
        let last = errors.lines().rev().chain(out.lines().rev()).find(|line| !line.trim().is_empty());
        let told = last.map_or(String::new(), |line| format!(": {line}"));
        match ended {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(Error::io(format!("{what} failed, {status}{told}"))),
            Ok(Err(e)) => Err(Error::io(format!("{what}: {e}"))),
            Err(_) => {
                Err(Error::io(format!("{what} took longer than {} s and was killed{told}", self.limit.as_secs())))
            }
        }
    }

    /// Ends what it has started and left running.
    pub fn finish(&self) {
        kill_marked(&self.mark);
    }
}

/// Kills everything that a hook has started: known by a variable that its processes have inherited.
pub fn kill_marked(mark: &str) {
    let entry = format!("{MARK}={mark}");
    // Twice: what is killed may just have started another one.
    for _ in 0..2 {
        for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let variables = std::fs::read(process.path().join("environ")).unwrap_or_default();
            if pid != std::process::id() as i32
                && variables.split(|b| *b == 0).any(|v| v == entry.as_bytes())
                && let Some(pid) = rustix::process::Pid::from_raw(pid)
            {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

/// What was printed, to standard output and standard error.
type Texts = Arc<parking_lot::Mutex<[Vec<u8>; 2]>>;

/// Keeps the beginning of what is printed; the rest is read and forgotten, so that whoever prints does not wait.
async fn read(mut stream: impl tokio::io::AsyncRead + Unpin, texts: Texts, which: usize) {
    let mut buffer = vec![0; OUTPUT_MAX];
    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
        let text = &mut texts.lock()[which];
        let room = OUTPUT_MAX.saturating_sub(text.len());
        text.extend_from_slice(&buffer[..n.min(room)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(dir: &Path, script: &str, mode: u32) -> Result<Hook> {
        use std::os::unix::fs::PermissionsExt;
        let path = dir.join("h");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        Hook::find(dir, "h", Duration::from_millis(800))
    }

    #[tokio::test]
    async fn a_hook_is_told_what_for_and_its_failure_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let script = format!("echo \"$1 $ASHLAR_SNAPSHOTS\" >> {}", out.display());
        let good = hook(dir.path(), &script, 0o755).unwrap();
        for stage in [Stage::Pre, Stage::Post, Stage::Failed] {
            good.run(stage, &[("ASHLAR_SNAPSHOTS", "a@x b@x".into())]).await.unwrap();
        }
        assert_eq!(std::fs::read_to_string(&out).unwrap(), "pre a@x b@x\npost a@x b@x\nfailed a@x b@x\n");
        let bad = hook(dir.path(), "echo quiet; echo the base is locked >&2; exit 3", 0o700).unwrap();
        let told = bad.run(Stage::Pre, &[]).await.unwrap_err().to_string();
        assert!(told.contains("exit status: 3: the base is locked"), "{told}");
        let chatty = hook(dir.path(), "head -c 1000000 /dev/zero | tr '\\0' x", 0o700).unwrap();
        chatty.run(Stage::Pre, &[]).await.unwrap();
    }

    #[tokio::test]
    async fn a_hook_that_hangs_is_killed_with_all_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let script = format!("sleep 600 & echo $! > {}/child; sleep 600", dir.path().display());
        let slow = hook(dir.path(), &script, 0o700).unwrap();
        let begun = std::time::Instant::now();
        let told = slow.run(Stage::Pre, &[]).await.unwrap_err().to_string();
        assert!(told.contains("was killed"), "{told}");
        assert!(begun.elapsed() < Duration::from_secs(60), "it was waited for");
        let child: u32 = std::fs::read_to_string(dir.path().join("child")).unwrap().trim().parse().unwrap();
        assert!(ends(child).await, "what the hook started goes on");
    }

    #[tokio::test]
    async fn what_holds_a_lock_goes_on_until_the_snapshot_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let script =
            format!("[ $1 = pre ] && {{ setsid sleep 600 & echo $! > {}/child; }}; exit 0", dir.path().display());
        let held = hook(dir.path(), &script, 0o700).unwrap();
        held.run(Stage::Pre, &[]).await.unwrap();
        let child: u32 = std::fs::read_to_string(dir.path().join("child")).unwrap().trim().parse().unwrap();
        assert!(!is_gone(child), "it was killed before the snapshot");
        held.run(Stage::Post, &[]).await.unwrap();
        held.finish();
        assert!(ends(child).await, "it goes on after the snapshot");
    }

    fn is_gone(pid: u32) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z"))
    }

    async fn ends(pid: u32) -> bool {
        for _ in 0..500 {
            if is_gone(pid) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }

    #[tokio::test]
    async fn what_must_not_be_run_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(hook(dir.path(), "true", 0o600).is_err_and(|e| e.to_string().contains("chmod +x")));
        assert!(hook(dir.path(), "true", 0o722).is_err_and(|e| e.to_string().contains("by others")));
        for name in ["../h", "/bin/true", "", "none"] {
            assert!(Hook::find(dir.path(), name, Duration::from_secs(1)).is_err(), "{name}");
        }
        hook(dir.path(), "true", 0o700).unwrap();
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        assert!(hook(dir.path(), "true", 0o700).is_err_and(|e| e.to_string().contains("by others")));
    }
}
