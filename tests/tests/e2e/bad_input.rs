//! Wrong commands, damaged and foreign disks: clear messages, documented exit codes, nothing changed.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ashlar_tests::Lab;
use ashlar_tests::ashlar;
use ashlar_tests::lab::LIMIT;
use ashlar_tests::process::run;
use ashlar_tests::require::{Need, met};

use crate::history::{Random, bytes_of};
use crate::nbd::{Client, Request};
use crate::tools::{SMALL, alerts, attach, create, expect_refused, expect_sound, nbd_socket, shell};

/// Bytes of a disk.
const DISK: u64 = 512 << 20;
/// Bytes at each end of a disk that are damaged to take its label.
const LABEL: u64 = 64 << 10;

/// What the volume of these tests holds.
fn data() -> Vec<u8> {
    (1..=512).flat_map(bytes_of).collect()
}

/// A laboratory with a volume that has some data, and copies of its disks while it was stopped.
struct Fixture {
    lab: Lab,
}

impl Fixture {
    fn new() -> Self {
        let lab = Lab::up(SMALL);
        create(&lab, "data", "64M");
        attach(&lab, "data", &["nbd"]);
        let mut client = Client::connect(&nbd_socket(&lab), "data").expect("the export");
        client.one(Request::Write { offset: 0, data: data(), fua: true }).expect("a write");
        drop(client);
        lab.lab("stop", &[]).expect_ok();
        shell("cp -r --sparse=always \"$1/disks\" \"$1/kept\"", &[lab.dir()]).expect_ok();
        std::fs::copy(lab.dir().join("ashlar.toml"), lab.dir().join("kept.toml")).expect("a copy of the configuration");
        Self { lab }
    }

    fn disk(&self, index: usize) -> PathBuf {
        self.lab.dir().join(format!("disks/disk{index}.img"))
    }

    /// Everything as it was when the laboratory was stopped first.
    fn put_back(&self) {
        let script = "cd \"$1\"; rm -f disks/*; cp --sparse=always kept/* disks/; cp kept.toml ashlar.toml";
        shell(script, &[self.lab.dir()]).expect_ok();
    }

    /// Puts other disks in place of the sixth in the configuration.
    fn configure(&self, disks: &[&Path]) {
        let kept = std::fs::read_to_string(self.lab.dir().join("kept.toml")).expect("the configuration");
        let listed: Vec<String> = disks.iter().map(|disk| format!("{:?}", disk.display().to_string())).collect();
        let changed = kept.replace("\"disks/disk5.img\"", &listed.join(", "));
        assert_ne!(changed, kept, "the configuration has another form");
        std::fs::write(self.lab.dir().join("ashlar.toml"), changed).expect("the configuration");
    }

    /// The start is refused; the disks hold afterwards what they held before.
    #[track_caller]
    fn start_is_refused(&self, code: i32, message: &str) {
        expect_refused(self.lab.lab("start", &[]), code, message);
        assert!(self.lab.daemons().is_empty());
    }

    /// It starts, and the data is there; gives the state of each disk. It is stopped again.
    #[track_caller]
    fn starts(&self, health: &str, alert: Option<&str>) -> Vec<String> {
        self.lab.lab("start", &[]).expect_ok();
        let status = self.lab.json(&["pool", "status"]);
        assert_eq!(status["health"], health, "{status}");
        assert_eq!(alerts(&self.lab).iter().any(|code| Some(code.as_str()) == alert), alert.is_some(), "{status}");
        let mut client = Client::connect(&nbd_socket(&self.lab), "data").expect("the export");
        let read = client.one(Request::Read { offset: 0, len: data().len() as u32 }).expect("a read");
        assert!(read == data(), "the data is not what was written");
        client.one(Request::Write { offset: 32 << 20, data: data(), fua: true }).expect("a write");
        drop(client);
        expect_sound(&self.lab);
        let disks = self.lab.json(&["disk", "list"]);
        self.lab.lab("stop", &[]).expect_ok();
        let state = |disk: &serde_json::Value| disk["state"].as_str().unwrap_or_default().to_owned();
        disks.as_array().expect("disks").iter().map(state).collect()
    }
}

/// Overwrites parts of a file with noise.
fn damage(path: &Path, at: &[u64]) {
    let file = OpenOptions::new().write(true).open(path).expect("a disk's file");
    let mut random = Random::new(at.len() as u64);
    for offset in at {
        let noise: Vec<u8> = (0..LABEL).map(|_| random.next() as u8).collect();
        file.write_all_at(&noise, *offset).expect("writing noise");
    }
}

/// A checksum of a file's contents.
fn sum(path: &Path) -> String {
    shell("cksum < \"$1\"", &[path]).expect_ok().stdout
}

