//! Another program takes the daemon's place: in the same process, with the same arguments, while hosts wait.
//!
//! The daemon that serves *checks* the new program, keeps a copy of itself, stops in order and *hands over* by `exec`. What the new one must know
//! comes with it in an environment variable. Until it serves it can *fall back*: to the copy. `docs/design/0013-upgrade-and-packages.md` has the
//! states and what fails at each step.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use blockdev::error::{Error, ErrorKind, Result};
use blockdev::format::FORMAT_VERSION;
use blockdev::report::Severity;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::attach::Restored;
use crate::lab::host;
use crate::wire::events::Event;
use crate::wire::upgrade::{Able, Upgrade, UpgradeRequest, UpgradeState, UpgradedVolume};
use crate::wire::{Attachment, Via};

/// What a successor is told by the program before it.
const HANDOVER: &str = "ASHLAR_HANDOVER";
/// The program that serves, kept in the state directory until its successor does.
const KEPT: &str = "ashlar.kept";
/// The program that runs, whatever became of its file.
const MYSELF: &str = "/proc/self/exe";
/// Longest time a program may take to say what it is.
const CHECK_MAX: Duration = Duration::from_secs(20);
/// What this program calls itself.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Files of an upgrade in the state directory.
pub fn files(state_dir: &Path) -> [PathBuf; 1] {
    [state_dir.join(KEPT)]
}

/// What goes from a program to its successor.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Handover {
    upgrade: Upgrade,
    /// When hosts had their last answer, in milliseconds since 1970.
    left_ms: u64,
    /// The path the program that serves now is known by, if it is not the file that runs.
    program: PathBuf,
    /// The program before.
    kept: Option<Kept>,
}

/// A program to go back to.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Kept {
    /// The copy.
    file: PathBuf,
    /// The path it was known by.
    program: PathBuf,
    /// What it was started with: a program in between may have added to it.
    arguments: Vec<OsString>,
}

/// What is to be done once the daemon has stopped.
struct Plan {
    upgrade: Upgrade,
    state_dir: PathBuf,
}

/// The upgrades of this daemon: the one that made it, and the one that ends it.
pub struct Upgrades {
    /// The path this program was started by.
    program: PathBuf,
    arguments: Vec<OsString>,
    /// Of the program before; until this one serves.
    handover: Mutex<Option<Handover>>,
    plan: Mutex<Option<Plan>>,
    /// When front ends began to stop.
    left: Mutex<Option<SystemTime>>,
    last: Mutex<Option<Upgrade>>,
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The file that was started: by the path that was asked for, so that a link that is changed later leads to the new one.
fn started_from() -> PathBuf {
    let asked = std::env::args_os().next().map(PathBuf::from).filter(|path| path.is_absolute() && path.is_file());
    asked.or_else(|| std::env::current_exe().ok()).map_or_else(|| MYSELF.into(), |path| without_mark(&path))
}

/// The kernel marks the path of a program whose file was replaced.
fn without_mark(path: &Path) -> PathBuf {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let bytes = path.as_os_str().as_bytes();
    OsString::from_vec(bytes.strip_suffix(b" (deleted)").unwrap_or(bytes).to_vec()).into()
}

impl Upgrades {
    /// Of this process.
    pub fn here() -> Self {
        let text = std::env::var(HANDOVER).ok();
        // One that is not understood is of a version that told other things; the daemon serves without.
        let handover: Option<Handover> = text.and_then(|text| serde_json::from_str(&text).ok());
        let program = handover.as_ref().map_or_else(started_from, |h| h.program.clone());
        Self {
            program,
            arguments: std::env::args_os().skip(1).collect(),
            last: Mutex::new(handover.as_ref().map(|h| h.upgrade.clone())),
            handover: Mutex::new(handover),
            plan: Mutex::default(),
            left: Mutex::default(),
        }
    }

    /// The newest upgrade, if there was one since the machine was started.
    pub fn last(&self) -> Option<Upgrade> {
        self.last.lock().clone()
    }

