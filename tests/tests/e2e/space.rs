//! A pool that is full, and a file system below the disks that is.

use std::time::Duration;

use ashlar_tests::Lab;
use ashlar_tests::process::wait_until;
use ashlar_tests::require::{Need, met};

use crate::history::{BLOCK, bytes_of};
use crate::nbd::{Client, Request};
use crate::tools::{SMALL, alerts, attach, create, expect_sound, nbd_socket, shell};

const NO_SPACE: i32 = 28;
/// Bytes of a write.
const STEP: usize = 1 << 20;
/// Writes in flight.
const DEPTH: u64 = 8;

/// Megabyte `at` of a volume full of data nobody else has; `version` tells rewrites apart.
fn megabyte(at: u64, version: u64) -> Vec<u8> {
    let first = (version << 40 | at) * (STEP / BLOCK) as u64 + 1;
    (first..first + (STEP / BLOCK) as u64).flat_map(bytes_of).collect()
}

fn write(at: u64, version: u64) -> Request {
    Request::Write { offset: at * STEP as u64, data: megabyte(at, version), fua: false }
}

fn read(client: &mut Client, at: u64) -> Vec<u8> {
    let request = Request::Read { offset: at * STEP as u64, len: STEP as u32 };
    client.one(request).unwrap_or_else(|e| panic!("reading megabyte {at}: {e}"))
}

#[test]
fn a_full_pool_refuses_writes_and_nothing_else() {
    // Small: four disks of which each block takes half.
    let lab = Lab::up(&["--disks", "4", "--disk-size", "256M", "--tolerance", "double", "--memory", "256M"]);
    create(&lab, "data", "1T");
    attach(&lab, "data", &["nbd"]);
    let mut client = Client::connect(&nbd_socket(&lab), "data").expect("the export");
    let (mut written, mut told) = (Vec::new(), std::collections::BTreeSet::new());
    let refused = 'full: loop {
        let next = written.last().map_or(0, |last| last + 1);
        assert!(next < 4096, "the pool never gets full");
        told.extend(alerts(&lab));
        let batch: Vec<u64> = (next..next + DEPTH).collect();
        let requests: Vec<Request> = batch.iter().map(|at| write(*at, 0)).collect();
        let answers = client.batch(&requests).expect("answers");
        for (at, answer) in batch.into_iter().zip(answers) {
            match answer {
                Ok(_) => written.push(at),
                Err(error) => break 'full error,
            }
        }
    };
    assert_eq!(refused as i32, NO_SPACE);
    for code in ["pool.overcommitted", "pool.space.80", "pool.space.90", "pool.space.95"] {
        assert!(told.contains(code), "{code} is not among {told:?}");
    }
    let status = lab.json(&["pool", "status"]);
    eprintln!("full after {} MiB: {} of {} used", written.len(), status["used"], status["usable"]);
    assert_eq!(status["health"], "healthy", "{status}");
    assert!(alerts(&lab).contains(&"pool.space.95".to_owned()), "{status}");
    // What was refused in company may still fit alone; a few more do not.
    let again =
        (0..64).find_map(|i| client.one(write((1 << 19) + i, 0)).err()).expect("a write to a full pool is refused");
    assert_eq!(again.raw_os_error(), Some(NO_SPACE));
    // Flush, reads and zeroes go on.
    client.one(Request::Flush).expect("a flush of a full pool");
    for at in &written {
        assert!(read(&mut client, *at) == megabyte(*at, 0), "megabyte {at} of a full pool is wrong");
    }
    client.one(Request::WriteZeroes { offset: 1 << 39, len: 1 << 20 }).expect("zeroes to a full pool");
    // So does a restart.
    drop(client);
    lab.lab("kill", &[]).expect_ok();
    lab.lab("start", &[]).expect_ok();
    let mut client = Client::connect(&nbd_socket(&lab), "data").expect("the export");
    // Half is given back: writes work again, and what was kept is untouched.
    let half = written.len() / 2;
    let trim = Request::Trim { offset: 0, len: (half * STEP) as u32 };
    client.one(trim).and_then(|_| client.one(Request::Flush)).expect("discarding on a full pool");
    for at in 0..half as u64 / 2 {
        client.one(write(at, 1)).unwrap_or_else(|e| panic!("megabyte {at} after the discard: {e}"));
    }
    client.one(Request::Flush).expect("a flush");
    for at in 0..written.len() as u64 {
        let expected = match at {
            _ if at < half as u64 / 2 => megabyte(at, 1),
            _ if at < half as u64 => vec![0; STEP],
            _ => megabyte(at, 0),
        };
        assert!(read(&mut client, at) == expected, "megabyte {at} is wrong after the discard");
    }
    // The whole terabyte goes at once, most of it never written.
    let most = !(BLOCK as u32 - 1);
    let mut at = 0;
    while at < client.size {
        let len = u64::from(most).min(client.size - at) as u32;
        client.one(Request::Trim { offset: at, len }).expect("discarding everything");
        at += u64::from(len);
    }
    client.one(Request::Flush).expect("a flush");
    let volume = lab.json(&["volume", "show", "data"]);
    assert_eq!(volume["mapped"].as_u64(), Some(0), "{volume}");
    client.one(write(7, 2)).expect("a write");
    assert!(read(&mut client, 7) == megabyte(7, 2));
    expect_sound(&lab);
}

