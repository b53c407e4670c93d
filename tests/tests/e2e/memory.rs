//! The memory budget holds, whatever is written.

use ashlar_tests::Lab;

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
    let peak = most_resident(pid).expect("the daemon's memory");
    let stats = lab.json(&["pool", "stats"]);
    eprintln!(
        "{WRITTEN} MiB written, budget {BUDGET} MiB: {} MiB at the start, {} MiB at most; by owner {}",
        start >> 10,
        peak >> 10,
        stats["memory"]
    );
    assert!(stats["host_written"].as_u64() >= Some(WRITTEN << 20), "{stats}");
    assert!(stats["cleaner_moved"].as_u64() > Some(32 << 20), "the cleaner had nothing to do: {stats}");
    let accounted: u64 = stats["memory"].as_object().expect("owners").values().filter_map(|v| v.as_u64()).sum();
    let engine = stats["memory_budget"].as_u64().expect("the engine's share");
    assert!(engine < BUDGET << 20 && accounted <= engine, "the engine itself counts {accounted} bytes: {stats}");
    assert!(peak >> 10 <= BUDGET, "{} MiB resident, budget {BUDGET} MiB", peak >> 10);
}