    /// Checks that the program asked for can take over, and keeps a copy of this one. Nothing else has changed when it fails.
    pub async fn prepare(
        &self,
        request: &UpgradeRequest,
        presented: Vec<Attachment>,
        ended_jobs: Vec<String>,
        state_dir: &Path,
    ) -> Result<Upgrade> {
        let binary = request.binary.as_ref().map_or_else(|| self.program.clone(), PathBuf::from);
        if !binary.is_absolute() {
            return Err(Error::invalid(format!("'{}' is not an absolute path", binary.display())));
        }
        if !request.force {
            let presented = presented.clone();
            let used = tokio::task::spawn_blocking(move || presented.iter().find_map(used_and_lost)).await;
            if let Some(what) = used.unwrap_or_default() {
                return Err(Error::new(
                    ErrorKind::Busy,
                    format!(
                        "{what}, which does not outlive the daemon: end that first, or use --force and let it fail"
                    ),
                ));
            }
        }
        let able = check(&binary, &self.arguments).await?;
        if !able.formats.contains(&FORMAT_VERSION) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "{} (version {}) cannot read the pool: it is of on-disk format {FORMAT_VERSION}, and that program reads {:?}",
                    binary.display(),
                    able.version,
                    able.formats
                ),
            ));
        }
        let kept = state_dir.join(KEPT);
        let copied = tokio::task::spawn_blocking(move || keep(&kept)).await;
        copied.unwrap_or_else(|e| Err(Error::io(format!("keeping a copy of this program: {e}"))))?;
        Ok(Upgrade {
            id: millis(SystemTime::now()),
            state: UpgradeState::Running,
            from: VERSION.into(),
            to: able.version,
            binary: binary.display().to_string(),
            ended_jobs,
            waited_ms: None,
            volumes: Vec::new(),
            error: None,
        })
    }

    /// Hands over once the daemon has stopped. The caller stops it.
    pub fn plan(&self, upgrade: Upgrade, state_dir: &Path) {
        *self.last.lock() = Some(upgrade.clone());
        *self.plan.lock() = Some(Plan { upgrade, state_dir: state_dir.to_owned() });
    }

    /// Stops without handing over, if it was to hand over.
    pub fn call_off(&self) -> bool {
        self.plan.lock().take().is_some()
    }

    /// The version that is about to take over.
    pub fn successor(&self) -> Option<String> {
        self.plan.lock().as_ref().map(|plan| plan.upgrade.to.clone())
    }

    /// Front ends are about to stop.
    pub fn leaving(&self) {
        *self.left.lock() = Some(SystemTime::now());
    }

    /// Goes on as the new program, if that was planned. Comes back only when that is impossible, and then goes on as this one, from the start; when
    /// even that fails, with the reason.
    pub fn hand_over(&self) -> Result<()> {
        let Some(plan) = self.plan.lock().take() else { return Ok(()) };
        let left_ms = millis(self.left.lock().unwrap_or_else(SystemTime::now));
        let program = PathBuf::from(&plan.upgrade.binary);
        let (file, arguments) = (plan.state_dir.join(KEPT), self.arguments.clone());
        let kept = Some(Kept { file, program: self.program.clone(), arguments });
        let mut handover = Handover { upgrade: plan.upgrade, left_ms, program: program.clone(), kept };
        let error = exec(&program, &self.arguments, &handover);
        tracing::error!(binary = %program.display(), %error, "the new program does not start; this one goes on");
        handover.upgrade.state = UpgradeState::FellBack;
        handover.upgrade.error = Some(format!("starting {}: {error}", program.display()));
        handover.program.clone_from(&self.program);
        let error = exec(Path::new(MYSELF), &self.arguments, &handover);
        Err(Error::io(format!("neither {} nor this program could be started: {error}", program.display())))
    }

    /// This program could not begin to serve, because of `why`: goes on as the one before, if that is kept. Comes back when it is not.
    pub fn fall_back(&self, why: &str) {
        let Some(mut handover) = self.handover.lock().take() else { return };
        let Some(Kept { file, program, arguments }) = handover.kept.take() else { return };
        eprintln!("this program cannot serve ({why}); the one before goes on");
        handover.upgrade.state = UpgradeState::FellBack;
        handover.upgrade.error = Some(why.to_owned());
        handover.program = program;
        let error = exec(&file, &arguments, &handover);
        eprintln!("the program before, kept at {}, cannot be started: {error}", file.display());
    }

    /// The daemon serves: there is no way back any more, and what came of the upgrade is known.
    pub fn served(&self, restored: &[Restored], state_dir: &Path) -> Option<Event> {
        let handover = self.handover.lock().take()?;
        for file in files(state_dir) {
            let _ = std::fs::remove_file(file);
        }
        let upgrade = finished(handover, restored, SystemTime::now());
        let event = told(&upgrade);
        *self.last.lock() = Some(upgrade);
        Some(event)
    }
}

/// Gives the process to `file`. All files are closed by it, standard input, output and error aside. Comes back only when that is impossible.
fn exec(file: &Path, arguments: &[OsString], handover: &Handover) -> std::io::Error {
    let text = match serde_json::to_string(handover) {
        Ok(text) => text,
        Err(e) => return e.into(),
    };
    std::process::Command::new(file).arg0(&handover.program).args(arguments).env(HANDOVER, text).exec()
}

fn finished(handover: Handover, restored: &[Restored], now: SystemTime) -> Upgrade {
    let Handover { mut upgrade, left_ms, .. } = handover;
    let since = |time: SystemTime| millis(time).saturating_sub(left_ms);
    if upgrade.state == UpgradeState::Running {
        upgrade.state = UpgradeState::Done;
        upgrade.to = VERSION.into();
    }
    let volume = |r: &Restored| UpgradedVolume {
        volume: r.volume.clone(),
        via: r.via,
        waited_ms: since(r.at),
        error: r.error.clone(),
    };
    upgrade.volumes = restored.iter().map(volume).collect();
    upgrade.waited_ms = Some(upgrade.volumes.iter().map(|v| v.waited_ms).max().unwrap_or_else(|| since(now)));
    upgrade
}

