use std::sync::Arc;

use blockdev::frontend::memory::MemoryDevice;
use bytes::Bytes;
use redb::WriteTransaction;

use super::*;
use crate::fs::{FileSystem, New, Options, XattrFlags};

/// A small tree: a directory 2 with the files 3 (two names, an attribute, content) and 4 (content), the link 5 beside it, and the empty directory 6.
fn sample() -> Pair {
    let device = |size| Arc::new(MemoryDevice::new(size));
    let (meta, data) = (device(64 << 20), device(256 << 20));
    let pair = crate::format(meta.clone(), data.clone(), [5; 16]).expect("made");
    let options = Options { background: false, hash_key: 0, ..Options::default() };
    let fs = FileSystem::open(pair, options).expect("opened");
    let dir = fs.create(ROOT, b"dir", &New::directory(0o755)).expect("made").ino;
    let file = fs.create(dir, b"file", &New::file(0o644)).expect("made").ino;
    let other = fs.create(dir, b"other", &New::file(0o644)).expect("made").ino;
    fs.link(file, ROOT, b"again").expect("linked");
    fs.setxattr(file, b"user.x", b"y", XattrFlags::Any).expect("set");
    for ino in [file, other] {
        fs.write(ino, 0, &Bytes::from(vec![1; 20_000])).expect("written");
    }
    let link = New { kind: Kind::Symlink, target: b"dir", ..New::file(0o777) };
    fs.create(ROOT, b"link", &link).expect("made");
    fs.create(ROOT, b"empty", &New::directory(0o755)).expect("made");
    assert_eq!((dir, file, other), (2, 3, 4));
    fs.close().expect("closed");
    drop(fs);
    Pair::open(meta, data).expect("opened")
}

/// What the check says after `damage`.
fn after(damage: impl FnOnce(&WriteTransaction)) -> Vec<String> {
    let pair = sample();
    {
        let db = database(Backend::new(&pair, false).expect("opened"), 1 << 20).expect("opened");
        let txn = db.begin_write().expect("begun");
        damage(&txn);
        txn.commit().expect("committed");
    }
    let report = check(&pair).expect("checked");
    assert_eq!(report.wrong, report.problems.len() as u64);
    report.problems
}

#[track_caller]
fn expect(problems: &[String], said: &[&str]) {
    for word in said {
        assert!(problems.iter().any(|problem| problem.contains(word)), "{word:?} is not in {problems:?}");
    }
    assert_eq!(problems.len(), said.len(), "{problems:?}");
}

fn attr(txn: &WriteTransaction, ino: u64, change: impl FnOnce(&mut Attr)) {
    let mut table = txn.open_table(INODES).expect("a table");
    let mut attr = Attr::decode(ino, table.get(ino).expect("read").expect("there").value()).expect("whole");
    change(&mut attr);
    table.insert(ino, attr.encode().as_slice()).expect("written");
}

/// The cookie of the only entry of `dir` that names `ino`.
fn entry_of(txn: &WriteTransaction, dir: u64, ino: u64) -> (u64, Entry) {
    let table = txn.open_table(ENTRIES).expect("a table");
    let rows = table.range((dir, 0)..=(dir, u64::MAX)).expect("read").map(|row| {
        let (key, value) = row.expect("read");
        (key.value().1, Entry::decode(value.value()).expect("whole"))
    });
    rows.into_iter().find(|(_, entry)| entry.ino == ino).expect("an entry")
}

#[test]
fn nothing_is_wrong_with_what_is_right() {
    expect(&after(|_| ()), &[]);
}

#[test]
fn attributes_that_are_wrong_are_found() {
    expect(&after(|txn| attr(txn, 3, |a| a.nlink = 3)), &["inode 3 says it has 3 links, and has 2"]);
    expect(&after(|txn| attr(txn, 3, |a| a.blocks = 9)), &["inode 3 has 4 blocks less"]);
    expect(&after(|txn| attr(txn, 2, |a| a.size += 32)), &["directory 2 has 1 names less"]);
    expect(&after(|txn| attr(txn, 2, |a| a.nlink = 3)), &["inode 2 says it has 3 links, and has 2"]);
    expect(&after(|txn| attr(txn, 5, |a| a.size = 9)), &["link 5 has 3 bytes and says 9"]);
    expect(&after(|txn| attr(txn, 6, |a| a.parent = 2)), &["directory 6 is in 1 and says it is in 2"]);
    expect(
        &after(|txn| attr(txn, 6, |a| a.kind = Kind::Fifo)),
        &[
            "'empty' in directory 1 says that inode 6 is another type",
            "inode 6 says it has 2 links",
            "inode 1 says it has 4",
        ],
    );
    let cut = |txn: &WriteTransaction| {
        txn.open_table(INODES).expect("a table").insert(4, &[1u8; 7][..]).expect("written");
    };
    expect(
        &after(cut),
        &[
            "inode 4 is damaged",
            "names inode 4, which does not exist",
            "is no file's",
            "6 inodes are counted",
            "directory 2 has 1 names less",
        ],
    );
}

