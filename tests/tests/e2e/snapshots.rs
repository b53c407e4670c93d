//! Snapshots, clones, restored and refreshed volumes, as people use them and through the tools of other projects, with kills in between.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use ashlar_tests::Lab;
use ashlar_tests::require::{Need, met};

use crate::history::bytes_of;
use crate::nbd::{Client, Request};
use crate::tools::{SMALL, attach, create, detach, expect_sound, nbd_socket, shell, tool};

/// Generations that are written and kept.
const GENERATIONS: usize = 6;

/// Commands of qemu-io that write what nothing else wrote, and discard a little, to places that follow from the generation.
fn changes(generation: usize) -> String {
    let mut script = String::new();
    for i in 0..24u64 {
        let place = (i * 7 + generation as u64 * 13) * 5 % 480;
        let pattern = (generation as u64 * 24 + i) % 255 + 1;
        script.push_str(&format!(" -c 'write -P {pattern} {}k 100k'", place * 64));
    }
    script.push_str(&format!(" -c 'discard {}k 256k' -c flush", generation % 15 * 2048));
    script
}

fn change(uri: &str, generation: usize) {
    shell(&format!("qemu-io -f raw -d unmap {} \"$1\"", changes(generation)), &[uri]).expect_ok();
}

fn same(file: &str, uri: &str) {
    tool("qemu-img", &["compare", "-f", "raw", "-F", "raw", file, uri]).expect_ok();
}

/// A copy of a volume as it is now.
fn copy(lab: &Lab, uri: &str, name: &str) -> String {
    let file = lab.dir().join(format!("{name}.raw")).display().to_string();
    tool("nbdcopy", &[uri, &file]).expect_ok();
    file
}