fn told(upgrade: &Upgrade) -> Event {
    let Upgrade { from, to, binary, .. } = upgrade;
    let waited = Duration::from_millis(upgrade.waited_ms.unwrap_or(0));
    let waited = crate::output::duration(waited.as_secs_f64());
    let event = match (&upgrade.state, &upgrade.error) {
        (UpgradeState::FellBack, error) => {
            let message =
                format!("{binary} (version {to}) could not serve; version {from} goes on; hosts waited {waited}");
            Event::new(Severity::Error, "daemon.upgrade_failed", "daemon", message)
                .cause(error.clone().unwrap_or_default())
                .action("see to the cause, and upgrade again")
        }
        _ => {
            let message = format!("version {to} took over from {from} without a restart; hosts waited {waited}");
            Event::new(Severity::Info, "daemon.upgraded", "daemon", message)
        }
    };
    event.detail("binary", binary).detail("waited_ms", upgrade.waited_ms.unwrap_or(0))
}

/// Asks a program what it is and whether it could serve with these arguments, which changes nothing.
async fn check(binary: &Path, arguments: &[OsString]) -> Result<Able> {
    let name = binary.display();
    let not_ours = |why: String| Error::invalid(format!("{name} is not a program that can take over: {why}"));
    let version = ask(binary, &[OsString::from("--version")]).await.map_err(not_ours)?;
    if !version.starts_with("ashlar ") {
        let said = version.lines().next().unwrap_or_default();
        return Err(not_ours(format!("asked for its version it says '{}'", said.chars().take(80).collect::<String>())));
    }
    let mut all = arguments.to_vec();
    all.push("--check".into());
    let unable =
        |why: String| Error::invalid(format!("{name} ({}) cannot serve this appliance: {why}", version.trim()));
    let able = ask(binary, &all).await.map_err(unable)?;
    serde_json::from_str(&able).map_err(|e| unable(format!("what it says of itself is not understood: {e}")))
}

/// Standard output of a program that has to end well, and soon.
async fn ask(binary: &Path, arguments: &[OsString]) -> std::result::Result<String, String> {
    let mut command = tokio::process::Command::new(binary);
    command.args(arguments).env_remove(HANDOVER).env_remove("NOTIFY_SOCKET").kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = tokio::time::timeout(CHECK_MAX, command.output()).await;
    let output = output.map_err(|_| format!("it does not answer within {} s", CHECK_MAX.as_secs()))?;
    let output = output.map_err(|e| format!("starting it: {e}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim().strip_prefix("error: ").unwrap_or(said.trim()).lines().next().unwrap_or_default();
        return Err(format!("it ended with {}: {said}", output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Keeps the program that runs, though its file may be gone.
fn keep(kept: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let copy = || {
        // A copy that runs, of an upgrade before, cannot be written to.
        match std::fs::remove_file(kept) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        std::fs::copy(MYSELF, kept)?;
        std::fs::set_permissions(kept, std::fs::Permissions::from_mode(0o700))
    };
    copy().map_err(|e| {
        let _ = std::fs::remove_file(kept);
        Error::io(format!("keeping a copy of this program at {}, to go back to: {e}", kept.display()))
    })
}

/// What uses a volume in a way that ends with the daemon.
fn used_and_lost(attachment: &Attachment) -> Option<String> {
    if attachment.via != Via::Fuse || attachment.error.is_some() {
        return None;
    }
    let volume = &attachment.volume;
    for path in [&attachment.device, &attachment.path].into_iter().flatten() {
        let mounted = host::mounts_of(&[PathBuf::from(path)]).unwrap_or_default();
        if let Some(mount) = mounted.first() {
            return Some(format!("volume '{volume}' is mounted at {} by way of {path}", mount.mountpoint.display()));
        }
        let holders = Path::new("/sys/class/block").join(Path::new(path).file_name()?).join("holders");
        if std::fs::read_dir(holders).is_ok_and(|mut all| all.next().is_some()) {
            return Some(format!("{path} of volume '{volume}' is claimed by another block device"));
        }
        if let Some(process) = opened_by(path.as_ref()) {
            return Some(format!("{path} of volume '{volume}' is open in process {process}"));
        }
    }
    None
}

/// Another process that has `path` open.
fn opened_by(path: &OsStr) -> Option<u32> {
    let open = |pid: &u32| {
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files.into_iter().any(|file| std::fs::read_link(file.path()).is_ok_and(|target| target == path))
    };
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    let mut others = processes.filter_map(|p| p.file_name().to_str()?.parse().ok());
    others.find(|pid| *pid != std::process::id() && open(pid))
}

#[cfg(test)]
mod tests;
