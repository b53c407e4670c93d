//! Disks that fail under load, up to the tolerance and beyond it.

use std::time::Duration;

use ashlar_tests::lab::EndOnFailure;
use ashlar_tests::process::{run, wait_until};
use ashlar_tests::require::{Need, met};
use ashlar_tests::{Lab, Output};

use crate::crash::{BLOCKS, Device, write_until_it_breaks};
use crate::history::{History, Random, bytes_of};
use crate::nbd::{Client, Request};
use crate::tools::{SMALL, alerts, attach, create, expect_sound, nbd_socket};

/// NBD's error for a server that takes no more requests (ESHUTDOWN).
const SHUTDOWN: i32 = 108;

/// NBD's error for a write that finds no room (ENOSPC).
const NO_SPACE: i32 = 28;

/// States of the disks, in order.
fn states(lab: &Lab) -> Vec<String> {
    let disks = lab.json(&["disk", "list"]);
    disks.as_array().expect("disks").iter().map(|d| d["state"].as_str().unwrap_or_default().to_owned()).collect()
}

/// Writes 96 MiB at a bounded rate, so that it takes several seconds, and verifies all of it afterwards.
pub fn fio(lab: &Lab, uri: &str, seed: u32) -> Output {
    let fio = ashlar_tests::require::find("fio").unwrap_or_else(|| "fio".into());
    let mut command = std::process::Command::new(fio);
    command.current_dir(lab.dir()).args(["--name=load", "--ioengine=nbd", "--rw=randwrite", "--bs=16k", "--size=96M"]);
    command.args(["--iodepth=16", "--fsync=64", "--rate=,16m", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1"]);
    command.args(["--output-format=json", &format!("--uri={uri}"), &format!("--randseed={seed}")]);
    run(&mut command, Duration::from_secs(240))
}

/// The first and only job of fio's report; fio writes a line or two of its own before the JSON.
pub fn job(output: &Output) -> serde_json::Value {
    let json = output.stdout.find('{').map(|at| &output.stdout[at..]).unwrap_or_default();
    let report: serde_json::Value = serde_json::from_str(json).unwrap_or_else(|e| panic!("{e}: {output}"));
    report["jobs"][0].clone()
}

#[test]
fn disks_that_fail_under_fio_are_not_noticed() {
    if !met("disks_that_fail_under_fio_are_not_noticed", &[Need::Tool("fio")]) {
        return;
    }
    let lab = Lab::up(SMALL);
    create(&lab, "data", "1G");
    let uri = attach(&lab, "data", &["nbd"]);
    for (failing, seed) in [("1", 1), ("4", 2)] {
        let written = || lab.json(&["pool", "stats"])["host_written"].as_u64().unwrap_or(0);
        let before = written();
        let output = std::thread::scope(|scope| {
            let load = scope.spawn(|| fio(&lab, &uri, seed));
            let under_way = wait_until(Duration::from_secs(60), || written() > before + (16 << 20));
            lab.lab("disk-pull", &[failing]).expect_ok();
            let in_the_middle = under_way && !load.is_finished();
            let output = load.join().expect("fio's thread");
            assert!(in_the_middle, "disk {failing} did not fail in the middle of: {output}");
            output
        });
        let output = output.expect_ok();
        let job = job(&output);
        assert_eq!(job["error"].as_u64(), Some(0), "{output}");
        assert_eq!(job["read"]["io_bytes"].as_u64(), Some(96 << 20), "not everything was verified: {output}");
        let status = lab.json(&["pool", "status"]);
        assert_eq!(status["health"], "degraded", "{status}");
        assert!(alerts(&lab).contains(&"disk.failed".to_owned()), "{status}");
    }
    // The first may be in the middle of being rebuilt.
    let now = states(&lab);
    let is_out = |i: usize| now[i] == "failed" || now[i] == "rebuilding";
    assert!((0..6).all(|i| if [1, 4].contains(&i) { is_out(i) } else { now[i] == "online" }), "{now:?}");
    expect_sound(&lab);
    // What went to each is counted for good.
    let written = |id: &str| lab.json(&["disk", "show", id])["bytes_written"].as_u64().unwrap_or(0);
    let before = written("0");
    assert!(before > 16 << 20, "{before} bytes were written to disk 0");
    // The failed disks stay away across a restart, and the data is all there.
    lab.lab("kill", &[]).expect_ok();
    lab.lab("start", &[]).expect_ok();
    assert_eq!(lab.json(&["pool", "status"])["health"], "degraded");
    expect_sound(&lab);
    // All but what came after the last checkpoint of one that was killed.
    let before = written("0");
    lab.lab("stop", &[]).expect_ok();
    lab.lab("start", &[]).expect_ok();
    assert!(written("0") >= before && before > 0, "{} of {before} bytes are left", written("0"));
}

#[test]
fn beyond_the_tolerance_writes_fail_and_nothing_acknowledged_is_lost() {
    let lab = Lab::up(SMALL);
    create(&lab, "data", "32M");
    attach(&lab, "data", &["nbd"]);
    let mut history = History::new(BLOCKS);
    let end = std::thread::scope(|scope| {
        let (lab, history) = (&lab, &mut history);
        let writer = scope.spawn(move || {
            let mut client = Client::connect(&nbd_socket(lab), "data").expect("the export");
            write_until_it_breaks(&mut client, history, &mut Random::new(3))
        });
        let _end = EndOnFailure(lab);
        for disk in ["0", "2", "5"] {
            std::thread::sleep(Duration::from_millis(700));
            assert!(!writer.is_finished(), "writes failed before disk {disk} did");
            lab.lab("disk-pull", &[disk]).expect_ok();
        }
        writer.join().expect("the writer")
    });
    assert_eq!(end.raw_os_error(), Some(SHUTDOWN), "{end}");
    assert!(history.flushed > 0, "nothing was flushed");
    let status = lab.json(&["pool", "status"]);
    assert_eq!(status["health"], "failed", "{status}");
    let codes = alerts(&lab);
    assert!(codes.contains(&"pool.failed".to_owned()) && codes.contains(&"disk.failed".to_owned()), "{status}");
    let message = status["alerts"].to_string();
    assert!(message.contains("3 of 6 disks are gone, more than the tolerance of 2"), "{message}");
    // No later write and no flush is acknowledged either.
    let mut client = Client::connect(&nbd_socket(&lab), "data").expect("the export");
    for request in [Request::Write { offset: 0, data: vec![1; 4096], fua: true }, Request::Flush] {
        let answer = client.one(request);
        assert_eq!(answer.as_ref().err().and_then(std::io::Error::raw_os_error), Some(SHUTDOWN), "{answer:?}");
    }
    let refused = lab.ashlar(&["volume", "create", "more", "--size", "1G"]).expect_failure();
    assert_eq!(refused.status.code(), Some(9), "{refused}");
    drop(client);

    // It does not come up as long as too many disks are gone, and says so.
    lab.lab("stop", &[]);
    assert!(lab.daemons().is_empty());
    let refused = lab.lab("start", &[]).expect_failure();
    assert!(refused.status.code() == Some(9) && refused.stderr.contains("3 of 6 disks are gone"), "{refused}");
    std::fs::remove_file(lab.dir().join("disk-faults.json")).expect("the list of faults");
    lab.lab("start", &[]).expect_ok();
    let mut client = Client::connect(&nbd_socket(&lab), "data").expect("the export");
    let image = client.read_all().expect("reading everything");
    let seen = history.check(&image).unwrap_or_else(|e| panic!("{} of {} flushed: {e}", history.flushed, history.step));
    eprintln!("{seen:?}");
    // A disk that goes in the middle of the last stripes, when nothing can be noted any more, may leave their parity behind.
    let check = lab.ashlar(&["-o", "json", "pool", "check"]).json();
    let findings = check["findings"].as_array().expect("findings");
    assert!(findings.iter().all(|finding| finding["code"] == "stripe.parity"), "{check}");
    // The disks are back, and catch up with what was written while they were away.
    let healthy = wait_until(Duration::from_secs(60), || lab.json(&["pool", "status"])["health"] == "healthy");
    assert!(healthy, "{}", lab.json(&["pool", "status"]));
}

/// What a disk missed while it was away is written to it when it is back: then the pool survives as much as before.
#[test]
fn a_disk_that_came_back_catches_up() {
    let lab = Lab::up(SMALL);
    create(&lab, "data", "1G");
    attach(&lab, "data", &["nbd"]);
    let status = || lab.json(&["pool", "status"]);
    let write = |from: u64| {
        let mut client = Client::connect(&nbd_socket(&lab), "data").expect("the export");
        for n in from..from + 16 {
            let data = (n * 256..(n + 1) * 256).flat_map(|block| bytes_of(block + 1)).collect();
            client.one(Request::Write { offset: n << 20, data, fua: n % 4 == 3 }).expect("a write");
        }
    };
    write(0);
    let before = status();
    assert_eq!((&before["health"], &before["redundancy"]["reduced"]), (&"healthy".into(), &0.into()), "{before}");

    lab.lab("disk-pull", &["1"]).expect_ok();
    write(16);
    lab.lab("disk-push", &["1"]).expect_ok();
    let healthy = || wait_until(Duration::from_secs(60), || status()["health"] == "healthy");
    assert!(healthy(), "{}", status());
    assert!(lab.json(&["pool", "stats"])["rebuilt"].as_u64() > Some(1 << 20));
    let check = lab.ashlar(&["-o", "json", "pool", "check"]).expect_ok().json();
    assert_eq!(check["stripes_incomplete"], 0, "{check}");

    // Two others are away: everything is read with the help of the one that caught up.
    lab.lab("disk-pull", &["0"]).expect_ok();
    lab.lab("disk-pull", &["2"]).expect_ok();
    let alone = status();
    assert_eq!((&alone["health"], &alone["redundancy"]["lost"]), (&"degraded".into(), &0.into()), "{alone}");
    assert!(alerts(&lab).contains(&"pool.redundancy.none".to_owned()), "{alone}");
    let mut client = Client::connect(&nbd_socket(&lab), "data").expect("the export");
    let image = client.read_all().expect("reading everything");
    for (at, block) in image.chunks_exact(4096).enumerate().take(32 * 256) {
        assert!(block == bytes_of(at as u64 + 1), "block {at}");
    }
    drop(client);
    lab.lab("disk-push", &["0"]).expect_ok();
    lab.lab("disk-push", &["2"]).expect_ok();
    assert!(healthy(), "{}", status());
    expect_sound(&lab);

    // One that is not there at all is named by its path, and by why it is not there.
    lab.lab("stop", &[]).expect_ok();
    let (path, aside) = (lab.dir().join("disks/disk3.img"), lab.dir().join("disks/aside"));
    std::fs::rename(&path, &aside).expect("the disk's file");
    lab.lab("start", &[]).expect_ok();
    let missing = status();
    assert_eq!(missing["disks"][3]["state"], "missing", "{missing}");
    assert_eq!(missing["disks"][3]["path"].as_str(), path.to_str(), "{missing}");
    assert!(missing["alerts"].to_string().contains("No such file"), "{missing}");
    lab.lab("stop", &[]).expect_ok();
    std::fs::rename(&aside, &path).expect("the disk's file");
    lab.lab("start", &[]).expect_ok();

    // Nothing is at risk any more once the data is gone.
    lab.ashlar(&["volume", "detach", "data"]).expect_ok();
    lab.ashlar(&["volume", "delete", "data"]).expect_ok();
    assert!(healthy(), "{}", status());
}

#[test]
fn a_degraded_pool_that_fills_up_says_so_and_goes_on() {
    let lab = Lab::up(&["--disks", "3", "--disk-size", "128M", "--tolerance", "single"]);
    create(&lab, "data", "1G");
    attach(&lab, "data", &["nbd"]);
    lab.lab("disk-pull", &["1"]).expect_ok();
    let mut client = Client::connect(&nbd_socket(&lab), "data").expect("the export");
    let piece = |n: u64| (n * 256..(n + 1) * 256).flat_map(|block| bytes_of(block + 1)).collect::<Vec<u8>>();
    // More than the remaining disks hold.
    let refused = (0..256u64).find_map(|n| {
        let answer = client.one(Request::Write { offset: n << 20, data: piece(n), fua: n % 8 == 7 });
        answer.err().map(|e| (n, e))
    });
    let (written, error) = refused.expect("the pool fills up");
    assert_eq!(error.raw_os_error(), Some(NO_SPACE), "after {written} MiB: {error}");
    assert!(written > 32, "only {written} MiB were taken");
    assert!(alerts(&lab).contains(&"pool.space.95".to_owned()), "{:?}", alerts(&lab));
    client.one(Request::Flush).expect("a flush of what was taken");
    drop(client);
    lab.ashlar(&["volume", "detach", "data"]).expect_ok();
    lab.ashlar(&["volume", "delete", "data"]).expect_ok();
    create(&lab, "next", "64M");
    attach(&lab, "next", &["nbd"]);
    let mut client = Client::connect(&nbd_socket(&lab), "next").expect("the export");
    let room = wait_until(Duration::from_secs(60), || {
        client.one(Request::Write { offset: 0, data: piece(0), fua: true }).is_ok()
    });
    assert!(room, "what was deleted gave no room");
    expect_sound(&lab);
}

/// A disk that fails, misses stripes and comes back must not pass for whole, even when the daemon was killed before the next
/// checkpoint could note what the disk lacks: otherwise the pool survives fewer failures than it says.
#[test]
fn a_disk_that_missed_writes_is_known_after_a_kill() {
    let mut caught_up = 0;
    for round in 0..8 {
        let lab = Lab::up(SMALL);
        create(&lab, "data", "1G");
        attach(&lab, "data", &["nbd"]);
        std::thread::scope(|scope| {
            let lab = &lab;
            scope.spawn(move || {
                let mut client = Client::connect(&nbd_socket(lab), "data").expect("the export");
                let mut content = 0;
                // Whole stripes, flushed often, until the daemon is gone.
                for at in (0..).map(|n: u64| (n % 64) << 20) {
                    let mut run = || {
                        content += 1;
                        (content * 256..content * 256 + 16).flat_map(bytes_of).collect()
                    };
                    let write = |n: u64| Request::Write { offset: at + (n << 16), data: run(), fua: false };
                    let batch: Vec<Request> = (0..8).map(write).collect();
                    match client.batch(&batch) {
                        // The daemon is gone.
                        Err(_) => return,
                        Ok(answers) => assert!(answers.iter().all(Result::is_ok), "a write was refused: {answers:?}"),
                    }
                    if client.one(Request::Flush).is_err() {
                        return;
                    }
                }
            });
            let _end = EndOnFailure(lab);
            std::thread::sleep(Duration::from_millis(1000));
            lab.lab("disk-pull", &["1"]).expect_ok();
            std::thread::sleep(Duration::from_millis(40 * round));
            lab.lab("kill", &[]).expect_ok();
        });
        std::fs::remove_file(lab.dir().join("disk-faults.json")).expect("the list of faults");
        lab.lab("start", &[]).expect_ok();
        let healthy = wait_until(Duration::from_secs(60), || lab.json(&["pool", "status"])["health"] == "healthy");
        assert!(healthy, "{}", lab.json(&["pool", "status"]));
        caught_up += lab.json(&["pool", "stats"])["rebuilt"].as_u64().expect("bytes");
        expect_sound(&lab);
    }
    assert!(caught_up > 0, "the disk missed nothing in any round");
}

/// Disks fail one after another, in the end more than the pool tolerates at once: each time what they held is rebuilt on the others, while
/// a host writes, and although the daemon is killed in the middle.
#[test]
fn what_failed_disks_held_is_rebuilt_on_the_others() {
    let lab = Lab::up(&["--disks", "7", "--disk-size", "512M", "--tolerance", "single", "--memory", "256M"]);
    let config = lab.dir().join("ashlar.toml");
    let text = std::fs::read_to_string(&config).expect("the configuration");
    std::fs::write(&config, format!("failed_grace = 1\nmissing_grace = 1\n{text}")).expect("the configuration");
    lab.lab("stop", &[]).expect_ok();
    lab.lab("start", &[]).expect_ok();
    create(&lab, "data", "32M");
    attach(&lab, "data", &["nbd"]);
    let status = || lab.json(&["pool", "status"]);
    assert_eq!(status()["layout"], "4+1", "{}", status());
    let mut expected: Vec<u8> = Vec::new();
    for (round, disk) in ["2", "5"].into_iter().enumerate() {
        let mut client = Client::connect(&nbd_socket(&lab), "data").expect("the export");
        for n in 0..32u64 {
            if n == 16 {
                lab.lab("disk-pull", &[disk]).expect_ok();
            }
            let first = 1 + (round as u64 + 1) * 100_000 + n * 256;
            let data: Vec<u8> = (first..first + 256).flat_map(bytes_of).collect();
            client.one(Request::Write { offset: n << 20, data, fua: n % 4 == 3 }).expect("a write");
        }
        drop(client);
        expected = (0..BLOCKS as u64).flat_map(|n| bytes_of(1 + (round as u64 + 1) * 100_000 + n)).collect();
        // The grace time is over: wherever the rebuild is, it goes on after this.
        std::thread::sleep(Duration::from_millis(1200));
        lab.lab("kill", &[]).expect_ok();
        lab.lab("start", &[]).expect_ok();
        let rebuilt = || {
            let s = status();
            let reason = s["disks"][disk.parse::<usize>().expect("a number")]["reason"].as_str().unwrap_or_default();
            s["rebuild"].is_null() && s["redundancy"]["none"] == 0 && reason.contains("was rebuilt on the others")
        };
        assert!(wait_until(Duration::from_secs(90), rebuilt), "after disk {disk}: {}", status());
        assert!(alerts(&lab).contains(&"disk.replace".to_owned()), "{}", status());
        expect_sound(&lab);
    }
    // Two are gone for good, where one is tolerated; a third one may fail.
    lab.lab("disk-pull", &["0"]).expect_ok();
    let mut client = Client::connect(&nbd_socket(&lab), "data").expect("the export");
    assert!(client.read_all().expect("reading everything") == expected, "content differs");
    drop(client);
    // They come back long after, empty, and are of use again.
    for disk in ["0", "2", "5"] {
        lab.lab("disk-push", &[disk]).expect_ok();
    }
    assert!(wait_until(Duration::from_secs(60), || status()["health"] == "healthy"), "{}", status());
    expect_sound(&lab);
}

/// Disks join and leave while a host writes and the daemon is killed: sizes differ, everything stays readable and protected, and what was removed can
/// be used again.
#[test]
fn disks_join_and_leave_under_load() {
    let lab = Lab::up(&["--disks", "4", "--disk-size", "512M", "--tolerance", "single", "--memory", "256M"]);
    create(&lab, "data", "32M");
    attach(&lab, "data", &["nbd"]);
    let disks = || lab.json(&["disk", "list"]).as_array().expect("disks").clone();
    let healthy = || wait_until(Duration::from_secs(60), || lab.json(&["pool", "status"])["health"] == "healthy");
    let mut history = History::new(BLOCKS);
    let more = |n: u64, size: u64| {
        let path = lab.dir().join(format!("more{n}.img"));
        std::fs::File::create(&path).and_then(|f| f.set_len(size)).expect("a file");
        path.display().to_string()
    };
    let added = [more(0, 700 << 20), more(1, 512 << 20)];
    let end = std::thread::scope(|scope| {
        let (lab, history) = (&lab, &mut history);
        let writer = scope.spawn(move || {
            let mut client = Client::connect(&nbd_socket(lab), "data").expect("the export");
            write_until_it_breaks(&mut client, history, &mut Random::new(11))
        });
        let _end = EndOnFailure(lab);
        for path in &added {
            std::thread::sleep(Duration::from_millis(300));
            lab.ashlar(&["disk", "add", path]).expect_ok();
        }
        assert_eq!(lab.json(&["pool", "status"])["layout"], "4+1");
        lab.ashlar(&["disk", "remove", "1"]).expect_ok();
        lab.ashlar(&["disk", "remove", "disk2", "--no-wait"]).expect_ok();
        assert!(!writer.is_finished(), "writes ended before the daemon was killed");
        lab.lab("kill", &[]).expect_ok();
        writer.join().expect("the writer")
    });
    assert!(history.flushed > 0, "nothing was flushed: {end}");
    // What was begun goes on after the restart, with the disks that no configuration names.
    lab.lab("start", &[]).expect_ok();
    assert!(wait_until(Duration::from_secs(60), || disks().len() == 4), "{:?}", disks());
    assert!(healthy(), "{}", lab.json(&["pool", "status"]));
    let mut client = Client::connect(&nbd_socket(&lab), "data").expect("the export");
    let image = client.read_all().expect("reading everything");
    history.check(&image).unwrap_or_else(|e| panic!("{} of {} flushed: {e}", history.flushed, history.step));
    expect_sound(&lab);

    // Refused, and nothing changed: too few would be left, a disk that is in already, one that is not there, one that holds something.
    for disk in ["0", "3"] {
        lab.ashlar(&["disk", "remove", disk]).expect_ok();
    }
    let refused = lab.ashlar(&["disk", "remove", "5"]).expect_failure();
    assert!(refused.stderr.contains("needs 2 working disks"), "{refused}");
    let refused = lab.ashlar(&["disk", "add", &added[0]]).expect_failure();
    assert!(refused.stderr.contains("already"), "{refused}");
    assert_eq!(lab.ashlar(&["disk", "add", "/nonexistent/disk"]).expect_failure().status.code(), Some(3));
    let filled = more(2, 512 << 20);
    let mark = std::fs::File::options().write(true).open(&filled);
    mark.and_then(|mut file| std::io::Write::write_all(&mut file, b"XFSB")).expect("a file");
    let refused = lab.ashlar(&["disk", "add", &filled]).expect_failure();
    assert!(refused.stderr.contains("--force"), "{refused}");
    lab.ashlar(&["disk", "add", &filled, "--force"]).expect_ok();
    // One that was removed comes again.
    lab.ashlar(&["disk", "add", &lab.dir().join("disks/disk1.img").display().to_string()]).expect_ok();
    assert_eq!(disks().len(), 4, "{:?}", disks());
    assert!(client.read_all().expect("reading everything") == image, "content differs");
    // A disk is given up by hand: the others have what it held.
    lab.ashlar(&["disk", "fail", "4"]).expect_ok();
    let gone =
        || disks().iter().any(|d| d["id"] == 4 && d["reason"].as_str().unwrap_or_default().contains("was rebuilt"));
    assert!(wait_until(Duration::from_secs(60), gone), "{:?}", disks());
    lab.ashlar(&["disk", "remove", "4"]).expect_ok();
    assert!(healthy(), "{}", lab.json(&["pool", "status"]));
    assert!(client.read_all().expect("reading everything") == image, "content differs");
    expect_sound(&lab);
}
