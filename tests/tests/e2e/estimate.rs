//! `ashlar estimate` on files, directories and devices with known shares of zeroes, duplicates and compressible data, and against what a real
//! pool makes of the same data.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use ashlar_tests::lab::{LIMIT, force_down};
use ashlar_tests::process::{signal, wait, wait_until};
use ashlar_tests::require::{Need, find, met};
use ashlar_tests::{Lab, Output, ashlar, run};
use serde_json::Value;

use crate::history::{BLOCK, Random, bytes_of};
use crate::nbd::{Client, Request};
use crate::tools::{attach, create, expect_refused, nbd_socket, shell};

const MIB: u64 = 1 << 20;
const BYTES: u64 = BLOCK as u64;

fn estimate<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Output {
    run(Command::new(ashlar()).args(["estimate", "-o", "json"]).args(arguments), LIMIT)
}

/// The answer of a command that must succeed.
#[track_caller]
fn figures<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Value {
    estimate(arguments).expect_ok().json()
}

/// A figure of bytes: value, low and high.
#[track_caller]
fn bytes(report: &Value, name: &str) -> (u64, u64, u64) {
    let part = |part: &str| report[name][part].as_u64().unwrap_or_else(|| panic!("no {name}.{part} in {report}"));
    (part("value"), part("low"), part("high"))
}

/// A figure that was counted.
#[track_caller]
fn counted(report: &Value, name: &str) -> u64 {
    let (value, low, high) = bytes(report, name);
    assert!(value == low && value == high, "{name} was not counted: {report}");
    value
}

fn noise(seed: u64, len: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..len / 8).flat_map(|_| random.next().to_le_bytes()).collect()
}

/// Words in irregular order, as in files that people write; no two seeds have blocks in common.
fn prose(seed: u64, len: u64) -> Vec<u8> {
    const WORDS: [&str; 16] = [
        "stone", "wall", "mortar", "arch", "lintel", "quoin", "course", "bond", "buttress", "vault", "plinth",
        "coping", "voussoir", "ashlar", "rubble", "keystone",
    ];
    let mut random = Random::new(seed);
    let mut text = Vec::with_capacity(len as usize + 16);
    while text.len() < len as usize {
        let pick = random.next();
        text.extend_from_slice(WORDS[pick as usize % WORDS.len()].as_bytes());
        text.extend_from_slice(
            match pick >> 32 & 31 {
                0 => ".\n",
                1 => ", ",
                _ => " ",
            }
            .as_bytes(),
        );
        if pick >> 40 & 15 == 0 {
            text.extend_from_slice(format!("{:x}", pick >> 8).as_bytes());
        }
    }
    text.truncate(len as usize);
    text
}

/// Data of all kinds, and how many of its blocks are zeroes and how many distinct. Copies do not lie as what they equal does.
fn mixture() -> (Vec<u8>, u64, u64) {
    let halves: Vec<u8> = (1..=2048).flat_map(bytes_of).collect();
    let (prose, noise) = (prose(1, 12 * MIB), noise(2, 6 * MIB));
    let parts: [&[u8]; 9] = [
        &prose,
        &vec![0; 5 * MIB as usize],
        &halves,
        &prose[3 * BLOCK..][..4 * MIB as usize + BLOCK],
        &noise,
        &vec![0; BLOCK],
        &halves[7 * BLOCK..][..3 * MIB as usize],
        &noise[..2 * MIB as usize],
        &vec![0; 3 * MIB as usize],
    ];
    let data = parts.concat();
    let zeroes = 8 * MIB / BYTES + 1;
    let distinct = (12 + 8 + 6) * MIB / BYTES;
    (data, zeroes, distinct)
}