#[test]
fn snapshots_hold_what_was_and_go_in_any_order() {
    let tools = ["qemu-img", "qemu-io", "nbdcopy"].map(Need::Tool);
    if !met("snapshots_hold_what_was_and_go_in_any_order", &tools) {
        return;
    }
    let lab = Lab::up(SMALL);
    create(&lab, "v", "32M");
    let uri = attach(&lab, "v", &["nbd"]);
    let mut copies = Vec::new();
    for generation in 0..GENERATIONS {
        change(&uri, generation);
        copies.push(copy(&lab, &uri, &format!("generation{generation}")));
        lab.ashlar(&["snapshot", "create", &format!("v@g{generation}")]).expect_ok();
        if generation == 2 {
            lab.lab("kill", &[]).expect_ok();
            lab.lab("start", &[]).expect_ok();
        }
    }
    change(&uri, GENERATIONS);
    let live = copy(&lab, &uri, "live");
    assert_eq!(lab.json(&["snapshot", "list", "v"]).as_array().map(Vec::len), Some(GENERATIONS));
    assert_eq!(lab.json(&["volume", "show", "v"])["snapshots"], GENERATIONS);

    // What changed is told, to scripts and by NBD, and nothing else.
    for (older, newer) in [(0, 1), (1, 4), (4, 2)] {
        let (a, b) = (std::fs::read(&copies[older]).expect("a copy"), std::fs::read(&copies[newer]).expect("a copy"));
        let changes = lab.json(&["volume", "diff", &format!("v@g{older}"), &format!("v@g{newer}")]);
        let number = |range: &serde_json::Value, key: &str| range[key].as_u64().expect("a number") as usize;
        let mut told = vec![false; a.len() / 4096];
        for range in changes["ranges"].as_array().expect("ranges") {
            let (offset, len) = (number(range, "offset"), number(range, "len"));
            told[offset / 4096..(offset + len) / 4096].fill(true);
        }
        let differs = |block: usize| a[block * 4096..][..4096] != b[block * 4096..][..4096];
        for (block, told) in told.iter().enumerate() {
            assert!(*told || !differs(block), "block {block} differs between generations {older} and {newer}");
        }
        let (told, all) = (told.iter().filter(|told| **told).count(), (0..told.len()).filter(|b| differs(*b)).count());
        assert!(all > 0 && told <= all * 11 / 10, "{told} blocks are told for {all} that differ");
    }
    assert_eq!(lab.json(&["volume", "diff", "v@g2", "v@g2"])["ranges"].as_array().map(Vec::len), Some(0));

    // A snapshot that is attached is read like a volume, is not written to, does not go, and is there again after a kill.
    for (generation, file) in copies.iter().enumerate() {
        let name = format!("v@g{generation}");
        same(file, &attach(&lab, &name, &["nbd"]));
    }
    let refused = tool("qemu-io", &["-f", "raw", "-c", "write 0 4k", &attach(&lab, "v@g1", &["nbd"])]);
    assert!(!refused.expect_failure().stdout.contains("wrote"), "a snapshot was written to");
    let busy = lab.ashlar(&["snapshot", "delete", "v@g1"]).expect_failure();
    assert!(busy.stderr.contains("detach it first"), "{busy}");
    lab.lab("kill", &[]).expect_ok();
    lab.lab("start", &[]).expect_ok();
    same(&copies[1], &attach(&lab, "v@g1", &["nbd"]));
    for generation in 0..GENERATIONS {
        detach(&lab, &format!("v@g{generation}"));
    }
    // By FUSE, too.
    let file = PathBuf::from(attach(&lab, "v@g3", &["fuse"]));
    assert!(
        std::fs::read(&file).expect("the snapshot") == std::fs::read(&copies[3]).expect("the copy"),
        "not the same"
    );
    assert!(std::fs::OpenOptions::new().write(true).open(&file).is_err(), "a snapshot was opened for writing");
    detach(&lab, "v@g3");

    // Written to under a name of its own it stays as it is; what cannot be presented leaves nothing behind.
    let writable = |name: &str, extra: &[&str]| {
        let words = ["volume", "attach", "v@g1", "--via", "nbd", "--writable-as", name];
        lab.ashlar(&[&words[..], extra].concat())
    };
    let trial = writable("trial", &[]).expect_ok().stdout.trim().to_owned();
    same(&copies[1], &trial);
    tool("qemu-io", &["-f", "raw", "-c", "write -P 7 0 64k", &trial]).expect_ok();
    same(&copies[1], &attach(&lab, "v@g1", &["nbd"]));
    detach(&lab, "v@g1");
    detach(&lab, "trial");
    lab.ashlar(&["volume", "delete", "trial"]).expect_ok();
    writable("gone", &["--loop"]).expect_failure();
    let plain = lab.ashlar(&["volume", "attach", "v", "--via", "nbd", "--writable-as", "gone"]).expect_failure();
    assert!(plain.stderr.contains("snapshot"), "{plain}");
    assert!(!lab.ashlar(&["volume", "list"]).expect_ok().stdout.contains("gone"), "a clone was left");

    // Clones go their own way.
    lab.ashlar(&["volume", "clone", "v@g2", "c"]).expect_ok();
    let clone = attach(&lab, "c", &["nbd"]);
    same(&copies[2], &clone);
    change(&clone, 40);
    let changed = copy(&lab, &clone, "clone");
    assert_eq!(lab.json(&["volume", "show", "c"])["origin"], "v@g2");
    same(&live, &uri);

    // Every second one goes, with one that has a clone among them.
    for generation in [2, 4, 0] {
        lab.ashlar(&["snapshot", "delete", &format!("v@g{generation}")]).expect_ok();
    }
    lab.lab("kill", &[]).expect_ok();
    lab.lab("start", &[]).expect_ok();
    expect_sound(&lab);
    same(&live, &attach(&lab, "v", &["nbd"]));
    same(&changed, &attach(&lab, "c", &["nbd"]));
    for generation in [1, 3, 5] {
        let name = format!("v@g{generation}");
        same(&copies[generation], &attach(&lab, &name, &["nbd"]));
        detach(&lab, &name);
    }

    // Back, and forth again.
    let attached = lab.ashlar(&["volume", "restore", "v@g1"]).expect_failure();
    assert!(attached.stderr.contains("detach it first"), "{attached}");
    detach(&lab, "v");
    detach(&lab, "c");
    lab.ashlar(&["volume", "restore", "v@g1", "--keep", "late"]).expect_ok();
    same(&copies[1], &attach(&lab, "v", &["nbd"]));
    detach(&lab, "v");
    lab.ashlar(&["volume", "restore", "v@late", "--no-keep"]).expect_ok();
    same(&live, &attach(&lab, "v", &["nbd"]));
    detach(&lab, "v");
    lab.ashlar(&["volume", "refresh", "c", "--from", "v"]).expect_ok();
    same(&live, &attach(&lab, "c", &["nbd"]));
    detach(&lab, "c");
    let kept = lab.json(&["snapshot", "list", "c"]);
    let kept = kept[0]["name"].as_str().expect("a safety snapshot").to_owned();
    assert!(kept.starts_with("c@before-refresh-"), "{kept}");
    lab.ashlar(&["volume", "refresh", "v", "--from", &kept, "--no-keep"]).expect_ok();
    same(&changed, &attach(&lab, "v", &["nbd"]));
    detach(&lab, "v");
    create(&lab, "stranger", "32M");
    let stranger = lab.ashlar(&["volume", "refresh", "stranger", "--from", "v"]).expect_failure();
    assert!(stranger.stderr.contains("nothing in common"), "{stranger}");
    expect_sound(&lab);

    // When all is deleted nothing is left.
    let some = lab.ashlar(&["volume", "delete", "v"]).expect_failure();
    assert!(some.stderr.contains("snapshots"), "{some}");
    lab.ashlar(&["volume", "delete", "v", "--with-snapshots"]).expect_ok();
    lab.ashlar(&["volume", "delete", "c", "--with-snapshots"]).expect_ok();
    let unique = || lab.json(&["pool", "status"])["reduction"]["unique"].as_u64();
    let mut rounds = 0;
    while unique() != Some(0) {
        rounds += 1;
        assert!(rounds < 300, "{:?} bytes are left", unique());
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    expect_sound(&lab);
}

/// The script in the documentation, as it is run by people.
struct Backups<'a> {
    lab: &'a Lab,
    dir: String,
}