#[test]
fn damaged_labels_are_survived_up_to_the_tolerance() {
    let fixture = Fixture::new();
    let both = [0, DISK - LABEL];
    // One of the two labels of each disk is enough.
    for index in 0..6 {
        damage(&fixture.disk(index), &[both[index % 2]]);
    }
    assert_eq!(fixture.starts("healthy", None), ["online"; 6]);
    assert_eq!(fixture.starts("healthy", None), ["online"; 6]);

    fixture.put_back();
    damage(&fixture.disk(1), &both);
    damage(&fixture.disk(3), &both);
    let states = fixture.starts("degraded", Some("disk.missing"));
    assert_eq!(states, ["online", "missing", "online", "missing", "online", "online"]);

    fixture.put_back();
    for index in [0, 1, 3] {
        damage(&fixture.disk(index), &both);
    }
    let before: Vec<String> = (0..6).map(|index| sum(&fixture.disk(index))).collect();
    fixture.start_is_refused(9, "disk0.img has no Ashlar label");
    fixture.start_is_refused(9, "3 of 6 disks are gone, more than the tolerance of 2");
    let after: Vec<String> = (0..6).map(|index| sum(&fixture.disk(index))).collect();
    assert_eq!(after, before, "a refused start changed the disks");
    // With one of them back it goes again.
    std::fs::copy(fixture.lab.dir().join("kept/disk0.img"), fixture.disk(0)).expect("the disk put back");
    fixture.starts("degraded", Some("disk.missing"));

    fixture.put_back();
    for index in 0..6 {
        damage(&fixture.disk(index), &both);
    }
    expect_refused(fixture.lab.lab("start", &[]), 3, "no Ashlar label");
}

#[test]
fn truncated_and_missing_disks_are_survived_up_to_the_tolerance() {
    let fixture = Fixture::new();
    let truncate = |index: usize, len: u64| {
        let file = OpenOptions::new().write(true).open(fixture.disk(index)).expect("a disk's file");
        file.set_len(len).expect("truncating");
    };
    truncate(0, DISK / 2);
    std::fs::remove_file(fixture.disk(4)).expect("removing a disk");
    let states = fixture.starts("degraded", None);
    assert_eq!((states[0].as_str(), states[4].as_str()), ("missing", "missing"));

    fixture.put_back();
    truncate(0, 0);
    truncate(4, 4096);
    let states = fixture.starts("degraded", Some("disk.missing"));
    // The second has its first label still, and nothing is written to it.
    assert_eq!((states[0].as_str(), states[4].as_str()), ("missing", "missing"));
    let kept = std::fs::read(fixture.lab.dir().join("kept/disk4.img")).expect("the disk as it was");
    assert!(std::fs::read(fixture.disk(4)).expect("the truncated disk") == kept[..4096], "it was written to");

    fixture.put_back();
    for index in 0..3 {
        truncate(index, DISK / 2);
    }
    let before: Vec<String> = (0..6).map(|index| sum(&fixture.disk(index))).collect();
    fixture.start_is_refused(9, "3 of 6 disks are gone");
    fixture.start_is_refused(9, &format!("disk2.img was truncated: it has {} bytes, {DISK} when", DISK / 2));
    let after: Vec<String> = (0..6).map(|index| sum(&fixture.disk(index))).collect();
    assert_eq!(after, before, "a refused start changed the disks");
    // With the others back everything is there.
    for index in 0..3 {
        let kept = fixture.lab.dir().join(format!("kept/disk{index}.img"));
        std::fs::copy(kept, fixture.disk(index)).expect("the disk put back");
    }
    fixture.starts("healthy", None);
}

