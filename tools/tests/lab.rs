//! The command as people run it: real processes, real sockets, a real pool on files.

#[path = "../../tests/src/skip.rs"]
mod skip;

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

/// A laboratory that is taken down whatever the test does.
struct Lab {
    base: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        Self { base: tempfile::Builder::new().prefix("ashlar-cli-").tempdir().unwrap() }
    }

    fn dir(&self) -> PathBuf {
        self.base.path().join("lab")
    }

    fn run(&self, line: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ashlar"));
        command.env_remove("ASHLAR_DIR").arg("--dir").arg(self.dir()).args(line.split_whitespace());
        command.output().unwrap()
    }

    #[track_caller]
    fn ok(&self, line: &str) -> String {
        let output = self.run(line);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "`{line}` ended with {}\n{out}\n{err}", output.status);
        out.trim_end().to_owned()
    }

    #[track_caller]
    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.ok(&format!("{line} -o json"))).unwrap()
    }

    /// Fails with this code and message.
    #[track_caller]
    fn fails(&self, line: &str, code: i32, message: &str) {
        let output = self.run(line);
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "`{line}`: {err}");
        assert!(err.contains(message), "`{line}`: {err:?} does not contain {message:?}");
        assert!(output.stdout.is_empty(), "`{line}` failed and printed an answer");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.dir().exists() {
            self.run("lab down");
        }
    }
}

fn has(tool: &str) -> bool {
    let found =
        std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|d| d.join(tool).exists()));
    if !found {
        skip::skip(&format!(
            "tools: a part of a test was skipped, this machine lacks the command '{tool}' (scripts/setup.sh installs it)"
        ));
    }
    found
}

/// Whether a process runs; one that ended and was not waited for yet by its parent does not.
fn alive(pid: &Value) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'))
}

const UP: &str = "lab up --disks 4 --disk-size 512M --tolerance single --memory 256M";

#[test]
fn a_laboratory_from_up_to_down() {
    let lab = Lab::new();
    lab.fails("pool status", 6, "ashlar lab up --dir");
    lab.fails("lab start", 3, "there is no laboratory");
    let up = lab.json(UP);
    assert_eq!((up["running"].as_bool(), up["disks"].as_u64()), (Some(true), Some(4)));
    // The same again changes nothing; another one is refused.
    assert_eq!(lab.json(UP)["pid"], up["pid"]);
    lab.fails("lab up --disks 5", 4, "disks 4, not 5");

    lab.fails("volume show data", 3, "'data'");
    assert_eq!(lab.json("volume create data --size 10G")["size"], 10u64 << 30);
    lab.fails("volume create data --size 10G", 4, "data");
    let uri = lab.ok("volume attach data --via nbd");
    assert_eq!(uri, format!("nbd+unix:///data?socket={}/run/nbd.sock", lab.dir().display()));
    assert_eq!(lab.ok("volume attach data --via nbd"), uri);
    lab.fails("volume attach data --via fuse", 4, "one protocol at a time");
    lab.fails("volume delete data", 4, "attached via nbd");
    lab.ok("volume create other --size 1G");
    lab.fails("volume attach other --via ublk --loop", 2, "--via fuse");
    if has("nbdinfo") {
        let info = Command::new("nbdinfo").args(["--size", &uri]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&info.stdout).trim(), (10u64 << 30).to_string());
    }

    // A second daemon on the same appliance, by directory and by its file, changes nothing.
    lab.fails("serve", 4, "serves this appliance already");
    let file = lab.dir().join("ashlar.toml");
    lab.fails(&format!("serve --config {}", file.display()), 4, "in use");

    // A power cut: everything that was there is there again.
    let before = lab.json("volume list");
    lab.ok("lab kill");
    assert!(!alive(&up["pid"]), "the daemon lives on");
    lab.fails("volume list", 6, "ashlar lab start --dir");
    assert_eq!(lab.run("lab status").status.code(), Some(6));
    let started = lab.json("lab start");
    assert_ne!(started["pid"], up["pid"]);
    assert_eq!(lab.json("volume list"), before);
    assert_eq!(lab.ok("volume attach data --via nbd"), uri);

    // An orderly stop, too.
    lab.ok("lab stop");
    assert!(lab.ok("lab stop").contains("was not running"));
    assert!(!alive(&started["pid"]));
    lab.ok("lab start");
    assert_eq!(lab.json("volume list"), before);

    assert_eq!(lab.json("volume resize data --size +1G")["size"], 11u64 << 30);
    lab.fails("volume resize data --size 1G", 2, "--shrink");
    lab.ok("volume detach data");
    lab.fails("volume detach data", 3, "not attached");
    lab.ok("volume delete data");
    assert_eq!(lab.json("volume list").as_array().unwrap().len(), 1);

    let last = lab.json("lab status")["pid"].clone();
    lab.ok("lab down");
    assert!(!alive(&last), "the daemon lives on");
    assert!(!lab.dir().exists(), "something is left in {}", lab.dir().display());
    lab.fails("lab down", 3, "there is no laboratory");
}

