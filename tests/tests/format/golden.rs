//! Golden images: structures as they were written, which everything of the same version must read; those of earlier versions and damaged
//! ones, which it must refuse.
//!
//! They are in `tests/golden/`. `ASHLAR_GOLDEN=write cargo test -p ashlar-tests --test format golden` writes those that are
//! not there; a file that is there is never changed: a new format version gets new files.

use std::path::PathBuf;

use ashlar_tests::binary::workspace;
use blockdev::error::ErrorKind;

use crate::generate::{KINDS, Kind, body_of, packed};
use crate::imports::*;

/// The same for all of a kind, so that a catalogue and its body belong together.
const SEED: u64 = 42;

fn path(name: &str) -> PathBuf {
    workspace().join("tests/golden").join(format!("v{FORMAT_VERSION}-{name}.bin"))
}

fn kind(name: &str) -> &'static Kind {
    KINDS.iter().find(|k| k.name == name).unwrap_or_else(|| panic!("no kind {name}"))
}

/// The image of this name; written first when that is asked for and it is not there.
fn image(name: &str, make: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
    let path = path(name);
    if !path.exists() && std::env::var_os("ASHLAR_GOLDEN").is_some_and(|v| v == "write") {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("tests/golden can be made");
        std::fs::write(&path, make()).expect("tests/golden can be written to");
    }
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn good(kind: &Kind) -> Vec<u8> {
    image(kind.name, || (kind.make)(&mut Rng::new(SEED)))
}

#[test]
fn golden_images_are_read_and_written_alike() {
    for kind in KINDS {
        let bytes = good(kind);
        let written = (kind.read)(&bytes).unwrap_or_else(|e| panic!("{}: {e}", kind.name));
        // Another release of zstd may pack a catalogue differently.
        if kind.name == "catalogue" {
            assert_eq!(body_of(&written), body_of(&bytes));
            assert_eq!(body_of(&bytes), good(self::kind("catalogue-body")));
        } else {
            assert_eq!(written, bytes, "{}", kind.name);
        }
    }
}

#[test]
fn golden_images_hold_what_they_held() {
    // A few values of each, as they were when the images were made.
    let read = |name: &str| good(kind(name));
    let label = Label::decode(&read("label")).expect("label");
    let superblock = Superblock::decode(&read("superblock")).expect("superblock");
    let catalogue = Catalogue::decode(&read("catalogue")).expect("catalogue");
    let (entry, _) = Entry::decode(&read("log-entry")).expect("entry");
    let part = Part::decode(&read("part")).expect("part");
    let table = TablePage::decode(&read("table-page")).expect("table page");
    let directory = DirectoryPage::decode(&read("directory-page")).expect("directory page");
    let uniform = MapPage::decode(&read("map-page-uniform")).expect("map page");
    let each = MapPage::decode(&read("map-page-each")).expect("map page");
    assert!(matches!((&uniform.births, &each.births), (Births::Uniform(7), Births::Each(_))));
    let used = |entries: &[BlockEntry]| entries.iter().filter(|e| e.refcount > 0).count();
    let text = format!(
        "{} {} {:?} {}\n{} {} {}\n{} {} {} {} {}\n{} {} {} {}\n{} {}\n{} {}\n{} {} {} {}\n",
        label.pool,
        label.pool_name,
        label.tolerance,
        label.geometry.chunk_size,
        superblock.epoch,
        superblock.checkpoint,
        superblock.log_start,
        catalogue.record,
        catalogue.disks.len(),
        catalogue.segments.len(),
        catalogue.volumes.len(),
        catalogue.directory.len(),
        entry.number,
        entry.durable.len(),
        entry.inline.len(),
        entry.records.len(),
        part.segment,
        part.items.len(),
        used(&table.0[..]),
        directory.0.iter().map(|p| u64::from(p.used)).sum::<u64>(),
        uniform.volume,
        uniform.used,
        each.index,
        each.entries.iter().map(|b| b.0).fold(0, u64::wrapping_add),
    );
    let expected = image("values", || text.clone().into_bytes());
    assert_eq!(text, String::from_utf8_lossy(&expected));
}

/// Name of the image, kind, what the refusal says, how it was made from the good one.
type Bad = (&'static str, &'static str, &'static str, fn(&mut Vec<u8>));

const BAD: &[Bad] = &[
    ("bad-label-checksum", "label", "label: checksum mismatch", |d| {
        (kind("label").seal)(d);
        d[50] ^= 1;
    }),
    ("bad-label-version", "label", "label: format version 9 is unknown to this release, which reads version 8", |d| {
        d[8] = 9
    }),
    ("bad-label-tolerance", "label", "label: tolerance 3 is unknown", |d| d[46] = 3),
    ("bad-label-geometry", "label", "label: chunk size 0 and strip size", |d| d[63..67].fill(0)),
    ("bad-label-size", "label", "label: a disk of 4096 bytes is impossible", |d| {
        d[55..63].copy_from_slice(&4096u64.to_le_bytes())
    }),
    ("bad-superblock-magic", "superblock", "superblock: no magic", |d| d[0] = b'X'),
    ("bad-superblock-epoch", "superblock", "superblock: epoch 18446744073709551615 is impossible", |d| {
        d[28..36].fill(0xff)
    }),
    ("bad-catalogue-magic", "catalogue", "catalogue: no magic", |d| d[0] = b'X'),
    ("bad-catalogue-version", "catalogue", "catalogue: format version 9 is unknown to this release", |d| d[4] = 9),
    ("bad-catalogue-length", "catalogue", "catalogue: its length is not what its header says", |d| d[8] ^= 1),
    ("bad-catalogue-bomb", "catalogue", "catalogue: its length is not what its header says", |d| {
        let mut bomb = packed(&vec![0; 1 << 20]);
        bomb[8..16].copy_from_slice(&100u64.to_le_bytes());
        *d = bomb;
    }),
    ("bad-catalogue-count", "catalogue", "catalogue: a count of", |d| {
        let mut body = vec![0; 8];
        body.extend_from_slice(&[0xff, 0xff, 0xff, 0x7f]);
        *d = packed(&body);
    }),
    ("bad-log-entry-magic", "log-entry", "log: no entry here", |d| d[0] = b'X'),
    ("bad-log-entry-checksum", "log-entry", "log: an entry's checksum does not match", |d| {
        (kind("log-entry").seal)(d);
        d[65] ^= 1;
    }),
    ("bad-log-entry-version", "log-entry", "log: format version 9 is unknown to this release", |d| d[4] = 9),
    ("bad-log-entry-length", "log-entry", "log: an entry is longer than its extent", |d| {
        (kind("log-entry").seal)(d);
        d[55] = 1;
    }),
    ("bad-log-record-operation", "log-record", "log record: operation 99 is unknown", |d| {
        *d = vec![1, 1, 0, 0, 1, 99, 0]
    }),
    ("bad-log-record-frame", "log-record", "log record: a block lies outside its frame", |d| {
        *d = [&[1, 1, 0, 0, 1, 1, 1, 0, 1, 2, 1, 0, 0][..], &[0; 16]].concat();
    }),
    ("bad-part-magic", "part", "part summary: no magic", |d| d[0] = b'X'),
    ("bad-part-checksum", "part", "part summary: checksum mismatch", |d| {
        (kind("part").seal)(d);
        d[9] ^= 1;
    }),
    ("bad-table-page-codec", "table-page", "codec 9 is unknown", |d| d[10] = 9),
    ("bad-table-page-kind", "table-page", "block table: kind 2 is unknown", |d| d[11] = 2),
    ("bad-table-page-short", "table-page", "bytes missing", |d| d.truncate(4000)),
    ("bad-directory-page-reserved", "directory-page", "page pointer: the reserved byte is not 0", |d| d[11] = 1),
    ("bad-directory-page-long", "directory-page", "1 bytes left over", |d| d.push(0)),
    ("bad-map-page-births", "map-page-uniform", "map page: births of kind 2 are unknown", |d| d[13 + 6 * 512] = 2),
    ("bad-map-page-level", "map-page-uniform", "map page: there is no page", |d| d[4] = 200),
];

#[test]
fn damaged_golden_images_are_refused_with_the_reason() {
    for (name, kind, message, damage) in BAD {
        let kind = self::kind(kind);
        let make = || {
            let mut bytes = good(kind);
            damage(&mut bytes);
            // What is wrong is the content, unless the test is about the checksum or the length themselves.
            if !name.ends_with("-checksum") && !name.ends_with("-length") {
                (kind.seal)(&mut bytes);
            }
            bytes
        };
        let bytes = image(name, make);
        let error = (kind.read)(&bytes).map(|_| ()).expect_err(name).to_string();
        assert!(error.contains(message), "{name}: '{error}' does not say '{message}'");
    }
}

#[test]
fn images_of_older_versions_are_refused_by_version() {
    let names = ["label", "superblock", "catalogue", "log-entry"];
    for (version, name) in (1..FORMAT_VERSION).flat_map(|version| names.map(|name| (version, name))) {
        let path = workspace().join("tests/golden").join(format!("v{version}-{name}.bin"));
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let error = (kind(name).read)(&bytes).map(|_| ()).expect_err(name);
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{name}: {error}");
        let message = error.to_string();
        assert!(
            message.contains(&format!("version {version} is unknown")) && message.contains("release that wrote it"),
            "{message}"
        );
    }
}

#[test]
fn every_golden_image_is_used() {
    let known: Vec<PathBuf> =
        KINDS.iter().map(|k| k.name).chain(BAD.iter().map(|b| b.0)).chain(["values"]).map(path).collect();
    let folder = workspace().join("tests/golden");
    let prefix = format!("v{FORMAT_VERSION}-");
    for entry in std::fs::read_dir(&folder).expect("tests/golden") {
        let entry = entry.expect("a readable folder");
        let current = entry.file_name().to_string_lossy().starts_with(&prefix);
        assert!(!current || known.contains(&entry.path()), "{} is not used", entry.path().display());
    }
}