impl<'a> Backups<'a> {
    fn of(lab: &'a Lab) -> Self {
        Self { lab, dir: lab.dir().join("backups").display().to_string() }
    }

    fn run(&self, verb: &str, volume: &str, before: &str) -> ashlar_tests::process::Output {
        let script = ashlar_tests::binary::workspace().join("tools/backup/incremental.sh").display().to_string();
        let program = ashlar_tests::binary::ashlar().display().to_string();
        let line = format!("{before}ASHLAR=$1 ASHLAR_DIR=$2 bash \"$3\" \"$4\" \"$5\" \"$6\"");
        shell(&line, &[&program, &self.lab.dir().display().to_string(), &script, verb, volume, &self.dir])
    }

    fn names(&self) -> Vec<String> {
        let all = std::fs::read_dir(&self.dir).expect("backups").map(|e| e.expect("an entry").file_name());
        let mut all: Vec<String> = all.map(|name| name.to_string_lossy().into_owned()).collect();
        all.sort_unstable();
        all
    }

    /// The newest that counts.
    fn last(&self) -> String {
        let name = self.names().into_iter().rfind(|name| name.ends_with(".qcow2")).expect("a backup");
        name.trim_end_matches(".qcow2").to_owned()
    }

    /// Bytes that the newest has of its own.
    fn own(&self) -> u64 {
        let image = format!("{}/{}.qcow2", self.dir, self.last());
        let map = tool("qemu-img", &["map", "--output=json", &image]).expect_ok().json();
        let own = map.as_array().expect("extents").iter().filter(|e| e["depth"] == 0 && e["present"] != false);
        own.map(|e| e["length"].as_u64().expect("a length")).sum()
    }
}

