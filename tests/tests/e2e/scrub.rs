//! Drives whose images are spoiled behind the daemon's back: scrub, healing, and the list of what cannot be given back.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use ashlar_tests::Lab;

use crate::history::Random;
use crate::nbd::{Client, Request};
use crate::tools::{alerts, attach, create, expect_sound, nbd_socket};

const FOUR: &[&str] = &["--disks", "4", "--disk-size", "256M", "--tolerance", "single", "--memory", "256M"];
const BLOCK: usize = 4096;
/// Bytes of one request.
const PIECE: usize = 64 << 10;
const SIZE: usize = 24 << 20;

/// Noise, which takes as much space as it has bytes.
fn noise(seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..SIZE / 8).flat_map(|_| random.next().to_le_bytes()).collect()
}

fn write_all(client: &mut Client, data: &[u8]) {
    for (i, piece) in data.chunks(PIECE).enumerate() {
        let request = Request::Write { offset: (i * PIECE) as u64, data: piece.to_vec(), fua: false };
        client.one(request).expect("written");
    }
    client.one(Request::Flush).expect("flushed");
}

/// Offsets of blocks that cannot be read; all others must be what was written.
fn unreadable(client: &mut Client, data: &[u8]) -> BTreeSet<u64> {
    let mut lost = BTreeSet::new();
    for (i, piece) in data.chunks(PIECE).enumerate() {
        let at = (i * PIECE) as u64;
        if let Ok(found) = client.one(Request::Read { offset: at, len: PIECE as u32 }) {
            assert!(found == piece, "another content at {at}");
            continue;
        }
        for (j, block) in piece.chunks(BLOCK).enumerate() {
            let at = at + (j * BLOCK) as u64;
            match client.one(Request::Read { offset: at, len: BLOCK as u32 }) {
                Ok(found) => assert!(found == block, "another content at {at}"),
                Err(_) => drop(lost.insert(at)),
            }
        }
    }
    lost
}

/// Changes bytes in one of `every` blocks of a drive's image that hold something, labels and log left alone.
fn spoil(lab: &Lab, disk: usize, every: u64) -> usize {
    let image = OpenOptions::new().read(true).write(true).open(lab.dir().join(format!("disks/disk{disk}.img")));
    let image: File = image.expect("the image of a drive");
    let len = image.metadata().expect("its size").len();
    let mut random = Random::new(disk as u64 + 77);
    let mut spoiled = 0;
    let mut piece = vec![0; 1 << 20];
    for at in (10 << 20..len - (1 << 20)).step_by(1 << 20) {
        image.read_exact_at(&mut piece, at).expect("read");
        for (i, block) in piece.chunks(BLOCK).enumerate() {
            if block.iter().any(|b| *b != 0) && random.below(every) == 0 {
                image.write_all_at(&random.next().to_le_bytes(), at + (i * BLOCK) as u64 + 512).expect("written");
                spoiled += 1;
            }
        }
    }
    image.sync_all().expect("synced");
    spoiled
}

#[test]
fn a_scrub_heals_a_drive_that_rots() {
    let lab = Lab::up(FOUR);
    create(&lab, "data", "64M");
    attach(&lab, "data", &["nbd"]);
    let mut client = Client::connect(&nbd_socket(&lab), "data").expect("the export");
    let data = noise(1);
    write_all(&mut client, &data);
    // All of it on the drives, none in memory.
    lab.lab("kill", &[]).expect_ok();
    lab.lab("start", &[]).expect_ok();
    let spoiled = spoil(&lab, 2, 40);
    assert!(spoiled > 20, "only {spoiled} blocks were spoiled");
    let mut client = Client::connect(&nbd_socket(&lab), "data").expect("the export");
    assert!(unreadable(&mut client, &data).is_empty());
    let scrub = lab.json(&["pool", "scrub", "--wait"]);
    assert_eq!(
        (&scrub["running"], &scrub["complete"], &scrub["damaged"]),
        (&false.into(), &true.into(), &0.into()),
        "{scrub}"
    );
    let disks = lab.json(&["disk", "list"]);
    let errors: Vec<u64> =
        disks.as_array().expect("disks").iter().filter_map(|d| d["checksum_errors"].as_u64()).collect();
    assert!(errors[2] > 0 && errors[0] + errors[1] + errors[3] == 0, "{disks}");
    expect_sound(&lab);
    lab.ashlar(&["pool", "damage"]).expect_ok();
    // What was healed is whole: nothing is missing without another drive.
    lab.lab("disk-pull", &["0"]).expect_ok();
    assert!(unreadable(&mut client, &data).is_empty());
    // Errors and the calendar stay on record.
    lab.lab("kill", &[]).expect_ok();
    lab.lab("start", &[]).expect_ok();
    let again = lab.json(&["pool", "status"]);
    assert_eq!(again["scrub"]["ended_s"], scrub["ended_s"], "{again}");
    assert!(again["disks"][2]["checksum_errors"].as_u64() >= Some(errors[2]), "{again}");
}

