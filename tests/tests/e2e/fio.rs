//! fio writes and verifies while the daemon is killed, over NBD and over FUSE at once.

use std::process::{Command, Stdio};
use std::time::Duration;

use ashlar_tests::process::wait_until;
use ashlar_tests::require::{Need, find, met};
use ashlar_tests::{Lab, Output, run};

use crate::crash::rounds;
use crate::history::Random;
use crate::tools::{SMALL, attach, create, expect_sound};

const LIMIT: Duration = Duration::from_secs(120);

/// Where fio writes what must be there after a kill, and where it writes when the daemon is killed.
const KEPT: &str = "--offset=0";
const RESTLESS: &str = "--offset=64M";

/// A volume as fio reaches it.
struct Target {
    volume: &'static str,
    options: Vec<String>,
}

impl Target {
    fn nbd(lab: &Lab) -> Self {
        create(lab, "over-nbd", "256M");
        let uri = attach(lab, "over-nbd", &["nbd"]);
        Self { volume: "over-nbd", options: vec!["--ioengine=nbd".into(), format!("--uri={uri}")] }
    }

    fn fuse(lab: &Lab) -> Self {
        create(lab, "over-fuse", "256M");
        let path = attach(lab, "over-fuse", &["fuse"]);
        let options = vec!["--ioengine=psync".into(), "--direct=1".into(), format!("--filename={path}")];
        Self { volume: "over-fuse", options }
    }

    /// fio with what a write and its verification must have in common.
    fn fio(&self, lab: &Lab, part: &str, seed: u32) -> Command {
        let mut command = Command::new(find("fio").unwrap_or_else(|| "fio".into()));
        command.current_dir(lab.dir()).arg(format!("--name={}", self.volume)).args(&self.options).arg(part);
        command.args([
            "--rw=randwrite",
            "--bs=4k",
            "--iodepth=16",
            "--dedupe_percentage=20",
            "--buffer_compress_percentage=50",
        ]);
        command.args(["--verify=crc32c", "--verify_fatal=1", "--allow_file_create=0", &format!("--randseed={seed}")]);
        command
    }
}

/// What fio wrote and flushed before is there after a kill, however it was written over before that and whatever was under way.
#[test]
fn fio_verifies_after_kills() {
    if !met("fio_verifies_after_kills", &[Need::Tool("fio")]) {
        return;
    }
    let fuse = met("fio_verifies_after_kills (the FUSE half)", &[Need::Fuse, Need::Root]);
    let lab = Lab::up(SMALL);
    let mut targets = vec![Target::nbd(&lab)];
    if fuse {
        targets.push(Target::fuse(&lab));
    }
    let both = |work: &(dyn Fn(&Target) -> Output + Sync)| -> Vec<Output> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = targets.iter().map(|t| scope.spawn(move || work(t))).collect();
            threads.into_iter().map(|t| t.join().expect("fio's thread")).collect()
        })
    };
    let mut random = Random::new(11);
    for round in 1..=rounds() {
        for output in both(&|t| {
            run(t.fio(&lab, KEPT, round).args(["--size=8M", "--do_verify=0", "--end_fsync=1", "--fsync=256"]), LIMIT)
        }) {
            output.expect_ok();
        }
        let restless = |t: &Target| {
            let mut command = t.fio(&lab, RESTLESS, round);
            command.args(["--size=128M", "--do_verify=0", "--fsync=32", "--time_based", "--runtime=60"]);
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("fio")
        };
        let written = || lab.json(&["pool", "stats"])["host_written"].as_u64().unwrap_or(0);
        let before = written();
        let mut writers: Vec<_> = targets.iter().map(restless).collect();
        let under_way = wait_until(LIMIT, || written() > before + (1 << 20));
        std::thread::sleep(Duration::from_millis(random.below(400)));
        let in_the_middle = writers.iter_mut().all(|w| w.try_wait().is_ok_and(|ended| ended.is_none()));
        lab.lab("kill", &[]).expect_ok();
        for mut writer in writers {
            // With the daemon gone it ends by itself, with an error.
            let ended = ashlar_tests::process::wait(&mut writer, LIMIT);
            let _ = writer.kill();
            let _ = writer.wait();
            assert!(ended.is_some_and(|status| !status.success()), "round {round}: fio did not notice");
        }
        assert!(under_way && in_the_middle, "round {round}: the daemon was not killed in the middle of writes");
        lab.lab("start", &[]).expect_ok();
        for output in both(&|t| run(t.fio(&lab, KEPT, round).args(["--size=8M", "--verify_only"]), LIMIT)) {
            let output = output.expect_ok();
            assert!(
                output.stdout.contains("READ: ") || output.stdout.contains("WRITE: "),
                "nothing was verified: {output}"
            );
        }
    }
    expect_sound(&lab);
}
