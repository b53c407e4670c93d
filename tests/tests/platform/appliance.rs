//! An appliance on block devices, as its own service would run it, and what the tests do with it.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ashlar_tests::process::{Output, run, signal, wait, wait_until};
use ashlar_tests::require::{Need, find, met};
use ashlar_tests::{ashlar, binary};

/// Longest time an ordinary command may take: the machine is emulated.
pub const LIMIT: Duration = Duration::from_secs(100);

/// Whether the machine is there, and these commands are.
#[track_caller]
pub fn here(test: &str, tools: &[&'static str]) -> bool {
    let needs: Vec<Need> =
        [Need::Vm, Need::Root].into_iter().chain(tools.iter().map(|tool| Need::Tool(tool))).collect();
    met(test, &needs)
}

/// Runs a line of shell that stops at its first error, with its arguments as `$1`, `$2` and so on.
#[track_caller]
pub fn shell<S: AsRef<OsStr>>(script: &str, arguments: &[S]) -> Output {
    run(Command::new("bash").args(["-euo", "pipefail", "-c", script, "shell"]).args(arguments), LIMIT)
}

/// Waits until udev has dealt with all devices.
pub fn settle() {
    shell("udevadm settle --timeout=30", &[""; 0]).expect_ok();
}

/// A drive by its name in `/dev/disk/by-id`.
#[track_caller]
pub fn by_id(name: &str) -> PathBuf {
    let path = Path::new("/dev/disk/by-id").join(name);
    assert!(path.exists(), "the machine has no drive {}", path.display());
    path
}

/// The ordinary six drives.
pub fn ordinary() -> Vec<PathBuf> {
    (0..6).map(|n| by_id(&format!("virtio-pool{n}"))).collect()
}

/// A pool on whole drives and its daemon. Dropping it ends the daemon and what was made on its volumes.
pub struct Appliance {
    dir: tempfile::TempDir,
    daemon: Option<Child>,
}

impl Appliance {
    /// Makes a pool that survives two failures, whatever was on the drives, and serves it.
    #[track_caller]
    pub fn on(drives: &[PathBuf]) -> Self {
        Self::with(drives, "")
    }

    /// The same, with more lines of configuration.
    #[track_caller]
    pub fn with(drives: &[PathBuf], more: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("ashlar-platform-").tempdir().expect("a directory");
        let list: Vec<String> = drives.iter().map(|drive| format!("{:?}", drive.display().to_string())).collect();
        let list = list.join(", ");
        // A drive that is back within this time catches up; it is not rebuilt on the others.
        let config = format!(
            "name = \"real\"\ndisks = [{list}]\nmemory = \"256M\"\nfailed_grace = 600\nmissing_grace = 600\n{more}"
        );
        std::fs::write(dir.path().join("ashlar.toml"), config).expect("the configuration");
        let mut create = Command::new(ashlar());
        create.args(["pool", "create", "real", "--tolerance", "double", "--force", "--disk"]).args(drives);
        run(&mut create, LIMIT).expect_ok();
        let mut appliance = Self { dir, daemon: None };
        appliance.start();
        appliance
    }

    /// Starts the daemon and waits until it serves.
    #[track_caller]
    pub fn start(&mut self) {
        let log = std::fs::OpenOptions::new().append(true).create(true).open(self.log()).expect("the log");
        let mut command = Command::new(ashlar());
        command.arg("--dir").arg(self.dir()).arg("serve").process_group(0);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("the log")).stderr(log);
        let mut daemon = command.spawn().expect("the daemon");
        let up = wait_until(LIMIT, || {
            daemon.try_wait().is_ok_and(|s| s.is_some()) || self.try_ashlar(&["pool", "status"]).ok()
        });
        let ended = daemon.try_wait().expect("its status");
        self.daemon = Some(daemon);
        assert!(up && ended.is_none(), "the daemon does not serve ({ended:?}):\n{}", self.said());
    }

    /// Kills it, as a power cut would.
    #[track_caller]
    pub fn kill(&mut self) {
        let mut daemon = self.daemon.take().expect("a daemon");
        signal(&daemon.id().to_string(), "KILL");
        assert!(wait(&mut daemon, LIMIT).is_some(), "the killed daemon lives on");
    }

    /// Stops it in order.
    #[track_caller]
    pub fn stop(&mut self) {
        let mut daemon = self.daemon.take().expect("a daemon");
        signal(&daemon.id().to_string(), "TERM");
        let status = wait(&mut daemon, LIMIT);
        assert!(status.is_some_and(|s| s.success()), "the daemon ended with {status:?}:\n{}", self.said());
    }

    /// Waits until it has ended by itself.
    #[track_caller]
    pub fn outlast(&mut self) {
        let mut daemon = self.daemon.take().expect("a daemon");
        let status = wait(&mut daemon, LIMIT);
        assert!(status.is_some(), "the daemon does not end:\n{}", self.said());
    }

    /// Sends it a signal.
    #[track_caller]
    pub fn signal(&self, name: &str) {
        signal(&self.daemon.as_ref().expect("a daemon").id().to_string(), name);
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn log(&self) -> PathBuf {
        self.dir().join("daemon.log")
    }

    /// What the daemon said.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// Runs `ashlar ARGUMENTS`.
    #[track_caller]
    pub fn try_ashlar<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Output {
        run(Command::new(ashlar()).arg("--dir").arg(self.dir()).args(arguments), LIMIT)
    }

    /// Runs `ashlar ARGUMENTS`, which must succeed.
    #[track_caller]
    pub fn ashlar<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Output {
        let output = self.try_ashlar(arguments);
        assert!(output.ok(), "{output}\n--- the daemon\n{}", self.said());
        output
    }

    /// Runs `ashlar -o json ARGUMENTS`, which must succeed.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let mut all = vec!["-o", "json"];
        all.extend(arguments);
        self.ashlar(&all).json()
    }

    /// Bytes mapped by a volume.
    #[track_caller]
    pub fn mapped(&self, volume: &str) -> u64 {
        self.json(&["volume", "show", volume])["mapped"].as_u64().expect("a number")
    }

    /// State of the drive with this serial number, and where it is.
    #[track_caller]
    pub fn drive(&self, id: u64) -> (String, String) {
        let disks = self.json(&["disk", "list"]);
        let disk = disks.as_array().expect("disks").iter().find(|d| d["id"].as_u64() == Some(id));
        let disk = disk.unwrap_or_else(|| panic!("no disk {id}: {disks}"));
        let text = |name: &str| disk[name].as_str().unwrap_or_default().to_owned();
        (text("state"), text("path"))
    }

    /// Makes a volume and presents it by NBD to the kernel's client at `device`.
    #[track_caller]
    pub fn volume_on_nbd(&self, name: &str, size: &str, device: &str) {
        self.ashlar(&["volume", "create", name, "--size", size]);
        self.ashlar(&["volume", "attach", name, "--via", "nbd"]);
        self.connect(name, device);
    }

    /// Makes a volume and presents it by ublk; gives the device.
    #[track_caller]
    pub fn volume_on_ublk(&self, name: &str, size: &str) -> String {
        shell("modprobe ublk_drv", &[""; 0]).expect_ok();
        self.ashlar(&["volume", "create", name, "--size", size]);
        let device = self.ashlar(&["volume", "attach", name, "--via", "ublk"]).stdout.trim().to_owned();
        settle();
        device
    }

    /// Connects the kernel's client.
    #[track_caller]
    pub fn connect(&self, name: &str, device: &str) {
        let socket = self.dir().join("run/nbd.sock").display().to_string();
        let script = "modprobe nbd; nbd-client -unix \"$1\" \"$3\" -name \"$2\" -block-size 4096 -connections 2; blockdev --getsize64 \"$3\"";
        shell(script, &[&socket, name, device]).expect_ok();
        settle();
    }

    /// A directory to mount on.
    pub fn mountpoint(&self) -> String {
        let path = self.dir().join("fs");
        std::fs::create_dir_all(&path).expect("a directory");
        path.display().to_string()
    }

    /// `pool check` finds nothing.
    #[track_caller]
    pub fn expect_sound(&self) {
        self.ashlar(&["pool", "check"]);
    }
}