#[test]
fn what_is_beyond_redundancy_is_listed_and_heals_when_written_again() {
    let lab = Lab::up(FOUR);
    create(&lab, "data", "64M");
    create(&lab, "other", "64M");
    attach(&lab, "data", &["nbd"]);
    attach(&lab, "other", &["nbd"]);
    let data = noise(2);
    let mut client = Client::connect(&nbd_socket(&lab), "data").expect("the export");
    write_all(&mut client, &data);
    lab.lab("stop", &[]).expect_ok();
    spoil(&lab, 0, 7);
    spoil(&lab, 3, 7);
    lab.lab("start", &[]).expect_ok();
    let mut client = Client::connect(&nbd_socket(&lab), "data").expect("the export");
    lab.ashlar(&["pool", "scrub", "--wait"]);
    let lost = unreadable(&mut client, &data);
    assert!(!lost.is_empty() && lost.len() < SIZE / BLOCK / 2, "{} blocks are lost", lost.len());
    let damage = lab.ashlar(&["-o", "json", "pool", "damage"]);
    assert_eq!(damage.status.code(), Some(7), "{damage}");
    let ranges = damage.json()["ranges"].as_array().cloned().unwrap_or_default();
    let each = ranges.iter().flat_map(|r| {
        assert_eq!(r["volume"], "data", "{r}");
        let (offset, len) = (r["offset"].as_u64().unwrap_or_default(), r["len"].as_u64().unwrap_or_default());
        (offset..offset + len).step_by(BLOCK)
    });
    assert_eq!(each.collect::<BTreeSet<u64>>(), lost);
    let status = lab.json(&["pool", "status"]);
    assert_eq!(status["health"], "critical", "{status}");
    assert!(alerts(&lab).contains(&"pool.damaged".to_owned()), "{status}");
    // The other volume takes writes, and what is written again is whole.
    let mut other = Client::connect(&nbd_socket(&lab), "other").expect("the export");
    other.one(Request::Write { offset: 0, data: vec![7; PIECE], fua: true }).expect("written");
    for at in lost {
        let block = data[at as usize..at as usize + BLOCK].to_vec();
        client.one(Request::Write { offset: at, data: block, fua: false }).expect("written again");
    }
    client.one(Request::Flush).expect("flushed");
    assert!(unreadable(&mut client, &data).is_empty());
    lab.ashlar(&["pool", "damage"]).expect_ok();
    lab.ashlar(&["pool", "scrub", "--wait"]).expect_ok();
    // Drives with so many errors may have been emptied meanwhile.
    let status = lab.json(&["pool", "status"]);
    assert_eq!((&status["damaged_segments"], &status["redundancy"]["lost"]), (&0.into(), &0.into()), "{status}");
    assert!(!alerts(&lab).contains(&"pool.damaged".to_owned()), "{status}");
    expect_sound(&lab);
}

/// Too many drives are gone. The pool is not served, but read: what can be had is right, the rest is listed, nothing can be changed.
#[test]
fn what_is_left_of_a_pool_can_be_copied_off() {
    let lab = Lab::up(&["--disks", "8", "--disk-size", "256M", "--tolerance", "single", "--memory", "256M"]);
    create(&lab, "data", "64M");
    attach(&lab, "data", &["nbd"]);
    let data = noise(3);
    let mut client = Client::connect(&nbd_socket(&lab), "data").expect("the export");
    write_all(&mut client, &data);
    drop(client);
    lab.lab("stop", &[]).expect_ok();
    let away = |disk: u32| lab.dir().join(format!("disks/disk{disk}.img"));
    for disk in [2, 5] {
        std::fs::rename(away(disk), away(disk).with_extension("away")).expect("moved away");
    }
    let refused = lab.lab("start", &[]);
    assert!(!refused.ok() && refused.stderr.contains("2 of 8 disks are gone"), "{refused}");
    lab.lab("start", &["--read-only"]).expect_ok();
    let status = lab.json(&["pool", "status"]);
    assert_eq!(status["health"], "critical", "{status}");
    assert!(alerts(&lab).contains(&"pool.read_only".to_owned()), "{status}");
    // Attached as it was, and to be read only.
    let mut client = Client::connect(&nbd_socket(&lab), "data").expect("the export");
    let lost = unreadable(&mut client, &data);
    let damage = lab.ashlar(&["-o", "json", "pool", "damage"]);
    let bytes = damage.json()["bytes"].as_u64();
    assert_eq!(bytes, Some(lost.len() as u64 * BLOCK as u64), "{damage}");
    assert!(client.one(Request::Write { offset: 0, data: vec![1; BLOCK], fua: true }).is_err());
    let refused = lab.ashlar(&["volume", "create", "more", "--size", "1M"]);
    assert!(!refused.ok() && refused.stderr.contains("for reading only"), "{refused}");
    drop(client);
    lab.lab("stop", &[]).expect_ok();
    for disk in [2, 5] {
        std::fs::rename(away(disk).with_extension("away"), away(disk)).expect("back");
    }
    lab.lab("start", &[]).expect_ok();
    let mut client = Client::connect(&nbd_socket(&lab), "data").expect("the export");
    assert!(unreadable(&mut client, &data).is_empty());
    expect_sound(&lab);
}