#[test]
fn a_sparse_terabyte_is_discarded_at_once() {
    let needs = [Need::Root, Need::Fuse, Need::Loop, Need::Tool("losetup"), Need::Tool("blkdiscard")];
    if !met("a_sparse_terabyte_is_discarded_at_once", &needs) {
        return;
    }
    let lab = Lab::up(SMALL);
    create(&lab, "data", "1T");
    let device = attach(&lab, "data", &["fuse", "--loop"]);
    let some = "for at in 0 300 600 999; do dd if=/dev/urandom of=\"$1\" bs=1M count=1 seek=${at}K oflag=direct status=none; done";
    shell(some, &[&device]).expect_ok();
    shell("sync \"$1\"", &[&device]).expect_ok();
    assert_eq!(lab.json(&["volume", "show", "data"])["mapped"].as_u64(), Some(4 << 20));
    shell("blkdiscard \"$1\"", &[&device]).expect_ok();
    assert_eq!(lab.json(&["volume", "show", "data"])["mapped"].as_u64(), Some(0));
    shell("cmp -n 1048576 \"$1\" /dev/zero", &[&device]).expect_ok();
    expect_sound(&lab);
}

/// The disks are files, and the file system they lie on is full: writes wait, and go on when there is space again.
#[test]
fn a_full_file_system_below_the_disks_stalls_writes() {
    let needs = [Need::Root, Need::Loop, Need::Tool("mkfs.ext4"), Need::Tool("mount"), Need::Tool("fallocate")];
    if !met("a_full_file_system_below_the_disks_stalls_writes", &needs) {
        return;
    }
    let lab = Lab::up(SMALL);
    create(&lab, "data", "1G");
    attach(&lab, "data", &["nbd"]);
    lab.lab("stop", &[]).expect_ok();
    // The disks move to a small file system, where a ballast takes what the writes will need.
    let script = "cd \"$1\"; mv disks disks.old; mkdir disks; truncate -s 512M below.img; mkfs.ext4 -q -m 0 below.img
        mount -o loop below.img disks; cp --sparse=always disks.old/* disks/; rm -r disks.old
        fallocate -l $(($(df --output=avail -B1 disks | tail -n 1) - (48 << 20))) disks/ballast";
    let dir = lab.dir().display().to_string();
    shell(script, &[&dir]).expect_ok();
    lab.lab("start", &[]).expect_ok();
    let socket = nbd_socket(&lab);
    // More than the 48 MiB that are left, less than what the ballast gives back.
    const MEGABYTES: u64 = 96;
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut client = Client::connect(&socket, "data").expect("the export");
            for at in (0..MEGABYTES).step_by(DEPTH as usize) {
                let requests: Vec<Request> = (at..at + DEPTH).map(|at| write(at, 0)).collect();
                let answers = client.batch(&requests).expect("answers, however late");
                assert!(answers.iter().all(Result::is_ok), "a write failed: {answers:?}");
                client.one(Request::Flush).expect("a flush, however late");
            }
        });
        let stalled = wait_until(Duration::from_secs(60), || alerts(&lab).contains(&"disk.no_space".to_owned()));
        let status = lab.json(&["pool", "status"]);
        let finished = writer.is_finished();
        shell("rm \"$1\"/disks/ballast", &[&dir]).expect_ok();
        writer.join().expect("the writer");
        assert!(stalled && !finished, "writes did not wait: {status}");
        assert!(status["alerts"].to_string().contains("is full: writes wait"), "{status}");
    });
    assert_eq!(alerts(&lab), Vec::<String>::new());
    let status = lab.json(&["pool", "status"]);
    assert_eq!(status["health"], "healthy", "{status}");
    for _ in 0..2 {
        let mut client = Client::connect(&socket, "data").expect("the export");
        for at in 0..MEGABYTES {
            assert!(read(&mut client, at) == megabyte(at, 0), "megabyte {at} is wrong");
        }
        drop(client);
        lab.lab("kill", &[]).expect_ok();
        lab.lab("start", &[]).expect_ok();
    }
    expect_sound(&lab);
    lab.lab("stop", &[]).expect_ok();
    shell("umount \"$1\"/disks", &[&dir]).expect_ok();
}

/// What is reserved for a volume is there when the others have filled the pool, also after a kill; what cannot be kept is not promised.
#[test]
fn reserved_space_is_there_when_a_pool_is_full() {
    const OWN: u64 = 64;
    let lab = Lab::up(&["--disks", "4", "--disk-size", "256M", "--tolerance", "double", "--memory", "256M"]);
    create(&lab, "data", "1T");
    let own = format!("{OWN}M");
    lab.ashlar(&["volume", "create", "own", "--size", &own, "--reserve", "all"]).expect_ok();
    let much = lab.ashlar(&["volume", "create", "much", "--size", "1T", "--reserve", "900G"]).expect_failure();
    assert!(much.stderr.contains("MiB are free"), "{much}");
    let odd = lab.ashlar(&["volume", "reserve", "own", "1T"]).expect_failure();
    assert!(odd.stderr.contains("more than its size"), "{odd}");
    let status = lab.json(&["pool", "status"]);
    assert_eq!(status["reserved"].as_u64(), Some(OWN << 20), "{status}");
    assert!(status["set_aside"].as_u64() >= Some(OWN << 20), "{status}");
    attach(&lab, "data", &["nbd"]);
    attach(&lab, "own", &["nbd"]);
    let fill = |from: u64| {
        let mut client = Client::connect(&nbd_socket(&lab), "data").expect("the export");
        let refused = (from..from + 4096).find_map(|at| client.one(write(at, 0)).err());
        assert_eq!(refused.expect("the pool is never full").raw_os_error(), Some(NO_SPACE));
    };
    let overwrite = |version: u64| {
        let mut client = Client::connect(&nbd_socket(&lab), "own").expect("the export");
        for at in 0..OWN {
            client.one(write(at, version)).unwrap_or_else(|e| panic!("megabyte {at}, version {version}: {e}"));
        }
        client.one(Request::Flush).expect("a flush");
    };
    fill(0);
    overwrite(1);
    let held = lab.ashlar(&["snapshot", "create", "own@s"]).expect_failure();
    assert!(held.stderr.contains("is full"), "{held}");
    lab.lab("kill", &[]).expect_ok();
    lab.lab("start", &[]).expect_ok();
    fill(1 << 18);
    overwrite(2);
    let mut client = Client::connect(&nbd_socket(&lab), "own").expect("the export");
    assert!((0..OWN).all(|at| read(&mut client, at) == megabyte(at, 2)), "not what was written");
    drop(client);
    let shown = lab.ashlar(&["volume", "reserve", "own", "none"]).expect_ok();
    assert!(shown.stdout.contains("0 B are reserved"), "{shown}");
    assert_eq!(lab.json(&["pool", "status"])["set_aside"].as_u64(), Some(0));
    expect_sound(&lab);
}