/// Ends the kernel's client.
#[track_caller]
pub fn disconnect(device: &str) {
    shell("nbd-client -d \"$1\"; udevadm settle --timeout=30", &[device]).expect_ok();
}

/// Real files: sources of this tree.
pub fn tree() -> String {
    binary::workspace().join("blockdev/src").display().to_string()
}

impl Drop for Appliance {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the daemon\n{}", self.said());
        }
        let script = "set +e; for i in 1 2 3; do awk -v d=\"$1/\" 'index($5 \"/\", d) == 1 { print $5 }' /proc/self/mountinfo | tac | xargs -r umount -l; done
            for n in /sys/block/nbd*/pid; do n=${n%/pid}; [ ! -e \"$n/pid\" ] || nbd-client -d \"/dev/${n##*/}\"; done
            losetup -n -O NAME,BACK-FILE | awk -v d=\"$1/\" 'index($2, d) == 1 { print $1 }' | xargs -r -n 1 losetup -d; true";
        if find("nbd-client").is_some() {
            drop(shell(script, &[self.dir()]));
        }
        if let Some(mut daemon) = self.daemon.take() {
            signal(&daemon.id().to_string(), "CONT");
            signal(&daemon.id().to_string(), "TERM");
            if wait(&mut daemon, Duration::from_secs(30)).is_none() {
                signal(&daemon.id().to_string(), "KILL");
                let _ = daemon.wait();
            }
        }
    }
}