/// The script backs a volume up, whole and then what changed only, and puts it back.
#[test]
fn an_incremental_backup_and_its_restore() {
    let tools = ["qemu-img", "qemu-io", "qemu-nbd", "nbdcopy", "nbdinfo", "mkfs.ext4", "jq"].map(Need::Tool);
    if !met("an_incremental_backup_and_its_restore", &tools) {
        return;
    }
    let lab = Lab::up(SMALL);
    let backups = Backups::of(&lab);
    create(&lab, "v", "96M");
    let uri = attach(&lab, "v", &["nbd"]);
    let image = lab.dir().join("ext4.img").display().to_string();
    let source = ashlar_tests::binary::workspace().join("blockdev/src").display().to_string();
    shell("truncate -s 96M \"$1\"; mkfs.ext4 -q -d \"$2\" \"$1\"", &[&image, &source]).expect_ok();
    tool("nbdcopy", &["--flush", &image, &uri]).expect_ok();
    backups.run("load", "v", "").expect_failure();
    backups.run("save", "v", "").expect_ok();
    for round in 0..3 {
        change(&uri, round);
        // By NBD, as other tools ask.
        let last = backups.last();
        let told = |namespace: &str| -> u64 {
            let map = format!("--map={namespace}:{last}");
            let map = tool("nbdinfo", &[map.as_str(), "--json", &uri]).expect_ok().json();
            let changed = map.as_array().expect("extents").iter().filter(|e| e["type"] == 1);
            changed.map(|e| e["length"].as_u64().expect("a length")).sum()
        };
        let (ours, qemu) = (told("ashlar:changed-since"), told("qemu:dirty-bitmap"));
        backups.run("save", "v", "").expect_ok();
        assert_eq!(ours, qemu);
        assert!((1 << 20..4 << 20).contains(&ours), "{ours} bytes for a change of 2.6 MiB");
        // The image is made of pieces of 64 KiB.
        assert!((1 << 20..12 << 20).contains(&backups.own()), "{} bytes for {ours}", backups.own());
        // Each shows the whole volume.
        let image = format!("{}/{}.qcow2", backups.dir, backups.last());
        tool("qemu-img", &["compare", "-q", "-f", "qcow2", "-F", "raw", &image, &uri]).expect_ok();
    }
    // One that is cut short by a full disk counts for nothing and leaves nothing, and the next one goes on from the one before it: also of what is as it was
    // by then.
    let before = copy(&lab, &uri, "before");
    change(&uri, 3);
    let counted = |all: &[String]| all.iter().filter(|name| !name.ends_with(".part")).count();
    let complete = counted(&backups.names());
    backups.run("save", "v", "ulimit -f 1; ").expect_failure();
    // Nor does one whose source goes in the middle.
    shell(
        "printf '#!/bin/sh\nexec \"$0.real\" \"$@\" | head -n 1' >\"$1\"; chmod +x \"$1\"",
        &[&lab.dir().join("qemu-io").display().to_string()],
    )
    .expect_ok();
    let real = ashlar_tests::require::find("qemu-io").expect("qemu-io").display().to_string();
    std::os::unix::fs::symlink(real, lab.dir().join("qemu-io.real")).expect("a link");
    backups.run("save", "v", &format!("export PATH='{}':$PATH; ", lab.dir().display())).expect_failure();
    assert_eq!(counted(&backups.names()), complete, "{:?}", backups.names());
    assert_eq!(lab.json(&["snapshot", "list", "v"]).as_array().map(Vec::len), Some(1));
    tool("nbdcopy", &["--flush", &before, &uri]).expect_ok();
    shell("qemu-io -f raw -c 'write -P 99 7M 64k' -c flush \"$1\"", &[&uri]).expect_ok();
    backups.run("save", "v", "").expect_ok();
    assert!(backups.names().iter().all(|name| !name.ends_with(".part")), "{:?}", backups.names());
    // Over whatever a volume held before.
    create(&lab, "back", "96M");
    change(&attach(&lab, "back", &["nbd"]), 7);
    lab.ashlar(&["volume", "detach", "back"]).expect_ok();
    backups.run("load", "back", "").expect_ok();
    let live = copy(&lab, &uri, "live");
    same(&live, &attach(&lab, "back", &["nbd"]));
    expect_sound(&lab);
}

/// A file system that is in use is backed up, and what is put back of it can be mounted.
#[test]
fn a_mounted_file_system_is_backed_up_and_its_restore_is_mounted() {
    let tools =
        ["qemu-img", "qemu-io", "qemu-nbd", "nbdcopy", "nbdinfo", "mkfs.ext4", "fsck.ext4", "jq"].map(Need::Tool);
    let needs: Vec<Need> = [Need::Root, Need::Fuse, Need::Loop].into_iter().chain(tools).collect();
    if !met("a_mounted_file_system_is_backed_up_and_its_restore_is_mounted", &needs) {
        return;
    }
    let lab = Lab::up(SMALL);
    let backups = Backups::of(&lab);
    create(&lab, "v", "256M");
    let device = attach(&lab, "v", &["fuse", "--loop"]);
    let mounted = |name: &str| lab.dir().join(name).display().to_string();
    let (fs, back) = (mounted("fs"), mounted("back"));
    shell("mkdir \"$2\" \"$3\"; mkfs.ext4 -q \"$1\"; mount \"$1\" \"$2\"", &[&device, &fs, &back]).expect_ok();
    let source = ashlar_tests::binary::workspace().join("blockdev/src").display().to_string();
    let mut own = Vec::new();
    for round in 0..3 {
        let work = "cp -r \"$1\" \"$2/copy$3\"; rm -rf \"$2/copy$(($3 - 2))\"; sync -f \"$2\"";
        shell(work, &[&source, &fs, &round.to_string()]).expect_ok();
        backups.run("save", "v", "").expect_ok();
        own.push(backups.own());
    }
    assert!(own[1] < own[0] * 3 && own[2] > 1 << 20, "{own:?} bytes");
    create(&lab, "w", "256M");
    backups.run("load", "w", "").expect_ok();
    let device = attach(&lab, "w", &["fuse", "--loop"]);
    // Of one instant: mounting replays its log, and then nothing is wrong with it.
    let look = "mount \"$1\" \"$3\"; diff -r --no-dereference \"$2\" \"$3\"; umount \"$3\"; fsck.ext4 -fn \"$1\"; umount \"$2\"";
    shell(look, &[&device, &fs, &back]).expect_ok();
    expect_sound(&lab);
}