#[test]
fn it_is_what_a_pool_makes_of_the_same_data() {
    let (data, zeroes, distinct) = mixture();
    let size = data.len() as u64;
    for compression in ["zstd", "lz4", "off"] {
        let lab = Lab::up(&[
            "--disks",
            "6",
            "--disk-size",
            "512M",
            "--tolerance",
            "double",
            "--memory",
            "256M",
            "--compression",
            compression,
        ]);
        let file = lab.dir().join("data.img");
        std::fs::write(&file, &data).expect("a file");
        let path = file.display().to_string();
        let report = figures(&[&path, "--compression", compression, "--precision", "full"]);
        assert_eq!(report["size"].as_u64(), Some(size), "{report}");
        assert_eq!(report["precision"], "full", "{report}");
        assert_eq!(counted(&report, "zeroes"), zeroes * BYTES);
        assert_eq!(counted(&report, "logical"), size - zeroes * BYTES);
        assert_eq!(counted(&report, "unique"), distinct * BYTES);
        assert_eq!(counted(&report, "duplicate"), size - (zeroes + distinct) * BYTES);
        let stored = counted(&report, "stored");

        create(&lab, "data", "64M");
        attach(&lab, "data", &["nbd"]);
        let mut client = Client::connect(&nbd_socket(&lab), "data").expect("the export");
        for (n, pieces) in data.chunks(8 << 17).enumerate() {
            let requests: Vec<Request> = pieces
                .chunks(1 << 17)
                .enumerate()
                .map(|(i, piece)| {
                    let offset = ((n * 8 + i) << 17) as u64;
                    Request::Write { offset, data: piece.to_vec(), fua: false }
                })
                .collect();
            assert!(client.batch(&requests).expect("answers").iter().all(Result::is_ok));
        }
        client.one(Request::Flush).expect("a flush");
        let status = lab.json(&["pool", "status"]);
        let pool = &status["reduction"];
        assert_eq!(pool["logical"].as_u64(), Some(size - zeroes * BYTES), "{pool}");
        assert_eq!(pool["unique"].as_u64(), Some(distinct * BYTES), "{pool}");
        let theirs = pool["stored"].as_u64().expect("stored bytes");
        let off = stored as f64 / theirs as f64 - 1.0;
        eprintln!("{compression}: {stored} estimated, {theirs} stored in a pool: {:+.3} %", off * 100.0);
        assert!(off.abs() < 0.01, "{compression}: {stored} estimated, {theirs} in the pool");
        for name in ["dedupe_ratio", "compression_ratio", "total_ratio"] {
            let (ours, theirs) = (&report[name]["value"], &pool[name]);
            let off = ours.as_f64().expect("a ratio") / theirs.as_f64().expect("a ratio") - 1.0;
            assert!(off.abs() < 0.01, "{name}: {ours} and {theirs}");
        }
    }
}

/// A large file: of each eight MiB one is zeroes, two are copies of the one before them, half of the rest compresses.
fn large(path: &Path) {
    let file = File::create(path).expect("a file");
    for region in 0..224u64 {
        let data = match region % 8 {
            0 => vec![0; MIB as usize],
            2 | 3 => noise(region / 8 * 8 + 1, MIB),
            4 | 5 => prose(region, MIB),
            _ => noise(region, MIB),
        };
        file.write_all_at(&data, region * MIB).expect("a write");
    }
}

#[test]
fn samples_and_little_memory_tell_ranges_that_hold_the_truth() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("large");
    large(&path);
    let path = path.display().to_string();
    let truth = figures(&[&path]);
    let (zeroes, unique, stored) = (counted(&truth, "zeroes"), counted(&truth, "unique"), counted(&truth, "stored"));
    assert_eq!((zeroes, unique), (28 * MIB, 5 * 28 * MIB), "{truth}");
    let holds = |report: &Value, name: &str, truth: u64| {
        let (value, low, high) = bytes(report, name);
        assert!(low <= truth && truth <= high, "{name}: {truth} is not in the range of {report}");
        assert!(low < value && value < high, "{name} has no range: {report}");
    };
    let sampled = |seed: &str| figures(&[&path, "--precision", "sample", "--sample", "40", "--seed", seed]);
    let first = sampled("1");
    assert_eq!(first["read"].as_u64(), Some(90 * MIB), "{first}");
    assert_eq!(first["size"].as_u64(), Some(224 * MIB), "{first}");
    assert_eq!((&first["precision"], &first["sample"]["of"]), (&"sample".into(), &224.into()), "{first}");
    for (name, truth) in [("zeroes", zeroes), ("logical", 196 * MIB), ("stored", stored)] {
        holds(&first, name, truth);
    }
    let (_, low, high) = bytes(&first, "unique");
    assert!(low <= unique && unique <= high && high < 224 * MIB, "{first}");
    assert_eq!(sampled("1"), first, "the same seed reads something else");
    assert_ne!(sampled("2")["zeroes"], first["zeroes"], "another seed reads the same");
    // Fingerprints of 36,000 distinct blocks do not fit.
    let little = figures(&[&path, "--precision", "full", "--memory", "1M"]);
    assert_eq!(little["distinct_known_one_in"].as_u64(), Some(2), "{little}");
    assert_eq!(counted(&little, "zeroes"), zeroes);
    for (name, truth) in [("unique", unique), ("stored", stored)] {
        // A range is four standard errors wide: one in twenty is missed by it, and none by as much again.
        let (value, low, high) = bytes(&little, name);
        assert!(low < value && value < high && value.abs_diff(truth) < high - low, "{name}: {truth}, {little}");
        assert!((value as f64 / truth as f64 - 1.0).abs() < 0.05, "{name}: {truth}, {little}");
    }
    // For people.
    let told =
        run(Command::new(ashlar()).args(["estimate", &path, "--sample", "40", "--seed", "1"]), LIMIT).expect_ok();
    for expected in
        ["90 MiB of 224 MiB", "chosen at random (--seed 1)", "estimated", "reduction:", "dedupe", "double tolerance:"]
    {
        assert!(told.stdout.contains(expected), "{expected:?} is not in {told}");
    }
}