#[test]
fn disks_of_another_pool_and_copies_are_refused() {
    let fixture = Fixture::new();
    let other = Lab::up(&["--disks", "2", "--disk-size", "512M", "--name", "other"]);
    let foreign = other.dir().join("disks/disk1.img");
    // While it is in use, and when it is not; in place of a disk, and besides all of them.
    for disks in [&[foreign.as_path()][..], &[foreign.as_path(), &fixture.disk(5)]] {
        fixture.configure(disks);
        fixture.start_is_refused(4, "already in use by another process");
    }
    other.lab("stop", &[]).expect_ok();
    let before = (sum(&foreign), sum(&fixture.disk(0)));
    for disks in [&[foreign.as_path()][..], &[foreign.as_path(), &fixture.disk(5)], &[&fixture.disk(5), &foreign]] {
        fixture.configure(disks);
        fixture.start_is_refused(2, "to pool other");
    }
    // A new pool does not take it either, without being told to.
    let create = |force: &[&str]| {
        let mut command = std::process::Command::new(ashlar());
        run(command.args(["pool", "create", "third", "--disk"]).arg(&foreign).args(force), LIMIT)
    };
    let refused = create(&[]).expect_failure();
    assert!(refused.stderr.contains("--force") || refused.stderr.contains("force"), "{refused}");
    assert_eq!((sum(&foreign), sum(&fixture.disk(0))), before, "refused disks were written to");
    other.lab("start", &[]).expect_ok();
    assert_eq!(other.json(&["pool", "status"])["health"], "healthy");

    // A copy beside its original, and the same twice.
    let copy = fixture.lab.dir().join("copy.img");
    shell("cp --sparse=always \"$1\" \"$2\"", &[&fixture.disk(5), &copy]).expect_ok();
    fixture.configure(&[&fixture.disk(5), &copy]);
    fixture.start_is_refused(2, "one is a copy");
    fixture.configure(&[&fixture.disk(5), &fixture.disk(5)]);
    fixture.start_is_refused(4, "disk5.img");
    // An image of something else.
    let noise = fixture.lab.dir().join("noise.img");
    File::create(&noise).and_then(|file| file.set_len(DISK)).expect("a file");
    damage(&noise, &[0, DISK - LABEL]);
    let before = sum(&noise);
    fixture.configure(&[&fixture.disk(5), &noise]);
    assert_eq!(fixture.starts("healthy", None), ["online"; 6]);
    assert_eq!(sum(&noise), before, "a foreign file was written to");

    // An older copy in place of a disk is not used.
    fixture.configure(&[&copy]);
    let states = fixture.starts("degraded", Some("disk.failed"));
    assert_eq!(states[5], "failed", "{states:?}");
    fixture.configure(&[&fixture.disk(5)]);
    fixture.starts("healthy", None);
}

