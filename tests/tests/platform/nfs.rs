//! NFS exports as the kernel's client has them, over the death of the daemon: what was fsynced is there, files stay open, locks stay held.

use std::time::Duration;

use ashlar_tests::Lab;
use ashlar_tests::process::{signal, wait_until};

use crate::appliance::{here, shell};

const NEEDED: &[&str] = &["ganesha.nfsd", "rpcbind", "rpc.statd", "mount.nfs", "ip", "python3", "fio", "fsx"];

/// Writes lines and makes each durable, with a lock on the file; says which is, and the longest time one took, in a file.
const WRITER: &str = r#"
import fcntl, os, sys, time
path, told, enough = sys.argv[1:4]
f = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
fcntl.lockf(f, fcntl.LOCK_EX)
longest, n = 0, 0
while not os.path.exists(enough):
    began = time.time()
    os.write(f, b"%08d\n" % n)
    os.fsync(f)
    longest = max(longest, time.time() - began)
    with open(told + ".new", "w") as out:
        out.write("%d %.3f" % (n, longest))
    os.rename(told + ".new", told)
    n += 1
    time.sleep(0.01)
"#;

/// Fails with 1 if somebody else has a lock on the file.
const TRY: &str = "import fcntl,os,sys; f=os.open(sys.argv[1],os.O_RDWR); fcntl.lockf(f,fcntl.LOCK_EX|fcntl.LOCK_NB)";

/// How far a writer is, and the longest time one line took, in seconds.
fn progress(file: &std::path::Path) -> (u64, f64) {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let mut words = text.split(' ');
    let n = words.next().and_then(|w| w.parse().ok()).unwrap_or(0);
    (n, words.next().and_then(|w| w.parse().ok()).unwrap_or(0.0))
}

#[test]
fn clients_go_on_when_the_daemon_is_killed() {
    if !here("clients_go_on_when_the_daemon_is_killed", NEEDED) {
        return;
    }
    let rounds = std::env::var("ASHLAR_VM_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(1_u32);
    let lab = Lab::up(&["--disks", "4", "--disk-size", "1G", "--tolerance", "single", "--memory", "256M"]);
    lab.ashlar(&["nas", "server", "create", "files", "--address", "10.77.0.2"]).expect_ok();
    lab.ashlar(&["nas", "fs", "create", "home", "--size", "1G", "--server", "files"]).expect_ok();
    lab.ashlar(&["nas", "export", "create", "files:/home", "--fs", "home", "--access", "root"]).expect_ok();
    let running = || lab.json(&["nas", "server", "show", "files"])["state"] == "running";
    assert!(wait_until(Duration::from_secs(120), running), "{}", lab.json(&["nas", "server", "show", "files"]));
    let dir = lab.dir().join("clients");
    std::fs::create_dir(&dir).expect("a directory");
    let work = dir.display().to_string();
    // The client's own portmapper and status monitor, for locks of version 3.
    shell("modprobe -a veth nfs nfsv3 nfsv4; rpcbind || true; rpc.statd || true", &[""; 0]).expect_ok();
    let mount = "mkdir \"$1/v3\" \"$1/v4\"; timeout 100 mount -t nfs -o vers=3 10.77.0.2:/home \"$1/v3\"; \
        timeout 100 mount -t nfs -o vers=4.1 10.77.0.2:/home \"$1/v4\"";
    shell(mount, &[&work]).expect_ok();
    let mounted = Mounted(work.clone());

    // What one writes the other reads; each size and alignment.
    let fio = "for v in v3 v4; do fio --minimal --name=$v --directory=\"$1/$v\" --size=4M --rw=randrw --bsrange=512-128k --bs_unaligned=1 \
        --verify=crc32c --verify_fatal=1 --do_verify=1 --fsync=64 >/dev/null; done; cmp \"$1/v3/v4.0.0\" \"$1/v4/v4.0.0\"";
    shell(fio, &[&work]).expect_ok();
    // Holes, ends of files, mappings.
    shell("for v in v3 v4; do fsx -N 300 -S 7 \"$1/$v/fsx-$v\" >/dev/null; done", &[&work]).expect_ok();

    let enough = dir.join("enough").display().to_string();
    let mut writers = Vec::new();
    for version in ["v3", "v4"] {
        let paths = [format!("{work}/{version}/log-{version}"), format!("{work}/told-{version}"), enough.clone()];
        let writer = std::process::Command::new("python3").args(["-c", WRITER]).args(paths).spawn().expect("python3");
        writers.push((version, writer));
    }
    let told = |version: &str| progress(&dir.join(format!("told-{version}")));
    let goes_on = |from: [u64; 2]| {
        let further = || told("v3").0 > from[0] + 20 && told("v4").0 > from[1] + 20;
        assert!(wait_until(Duration::from_secs(150), further), "{:?} {:?} after {from:?}", told("v3"), told("v4"));
    };
    goes_on([0, 0]);
    // Each version's client finds the other's lock.
    let locked = "for other in v3:v4 v4:v3; do if python3 -c \"$2\" \"$1/${other%:*}/log-${other#*:}\" 2>/dev/null; then echo \"the lock of ${other#*:} is gone\"; exit 1; fi; done";
    shell(locked, &[&work, TRY]).expect_ok();
    for round in 0..rounds {
        let before = [told("v3").0, told("v4").0];
        if round % 2 == 0 {
            lab.lab("kill", &[]).expect_ok();
            lab.lab("start", &[]).expect_ok();
        } else {
            // Only what serves.
            let server = lab.json(&["nas", "server", "show", "files"]);
            let services = server["services"].as_array().cloned().unwrap_or_default();
            let nfs = services.iter().find(|s| s["name"] == "nfs").unwrap_or_else(|| panic!("{server}"));
            signal(&nfs["pid"].to_string(), "KILL");
        }
        goes_on(before);
        shell(locked, &[&work, TRY]).expect_ok();
    }
    std::fs::write(&enough, "").expect("the end");
    for (version, mut writer) in writers {
        let status = ashlar_tests::process::wait(&mut writer, Duration::from_secs(120));
        assert!(status.is_some_and(|s| s.success()), "the writer of {version} failed: {status:?}");
        let (last, longest) = told(version);
        eprintln!("{version}: {last} lines, at most {longest} s for one");
        // Every line once and in its order, none that was said to be durable missing.
        let home = lab.json(&["nas", "fs", "show", "home"])["path"].as_str().expect("a path").to_owned();
        let text = std::fs::read_to_string(format!("{home}/log-{version}")).expect("the log");
        let expected: String = (0..=last).map(|n| format!("{n:08}\n")).collect();
        assert!(text == expected, "{version}: {} bytes instead of {}", text.len(), expected.len());
    }
    drop(mounted);
    let found = lab.json(&["nas", "fs", "check", "home"]);
    assert_eq!(found["wrong"], 0, "{found}");
}

/// Mounts of the clients: they go before the server does, else nobody can unmount them.
struct Mounted(String);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = shell(
            "umount -f -l \"$1/v3\" \"$1/v4\"; rm -rf \"$1\"/told-* \"$1/enough\"; rmdir \"$1/v3\" \"$1/v4\" \"$1\"",
            &[&self.0],
        );
    }
}