#[test]
fn files_come_back_after_a_kill() {
    let root = std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0);
    if !root || !std::path::Path::new("/dev/fuse").exists() {
        skip::skip("files_come_back_after_a_kill: skipped, it needs root and /dev/fuse");
        return;
    }
    let lab = Lab::new();
    lab.ok(UP);
    lab.ok("volume create data --size 1G");
    let path = lab.ok("volume attach data --via fuse");
    assert_eq!(path, lab.dir().canonicalize().unwrap().join("mnt/data").display().to_string());
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 30);
    lab.ok("lab kill");
    assert!(std::fs::File::open(&path).is_err());
    lab.ok("lab start");
    assert_eq!(lab.json("volume show data")["attachment"]["path"], path.as_str());
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 30);
    lab.ok("lab kill");
    lab.ok("lab down");
    assert!(!lab.dir().exists());
}

#[test]
fn disks_are_pulled_and_stay_out_until_pushed() {
    let lab = Lab::new();
    lab.ok(UP);
    lab.fails("lab disk-pull 9", 3, "disk list");
    lab.ok("lab disk-pull 2");
    // The engine notices at its next write to the disk at the latest.
    lab.ok("lab stop");
    lab.ok("lab start");
    let states = |lab: &Lab| -> Vec<String> {
        let disks = lab.json("disk list");
        disks.as_array().unwrap().iter().map(|d| d["state"].as_str().unwrap().to_owned()).collect()
    };
    let failed = states(&lab);
    assert_eq!(failed.iter().filter(|s| *s == "online").count(), 3, "{failed:?}");
    let status = lab.json("pool status");
    assert_eq!(status["health"], "degraded");
    assert!(!status["alerts"].as_array().unwrap().is_empty());
    lab.ok("volume create data --size 1G");
    lab.ok("lab disk-push disk2");
    lab.ok("lab stop");
    lab.ok("lab start");
    let back = states(&lab);
    assert!(!back.iter().any(|s| s == "failed" || s == "missing"), "{back:?}");
}

#[test]
fn a_daemon_that_cannot_start_says_why() {
    let lab = Lab::new();
    lab.ok(UP);
    lab.ok("lab stop");
    for i in 0..2 {
        std::fs::write(lab.dir().join(format!("disks/disk{i}.img")), b"").unwrap();
    }
    let output = lab.run("lab start");
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(err.contains("the daemon ended at once") && err.contains("disk0.img"), "{err}");
}

#[test]
fn foreign_directories_are_left_alone() {
    let lab = Lab::new();
    std::fs::create_dir(lab.dir()).unwrap();
    std::fs::write(lab.dir().join("mine"), "x").unwrap();
    lab.fails("lab up", 4, "not empty");
    lab.fails("lab down", 3, "no laboratory");
    assert_eq!(std::fs::read(lab.dir().join("mine")).unwrap(), b"x");
}

#[test]
fn an_appliance_without_laboratory() {
    let lab = Lab::new();
    let dir = lab.dir();
    std::fs::create_dir(&dir).unwrap();
    let disks: Vec<String> = (0..2).map(|i| dir.join(format!("d{i}")).display().to_string()).collect();
    for disk in &disks {
        std::fs::File::create(disk).unwrap().set_len(512 << 20).unwrap();
    }
    let config = dir.join("ashlar.toml");
    let create = format!("pool create store --disk {} --config {}", disks.join(" "), config.display());
    // One that names no pool yet, as a package brings it, is completed.
    std::fs::write(&config, "# as packaged\n[log]\nfilter = \"info\"\n").unwrap();
    lab.ok(&create);
    assert!(std::fs::read_to_string(&config).unwrap().ends_with("\n\n# as packaged\n[log]\nfilter = \"info\"\n"));
    lab.fails(&create, 4, "names a pool already");
    let again = format!("pool create other --disk {}", disks.join(" "));
    assert!(!lab.run(&again).status.success(), "disks of a pool were taken without --force");
    lab.ok(&format!("{again} --force"));
    lab.fails("serve", 2, "the configuration wants 'store'");
    lab.fails("pool status", 6, "ashlar serve --dir");
    let rows = lab.json("config show");
    let name = rows.as_array().unwrap().iter().find(|r| r["key"] == "name").unwrap();
    assert_eq!(
        (name["value"].as_str(), name["origin"].as_str().map(|o| o.starts_with("file "))),
        (Some("store"), Some(true))
    );
}

#[test]
fn errors_are_json_for_scripts() {
    let lab = Lab::new();
    let output = lab.run("pool status -o json");
    assert_eq!(output.status.code(), Some(6));
    let error: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(error["error"]["kind"], "unreachable");
    let output = lab.run("completions bash");
    assert!(String::from_utf8_lossy(&output.stdout).contains("_ashlar"));
}

/// A service manager takes any other code for a failure.
#[test]
fn a_daemon_that_is_told_to_end_ends_well() {
    let lab = Lab::new();
    lab.ok(UP);
    lab.ok("lab stop");
    for round in 0..8 {
        let mut daemon = Command::new(env!("CARGO_BIN_EXE_ashlar"))
            .args(["serve", "--dir"])
            .arg(lab.dir())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while !lab.run("pool status").status.success() {
            assert_eq!(daemon.try_wait().unwrap(), None, "round {round}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let told = Command::new("kill").args(["-s", "TERM", &daemon.id().to_string()]).status().unwrap();
        assert!(told.success());
        let ended = daemon.wait().unwrap();
        assert_eq!(ended.code(), Some(0), "round {round}");
    }
}