/// Access and modification of a file, which stay as they are.
fn touched(path: &Path) -> (i64, i64, i64, i64) {
    let m = std::fs::metadata(path).expect("metadata");
    (m.atime(), m.atime_nsec(), m.mtime(), m.mtime_nsec())
}

#[test]
fn directories_are_walked_and_duplicates_found_across_files() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir_all(at("tree/sub")).expect("directories");
    let data = noise(5, 3 * MIB);
    std::fs::write(at("tree/one"), &data).expect("a file");
    std::fs::write(at("tree/sub/same"), &data).expect("a file");
    std::fs::write(at("tree/sub/tail"), &data[..BLOCK + 1]).expect("a file");
    std::fs::hard_link(at("tree/one"), at("tree/linked")).expect("a link");
    std::os::unix::fs::symlink("/", at("tree/sub/root")).expect("a symbolic link");
    File::create(at("tree/hole")).and_then(|f| f.set_len(64 << 30)).expect("a file");
    std::fs::write(at("other"), &data).expect("a file");
    let before = touched(&at("tree/one"));
    let tree = figures(&[at("tree")]);
    assert_eq!(tree["files"].as_u64(), Some(4), "{tree}");
    // Of the block that is one byte long the rest are zeroes.
    assert_eq!(counted(&tree, "logical"), 6 * MIB + 2 * BYTES);
    assert_eq!(counted(&tree, "unique"), 3 * MIB + BYTES);
    assert_eq!(counted(&tree, "zeroes"), 64 << 30);
    assert_eq!(tree["holes"].as_u64(), Some(64 << 30), "{tree}");
    assert_eq!(tree["read"].as_u64(), Some(6 * MIB + 2 * BYTES), "{tree}");
    let both = figures(&[at("tree"), at("other")]);
    assert_eq!(counted(&both, "unique"), 3 * MIB + BYTES);
    assert_eq!(counted(&both, "logical"), 9 * MIB + 2 * BYTES);
    assert_eq!(touched(&at("tree/one")), before, "reading left traces");

    // What may not be read is left out, counted and told; as the superuser, without the right to read everything.
    if !met("directories_are_walked_and_duplicates_found_across_files (unreadable)", &[Need::Tool("setpriv")]) {
        return;
    }
    std::fs::set_permissions(at("tree/one"), PermissionsExt::from_mode(0o000)).expect("permissions");
    let mut command = Command::new(find("setpriv").expect("setpriv"));
    command.args(["--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]);
    let output = run(command.arg(ashlar()).args(["estimate", "-o", "json"]).arg(at("tree")), LIMIT);
    assert_eq!(output.status.code(), Some(1), "{output}");
    let partly = output.json();
    assert_eq!((&partly["files"], &partly["unreadable"]["files"]), (&3.into(), &1.into()), "{partly}");
    assert_eq!(counted(&partly, "logical"), 3 * MIB + 2 * BYTES);
    for expected in ["tree/linked may not be read by this user", "1 file or directory could not be read"] {
        assert!(output.stderr.contains(expected), "{expected:?} is not in {output}");
    }
}

#[test]
fn block_devices_are_read_and_not_written() {
    if !met("block_devices_are_read_and_not_written", &[Need::Root, Need::Loop, Need::Tool("losetup")]) {
        return;
    }
    struct Cleared(PathBuf);
    impl Drop for Cleared {
        fn drop(&mut self) {
            force_down(ashlar(), &self.0);
        }
    }
    let dir = tempfile::tempdir().expect("a directory");
    let _cleared = Cleared(dir.path().to_owned());
    let image = dir.path().join("image");
    let (data, zeroes, distinct) = mixture();
    std::fs::write(&image, &data).expect("a file");
    let device = shell("losetup -f --show \"$1\"", &[&image]).expect_ok().stdout.trim().to_owned();
    let written = || shell("awk '{ print $5 }' /sys/block/${1#/dev/}/stat", &[&device]).expect_ok().stdout;
    let before = written();
    let report = figures(&[&device, "--drives", "7"]);
    assert_eq!(report["size"].as_u64(), Some(data.len() as u64), "{report}");
    assert_eq!((counted(&report, "zeroes"), counted(&report, "unique")), (zeroes * BYTES, distinct * BYTES));
    // 4+2 of seven drives: half as much again.
    let double = report["raw"].as_array().expect("a list").iter().find(|raw| raw["tolerance"] == "double");
    let double = double.expect("double tolerance");
    assert_eq!(double["layout"], "4+2", "{report}");
    assert_eq!(double["bytes"]["value"].as_u64(), Some((counted(&report, "stored") as f64 * 1.5).round() as u64));
    assert_eq!(written(), before, "the device was written to");
    let found = shell("cmp \"$1\" \"$2\"", &[&device, &image.display().to_string()]);
    found.expect_ok();
}

#[test]
fn an_interrupted_estimate_tells_what_it_has() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("long");
    let file = File::create(&path).expect("a file");
    let data = prose(9, MIB);
    const LEN: u64 = 512 * MIB;
    for at in (0..LEN).step_by(MIB as usize) {
        // Each MiB is another one for deduplication: its blocks begin differently.
        let mut piece = data.clone();
        piece.chunks_mut(BLOCK).enumerate().for_each(|(i, b)| b[..8].copy_from_slice(&(at + i as u64).to_le_bytes()));
        file.write_all_at(&piece, at).expect("a write");
    }
    let out = tempfile::tempfile().expect("a file");
    let mut command = Command::new(ashlar());
    command.args(["estimate", "-o", "json"]).arg(&path).stdout(out.try_clone().expect("a handle"));
    let mut child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("the command");
    let io = format!("/proc/{}/io", child.id());
    let read = || {
        let io = std::fs::read_to_string(&io).unwrap_or_default();
        io.lines().find_map(|l| l.strip_prefix("rchar: ")?.parse::<u64>().ok()).unwrap_or(0)
    };
    let begun = wait_until(LIMIT, || read() > 8 * MIB);
    signal(&child.id().to_string(), "INT");
    let status = wait(&mut child, Duration::from_secs(30));
    let _ = child.kill();
    let mut answer = vec![0; out.metadata().expect("metadata").len() as usize];
    out.read_exact_at(&mut answer, 0).expect("the answer");
    assert!(begun, "it never began to read");
    assert_eq!(status.and_then(|s| s.code()), Some(1));
    let report: Value = serde_json::from_slice(&answer).expect("JSON");
    assert_eq!(report["interrupted"], true, "{report}");
    let read = report["read"].as_u64().expect("bytes");
    assert!(read > 0 && read < LEN, "{report}");
    assert_eq!(report["size"].as_u64(), Some(read), "{report}");
}