#[test]
fn wrong_commands_change_nothing() {
    let lab = Lab::up(SMALL);
    create(&lab, "data", "64M");
    let uri = attach(&lab, "data", &["nbd"]);
    create(&lab, "other", "1G");
    let disk = lab.dir().join("disks/disk0.img").display().to_string();
    let config = lab.dir().join("ashlar.toml").display().to_string();
    let state = || {
        let mut status = lab.json(&["pool", "status"]);
        // What background work may change.
        status["used"].take();
        status["available"].take();
        (lab.json(&["volume", "list"]), status)
    };
    let before = state();
    for (line, code, message) in [
        ("volume show nothing", 3, "there is no volume 'nothing'"),
        ("volume delete nothing", 3, "there is no volume 'nothing'"),
        ("volume detach nothing", 3, "there is no volume 'nothing'"),
        ("volume detach other", 3, "not attached"),
        ("volume attach nothing --via nbd", 3, "there is no volume 'nothing'"),
        ("volume attach data --via fuse", 4, "one protocol at a time"),
        ("volume attach data --via nbd --loop", 2, "--via fuse"),
        ("volume attach data --via iscsi", 2, "possible values"),
        ("volume attach other --via ublk --loop", 2, "--via fuse"),
        ("volume delete data", 4, "detach it first"),
        ("volume create data --size 1G", 4, "exists already"),
        ("volume create new", 2, "--size"),
        ("volume create new --size 0", 2, "size of 0"),
        ("volume create new --size 5000", 2, "multiple of 4096"),
        ("volume create new --size=-4096", 2, "not a size"),
        ("volume create new --size 300T", 2, "256 TiB"),
        ("volume create new --size 99999999999999999999999G", 2, "too large"),
        ("volume create new --size many", 2, "not a size"),
        ("volume create ../new --size 1G", 2, "cannot be the name"),
        ("volume create .new --size 1G", 2, "cannot be the name"),
        ("volume resize data --size 1M", 2, "--shrink"),
        ("volume resize data --size 0 --shrink", 2, "size of 0"),
        ("volume resize data --size +300T", 2, "256 TiB"),
        ("volume resize nothing --size 1G", 3, "there is no volume 'nothing'"),
        ("lab disk-pull --dir {dir} 6", 3, "there is no disk '6'"),
        ("lab disk-push --dir {dir} disk9.img", 3, "there is no disk 'disk9.img'"),
        ("lab disk-slow --dir {dir} 0", 2, "--delay"),
        ("lab disk-slow --dir {dir} 0 --delay 20", 2, "the unit is missing"),
        ("lab disk-slow --dir {dir} 0 --delay 61s", 2, "at most 60 s"),
        ("lab disk-slow --dir {dir} 6 --delay 1ms", 3, "there is no disk '6'"),
        ("lab disk-corrupt --dir {dir} 6", 3, "there is no disk '6'"),
        ("lab disk-corrupt --dir {dir} 0 --count 0", 2, "not 0"),
        ("lab disk-corrupt --dir {dir} 0 --count 100001", 2, "not 100001"),
        ("lab disk-corrupt --dir {dir} 0 --bytes 2M", 2, "not 2097152"),
        ("lab disk-corrupt --dir {dir} 0 --bytes 1M --count 1025", 2, "at a time"),
        ("lab disk-corrupt --dir {dir} 0 --seed x", 2, "invalid"),
        ("disk show 6", 3, "there is no disk '6'"),
        ("disk show", 2, "required"),
        ("disk keep 0", 2, "is not being removed"),
        ("disk keep 6", 3, "there is no disk '6'"),
        ("disk replace 6 /nonexistent/disk", 3, "there is no disk '6'"),
        ("disk replace 0 /nonexistent/disk", 3, "nothing was changed"),
        ("disk replace 0 {disk}", 2, "itself"),
        ("lab up --dir {dir} --disks 3", 4, "disks 6, not 3"),
        ("job show 77", 3, "77"),
        ("pool create new --disk {disk}", 4, "in use"),
        ("pool create new --disk {disk} {disk}", 2, "named twice"),
        ("lab up --dir {dir}-new --disk-size 1M", 2, "MiB is the least"),
        ("lab up --dir {dir}-new --disk-size 0", 2, "size of 0"),
        ("lab up --dir {dir}-new --memory 100P", 2, "of this machine"),
        ("pool create new --disk /nonexistent/disk", 3, "/nonexistent/disk"),
        ("serve", 4, "serves this appliance already"),
        ("serve --config {config}", 4, "in use"),
        ("serve --config /nonexistent/ashlar.toml", 3, "/nonexistent/ashlar.toml"),
        ("no-such-command", 2, "no-such-command"),
    ] {
        let filled = line.replace("{dir}", &lab.dir().display().to_string()).replace("{disk}", &disk);
        let filled = filled.replace("{config}", &config);
        let output = lab.ashlar(&filled.split(' ').collect::<Vec<_>>());
        assert!(output.stdout.is_empty(), "an answer to a wrong command: {output}");
        expect_refused(output, code, message);
        // The same for scripts.
        let output = lab.ashlar(&filled.split(' ').chain(["-o", "json"]).collect::<Vec<_>>());
        assert!(output.stdout.is_empty() && output.status.code() == Some(code), "{filled}: {output}");
        let answer = output.stderr.lines().find_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let told = answer.as_ref().and_then(|answer| answer["error"]["message"].as_str());
        assert!(told.is_some_and(|told| told.contains(message)), "{filled}: {output}");
    }
    // A name that is too long, and one with a character no terminal shows.
    for name in ["n".repeat(64), "a\u{7}b".to_owned(), "ä".to_owned(), String::new()] {
        expect_refused(lab.ashlar(&["volume", "create", &name, "--size", "1G"]), 2, "");
    }
    assert_eq!(state(), before, "a refused command changed something");
    assert!(!std::path::Path::new(&format!("{}-new", lab.dir().display())).exists(), "a refused laboratory is there");
    assert_eq!(attach(&lab, "data", &["nbd"]), uri);
    assert_eq!(lab.daemons().len(), 1);

    // Requests no command makes: the API answers with an error, too.
    if met("wrong_commands_change_nothing (the API)", &[Need::Tool("curl")]) {
        let socket = lab.dir().join("run/api.sock").display().to_string();
        for (method, path, body, expected) in [
            ("GET", "/v1/nothing", "", "404"),
            ("POST", "/v1/volumes", "{\"name\":\"x\"", "400"),
            ("POST", "/v1/volumes", "{\"name\":\"x\",\"size\":-1}", "4"),
            ("POST", "/v1/volumes", "{\"name\":\"../x\",\"size\":4096}", "400"),
            ("POST", "/v1/volumes", "{\"name\":\"x\",\"size\":4097}", "400"),
            ("POST", "/v1/volumes", "{\"name\":\"x\",\"size\":18446744073709551615}", "400"),
            ("DELETE", "/v1/volumes/%2e%2e%2fx", "", "4"),
            ("PUT", "/v1/volumes/data/attachment", "{\"via\":\"iscsi\"}", "4"),
        ] {
            let script = "curl -s -o /dev/null -w '%{http_code}' --unix-socket \"$1\" -X \"$2\" \
                -H 'content-type: application/json' ${4:+--data \"$4\"} \"http://localhost$3\"";
            let answer = shell(script, &[&socket, method, path, body]).expect_ok();
            assert!(answer.stdout.starts_with(expected), "{method} {path} {body}: {answer}");
        }
        assert_eq!(state(), before, "a refused request changed something");
    }
}