#[test]
fn names_that_are_wrong_are_found() {
    let gone = |txn: &WriteTransaction| {
        let (at, _) = entry_of(txn, 2, 4);
        txn.open_table(ENTRIES).expect("a table").remove((2, at)).expect("removed");
    };
    expect(&after(gone), &["directory 2 has 1 names less", "inode 4 says it has 1 links, and has 0"]);
    let renamed = |txn: &WriteTransaction| {
        let (at, entry) = entry_of(txn, 2, 4);
        let entry = Entry { name: b"another".to_vec(), ..entry };
        txn.open_table(ENTRIES).expect("a table").insert((2, at), entry.encode().as_slice()).expect("written");
    };
    expect(&after(renamed), &["'another' in directory 2 is filed under the hash of another name"]);
    // Two directories that are each other's.
    let circle = |txn: &WriteTransaction| {
        let (at, entry) = entry_of(txn, ROOT, 6);
        let (top, dir) = entry_of(txn, ROOT, 2);
        {
            let mut table = txn.open_table(ENTRIES).expect("a table");
            table.remove((ROOT, at)).expect("removed");
            table.remove((ROOT, top)).expect("removed");
            table.insert((2, at), entry.encode().as_slice()).expect("written");
            table.insert((6, top), dir.encode().as_slice()).expect("written");
        }
        attr(txn, 2, |a| (a.parent, a.nlink, a.size) = (6, 3, a.size + 32));
        attr(txn, 6, |a| (a.parent, a.nlink, a.size) = (2, 3, 32));
        attr(txn, ROOT, |a| (a.nlink, a.size) = (2, a.size - 64));
    };
    expect(&after(circle), &["directory 2 is not found from the root", "directory 6 is not found from the root"]);
    let no_root = |txn: &WriteTransaction| {
        txn.open_table(INODES).expect("a table").remove(ROOT).expect("removed");
    };
    assert!(after(no_root).iter().any(|problem| problem == "the root directory is missing"));
}

#[test]
fn space_that_is_wrong_is_found() {
    let extent = |change: fn((u64, u64), u64) -> (u64, u64)| {
        move |txn: &WriteTransaction| {
            let mut table = txn.open_table(EXTENTS).expect("a table");
            let at = |ino| table.get((ino, 0)).expect("read").expect("there").value();
            let new = change(at(4), at(3).0);
            table.insert((4, 0), new).expect("written");
        }
    };
    expect(
        &after(extent(|(_, len), other| (other, len))),
        &["has 5 blocks that another extent has, too", "the bitmap of group 0 says used of 5 blocks that no file has"],
    );
    expect(
        &after(extent(|(_, len), _| (1 << 40, len))),
        &[
            "lies outside the volume",
            "inode 4 has 5 blocks less",
            "says used of 5 blocks",
            "11 blocks are counted as used, 6 are",
        ],
    );
    expect(
        &after(extent(|(start, len), _| (start, len + 1))),
        &["inode 4 has -1 blocks less", "free of 1 that one has", "11 blocks are counted as used, 12 are"],
    );
    let bitmap = |txn: &WriteTransaction| {
        txn.open_table(GROUPS).expect("a table").remove(0).expect("removed");
    };
    expect(&after(bitmap), &["group 0 has no bitmap, and 10 blocks"]);
    let counters = |txn: &WriteTransaction| {
        txn.open_table(SUPER).expect("a table").insert("used", 3).expect("written");
    };
    expect(&after(counters), &["3 blocks are counted as used, 11 are"]);
    let none = |txn: &WriteTransaction| {
        txn.open_table(SUPER).expect("a table").remove("commits").expect("removed");
    };
    expect(&after(none), &["the counters of the file system are missing"]);
}

#[test]
fn what_belongs_to_nobody_is_found() {
    let orphan = |txn: &WriteTransaction| {
        txn.open_table(ORPHANS).expect("a table").insert(99, ()).expect("written");
    };
    expect(&after(orphan), &["inode 99 is to be freed and does not exist"]);
    let stray = |txn: &WriteTransaction| {
        txn.open_table(XATTRS).expect("a table").insert((99, &b"user.x"[..]), &b""[..]).expect("written");
        txn.open_table(LINKS).expect("a table").insert(3, &b"x"[..]).expect("written");
        txn.open_table(LINKS).expect("a table").remove(5).expect("removed");
    };
    expect(
        &after(stray),
        &[
            "inode 99 has an extended attribute and does not exist",
            "inode 3 has a target and is no link",
            "link 5 has no target",
        ],
    );
    let early = |txn: &WriteTransaction| {
        txn.open_table(SUPER).expect("a table").insert("next_ino", 6).expect("written");
    };
    expect(&after(early), &["inode 6 has a number that was not given yet"]);
}
