//! The memory budget holds, whatever is written.

use ashlar_tests::Lab;
use ashlar_tests::lab::LIMIT;
use ashlar_tests::process::wait_until;

use crate::history::{BLOCK, Random, bytes_of};
use crate::nbd::{Client, Request};
use crate::tools::{attach, create, nbd_socket};

/// MiB the daemon may use.
const BUDGET: u64 = 256;
/// MiB that are written, each block different from all others.
const WRITTEN: u64 = 2432;
/// MiB of the volume, which nearly fills the pool: it is overwritten until everything is written.
const VOLUME: u64 = 1216;
/// Blocks that are overwritten at random after that, and how many at a time: the cleaner makes room for them.
const SCATTERED: (u64, u64) = (163_840, 256);

/// Most KiB that were resident of a process so far.
fn most_resident(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().strip_suffix(" kB")?.parse().ok()
}

/// The daemon's memory has never been above its budget, in all and by its own account.
#[track_caller]
fn expect_within(lab: &Lab, pid: u32, start: u64) -> serde_json::Value {
    let peak = most_resident(pid).expect("the daemon's memory");
    let stats = lab.json(&["pool", "stats"]);
    eprintln!(
        "budget {BUDGET} MiB: {} MiB at the start, {} MiB at most; by owner {}",
        start >> 10,
        peak >> 10,
        stats["memory"]
    );
    let accounted: u64 = stats["memory"].as_object().expect("owners").values().filter_map(|v| v.as_u64()).sum();
    let engine = stats["memory_budget"].as_u64().expect("the engine's share");
    assert!(engine < BUDGET << 20 && accounted <= engine, "the engine itself counts {accounted} bytes: {stats}");
    assert!(peak >> 10 <= BUDGET, "{} MiB resident, budget {BUDGET} MiB", peak >> 10);
    stats
}

#[test]
fn memory_stays_within_the_budget() {
    let lab = Lab::up(&["--disks", "4", "--disk-size", "512M", "--tolerance", "single", "--memory", "256MiB"]);
    create(&lab, "data", &format!("{VOLUME}M"));
    attach(&lab, "data", &["nbd"]);
    let [pid] = lab.daemons()[..] else { panic!("one daemon, not {:?}", lab.daemons()) };
    let start = most_resident(pid).expect("the daemon's memory");
    let mut client = Client::connect(&nbd_socket(&lab), "data").expect("the export");
    let mut content = 0;
    for at in (0..WRITTEN).step_by(8) {
        let request = |at: u64| {
            let blocks = (1 << 20) / BLOCK as u64;
            let data = (content + 1..=content + blocks).flat_map(bytes_of).collect();
            content += blocks;
            Request::Write { offset: (at % VOLUME) << 20, data, fua: false }
        };
        let requests: Vec<Request> = (at..at + 8).map(request).collect();
        let answers = client.batch(&requests).expect("answers");
        assert!(answers.iter().all(Result::is_ok), "after {at} MiB a write failed: {answers:?}");
    }
    let mut random = Random::new(7);
    for _ in 0..SCATTERED.0 / SCATTERED.1 {
        let mut request = || {
            content += 1;
            let offset = random.next() % ((VOLUME << 20) / BLOCK as u64) * BLOCK as u64;
            Request::Write { offset, data: bytes_of(content), fua: false }
        };
        let requests: Vec<Request> = (0..SCATTERED.1).map(|_| request()).collect();
        let answers = client.batch(&requests).expect("answers");
        assert!(answers.iter().all(Result::is_ok), "a write failed: {answers:?}");
    }
    client.one(Request::Flush).expect("a flush");
    let stats = expect_within(&lab, pid, start);
    assert!(stats["host_written"].as_u64() >= Some(WRITTEN << 20), "{stats}");
    assert!(stats["cleaner_moved"].as_u64() > Some(32 << 20), "the cleaner had nothing to do: {stats}");
    let (cleaned, seconds) = (stats["cleaner_cleaned"].as_u64(), stats["cleaner_s"].as_f64());
    assert!(cleaned > Some(32 << 20) && seconds > Some(0.0), "not told how fast it cleans: {stats}");
}

/// Snapshots between overwrites, until the pool is full; then every second one is deleted.
#[test]
fn memory_stays_within_the_budget_with_snapshots_of_a_full_pool() {
    const SNAPSHOTS: usize = 300;
    const FIRST: u64 = 512;
    let lab = Lab::up(&["--disks", "4", "--disk-size", "512M", "--tolerance", "single", "--memory", "256MiB"]);
    create(&lab, "data", "2G");
    attach(&lab, "data", &["nbd"]);
    let [pid] = lab.daemons()[..] else { panic!("one daemon, not {:?}", lab.daemons()) };
    let start = most_resident(pid).expect("the daemon's memory");
    let mut client = Client::connect(&nbd_socket(&lab), "data").expect("the export");
    let mut content = 0;
    let mut blocks = |offset: u64, blocks: u64| {
        let data = (content + 1..=content + blocks).flat_map(bytes_of).collect();
        content += blocks;
        Request::Write { offset, data, fua: false }
    };
    let mut write = |requests: &[Request]| client.batch(requests).expect("answers").iter().all(Result::is_ok);
    for at in (0..FIRST).step_by(8) {
        let requests: Vec<Request> = (at..at + 8).map(|at| blocks(at << 20, 256)).collect();
        assert!(write(&requests), "after {at} MiB");
    }
    let mut random = Random::new(11);
    for n in 0..SNAPSHOTS {
        lab.ashlar(&["snapshot", "create", &format!("data@s{n:03}")]).expect_ok();
        let mut anywhere = || random.next() % ((FIRST << 20) / BLOCK as u64) * BLOCK as u64;
        let requests: Vec<Request> = (0..256).map(|_| blocks(anywhere(), 1)).collect();
        assert!(write(&requests), "after {n} snapshots");
    }
    let full = (FIRST..2048).step_by(8).any(|at| {
        let requests: Vec<Request> = (at..at + 8).map(|at| blocks(at << 20, 256)).collect();
        !write(&requests)
    });
    assert!(full, "the pool never got full");
    expect_within(&lab, pid, start);
    for n in (0..SNAPSHOTS).step_by(2) {
        lab.ashlar(&["snapshot", "delete", &format!("data@s{n:03}")]).expect_ok();
    }
    let back = || lab.json(&["pool", "status"])["deleting"].as_u64().unwrap_or(0) == 0;
    assert!(wait_until(LIMIT, back), "deleted snapshots stay");
    for _ in 0..64 {
        let mut anywhere = || random.next() % ((FIRST << 20) / BLOCK as u64) * BLOCK as u64;
        let requests: Vec<Request> = (0..256).map(|_| blocks(anywhere(), 1)).collect();
        assert!(write(&requests), "space came back");
    }
    client.one(Request::Flush).expect("a flush");
    expect_within(&lab, pid, start);
}