/// Snapshots of several volumes are of one instant: what is written to one and then to the other is never in the second alone.
#[test]
fn snapshots_of_several_volumes_are_of_one_instant() {
    let lab = Lab::up(SMALL);
    let open = |name: &str| {
        attach(&lab, name, &["nbd"]);
        Client::connect(&nbd_socket(&lab), name).expect("connected")
    };
    let mut clients = ["a", "b"].map(|name| {
        create(&lab, name, "4M");
        open(name)
    });
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 0u64;
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                for client in &mut clients {
                    let mut data = vec![0; 4096];
                    data[..8].copy_from_slice(&number.to_le_bytes());
                    client.one(Request::Write { offset: 0, data, fua: false }).expect("written");
                }
            }
        });
        for round in 0..20 {
            lab.ashlar(&["snapshot", "create", &format!("a@s{round}"), &format!("b@s{round}")]).expect_ok();
        }
        stop.store(true, Ordering::Relaxed);
    });
    let mut last = 0;
    for round in 0..20 {
        let number = |volume: &str| {
            let name = format!("{volume}@s{round}");
            let mut client = open(&name);
            let data = client.one(Request::Read { offset: 0, len: 4096 }).expect("read");
            drop(client);
            detach(&lab, &name);
            u64::from_le_bytes(data[..8].try_into().expect("eight bytes"))
        };
        let (a, b) = (number("a"), number("b"));
        assert!(a == b || a == b + 1, "snapshot {round}: {a} in the first volume, {b} in the second");
        assert!(a >= last, "snapshot {round} is older than the one before it");
        last = a;
    }
    assert!(last > 20, "only {last} writes in all");
    expect_sound(&lab);
}

/// Ranges that differ come in pages: what the pages tell together is what the command tells.
#[test]
fn differences_come_page_by_page() {
    const STEP: u64 = 1 << 20;
    if !met("differences_come_page_by_page", &[Need::Tool("curl")]) {
        return;
    }
    let lab = Lab::up(SMALL);
    create(&lab, "v", "64M");
    attach(&lab, "v", &["nbd"]);
    let mut client = Client::connect(&nbd_socket(&lab), "v").expect("the export");
    let mut write = |at: u64, content: u64| {
        client.one(Request::Write { offset: at, data: bytes_of(content), fua: true }).expect("written");
    };
    (0..64).for_each(|n| write(n * STEP, n + 1));
    lab.ashlar(&["snapshot", "create", "v@s"]).expect_ok();
    let changed: Vec<u64> = (0..64).filter(|n| n % 3 != 1).collect();
    changed.iter().for_each(|n| write(n * STEP + 8192, n + 1000));
    let socket = lab.dir().join("run/api.sock").display().to_string();
    let (mut found, mut pages, mut offset) = (Vec::new(), 0, 0);
    loop {
        let url = format!("http://localhost/v1/volumes/v/changes?since=v@s&offset={offset}&limit=7");
        let answer = shell("curl -sS --fail --unix-socket \"$1\" \"$2\"", &[&socket, &url]).expect_ok().stdout;
        let page: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
        let ranges = page["ranges"].as_array().expect("ranges").clone();
        assert!(ranges.len() <= 7, "{page}");
        found.extend(ranges);
        pages += 1;
        match page["next"].as_u64() {
            Some(next) => offset = next,
            None => break,
        }
    }
    assert!(pages >= changed.len() / 7 && pages < 2 * changed.len(), "{pages} pages");
    let offsets: Vec<u64> = found.iter().filter_map(|r| r["offset"].as_u64()).collect();
    assert_eq!(offsets, changed.iter().map(|n| n * STEP + 8192).collect::<Vec<_>>());
    let all = lab.json(&["volume", "diff", "v@s", "v"]);
    assert_eq!(all["ranges"].as_array(), Some(&found));
    for wrong in ["limit=x", "offset=-1"] {
        let url = format!("http://localhost/v1/volumes/v/changes?since=v@s&{wrong}");
        shell("curl -sS --fail --unix-socket \"$1\" \"$2\"", &[&socket, &url]).expect_failure();
    }
}