#[test]
fn wrong_arguments_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(at("file"), b"x").expect("a file");
    shell("mkfifo \"$1\"", &[at("pipe")]).expect_ok();
    let file = at("file");
    for (line, code, message) in [
        ("", 2, "required"),
        ("{gone}", 3, "there is no"),
        ("{file} {gone}", 3, "there is no"),
        ("{pipe}", 2, "is a named pipe: name block devices, regular files or directories"),
        ("/dev/null", 2, "is a character device"),
        ("{file} {file}", 2, "hold the same"),
        ("{file} {dir}", 2, "hold the same"),
        ("{file} --sample 0", 2, "more than 0 and at most 100"),
        ("{file} --sample -3", 2, "more than 0 and at most 100"),
        ("{file} --sample 100.5", 2, "more than 0 and at most 100"),
        ("{file} --sample some", 2, "in per cent"),
        ("{file} --sample 5 --precision full", 2, "leave --sample or"),
        ("{file} --precision exact", 2, "exact"),
        ("{file} --memory 4K", 2, "1 MiB is the least"),
        ("{file} --memory much", 2, "not a size"),
        ("{file} --compression zip", 2, "'zip' is not a compression method"),
        ("{file} --drives 0", 2, "0"),
        ("{file} --seed -1", 2, "-1"),
    ] {
        let filled = line.replace("{gone}", &at("gone")).replace("{pipe}", &at("pipe")).replace("{file}", &file);
        let filled = filled.replace("{dir}", &dir.path().display().to_string());
        let output = estimate(&filled.split_whitespace().collect::<Vec<_>>());
        assert!(output.stdout.is_empty(), "an answer to wrong arguments: {output}");
        expect_refused(output, code, message);
    }
    let empty = figures(&[&file, "--precision", "sample"]);
    assert_eq!((counted(&empty, "logical"), &empty["interrupted"]), (BYTES, &false.into()), "{empty}");
    std::fs::write(&file, b"").expect("an empty file");
    let empty = figures(&[&file]);
    assert_eq!((counted(&empty, "stored"), &empty["total_ratio"]), (0, &Value::Null), "{empty}");
}
