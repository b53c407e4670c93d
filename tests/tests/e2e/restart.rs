//! What is presented is presented again after a restart.

use std::os::unix::fs::FileExt;

use ashlar_tests::Lab;
use ashlar_tests::require::{Need, met};

use crate::nbd::{Client, Request};
use crate::tools::{SMALL, attach, create, nbd_socket, tool};

/// Name, size and presentation of each volume; how much of it is mapped follows the writes with some delay.
fn volumes(lab: &Lab) -> Vec<[serde_json::Value; 3]> {
    let volumes = lab.json(&["volume", "list"]);
    let volumes = volumes.as_array().expect("volumes");
    volumes.iter().map(|v| ["name", "size", "attachment"].map(|key| v[key].clone())).collect()
}

#[test]
fn attachments_come_back_after_a_restart() {
    let fuse = met("attachments_come_back_after_a_restart (the FUSE half)", &[Need::Fuse, Need::Root]);
    let lab = Lab::up(SMALL);
    create(&lab, "by-nbd", "64M");
    attach(&lab, "by-nbd", &["nbd"]);
    create(&lab, "by-nothing", "64M");
    let mut client = Client::connect(&nbd_socket(&lab), "by-nbd").expect("the NBD export");
    client.one(Request::Write { offset: 5000, data: vec![3; 9000], fua: false }).expect("a write");
    let path = fuse.then(|| {
        create(&lab, "by-fuse", "64M");
        attach(&lab, "by-fuse", &["fuse"])
    });
    if let Some(path) = &path {
        let file = std::fs::OpenOptions::new().write(true).open(path).expect("the volume's file");
        file.write_all_at(&[4; 9000], 7000).expect("a write");
    }
    // Nothing was flushed: an orderly stop is one.
    let before = volumes(&lab);
    drop(client);
    lab.lab("stop", &[]).expect_ok();
    assert!(lab.daemons().is_empty(), "the daemon lives on");
    if let Some(path) = &path {
        assert!(!std::path::Path::new(path).exists(), "{path} outlives its daemon");
    }
    lab.lab("start", &[]).expect_ok();
    assert_eq!(volumes(&lab), before);
    let mut client = Client::connect(&nbd_socket(&lab), "by-nbd").expect("the NBD export again");
    assert_eq!(client.size, 64 << 20);
    let read = client.one(Request::Read { offset: 4999, len: 9002 }).expect("a read");
    assert!(read[0] == 0 && read[9001] == 0 && read[1..9001].iter().all(|b| *b == 3), "what was written is not there");
    assert!(Client::connect(&nbd_socket(&lab), "by-nothing").is_err(), "a volume that is not attached is exported");
    if let Some(path) = &path {
        let mut read = vec![0; 9002];
        let file = std::fs::File::open(path).expect("the volume's file again");
        file.read_exact_at(&mut read, 6999).expect("a read");
        assert!(
            read[0] == 0 && read[9001] == 0 && read[1..9001].iter().all(|b| *b == 4),
            "what was written is not there"
        );
    }
}

#[test]
fn loop_devices_come_back_after_a_restart() {
    let needs = [Need::Root, Need::Fuse, Need::Loop, Need::Tool("losetup"), Need::Tool("blockdev")];
    if !met("loop_devices_come_back_after_a_restart", &needs) {
        return;
    }
    let lab = Lab::up(SMALL);
    create(&lab, "data", "64M");
    let device = attach(&lab, "data", &["fuse", "--loop"]);
    std::fs::OpenOptions::new()
        .write(true)
        .open(&device)
        .and_then(|file| file.write_all_at(&[5; 8192], 4096).and_then(|()| file.sync_all()))
        .expect("a write to the device");
    lab.lab("stop", &[]).expect_ok();
    let backing = tool("losetup", &["-n", "-O", "BACK-FILE"]).expect_ok().stdout;
    assert!(!backing.contains(&*lab.dir().to_string_lossy()), "a loop device is left: {backing}");
    lab.lab("start", &[]).expect_ok();
    let shown = lab.json(&["volume", "show", "data"]);
    let device = shown["attachment"]["device"].as_str().unwrap_or_else(|| panic!("no device: {shown}")).to_owned();
    let mut read = vec![0; 8192];
    std::fs::File::open(&device).and_then(|file| file.read_exact_at(&mut read, 4096)).expect("a read");
    assert!(read.iter().all(|b| *b == 5));
    // Resized while in use: the device follows.
    lab.ashlar(&["volume", "resize", "data", "--size", "96M"]).expect_ok();
    let size = tool("blockdev", &["--getsize64", &device]).expect_ok();
    assert_eq!(size.stdout.trim(), (96u64 << 20).to_string());
}
