//! The check of a file system: everything the tables say is counted again. Nothing is changed.

use blockdev::error::{Error, Result};
use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::alloc::{Bitmap, FIRST_BLOCK, GROUP_BLOCKS};
use crate::fs::{ENTRY_SIZE, ROOT};
use crate::meta::attr::{Attr, Kind};
use crate::meta::tables::{ENTRIES, EXTENTS, Entry, GROUPS, INODES, LINKS, ORPHANS, SAME_HASH, SUPER, XATTRS, cookie};
use crate::meta::txn::{Counters, database, opening};
use crate::store::{Backend, Pair};

/// Problems that are kept as text; the others are counted.
const TEXTS_MAX: usize = 1000;

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What is wrong, the first thousand.
    pub problems: Vec<String>,
    /// How much is.
    pub wrong: u64,
    /// Directories that exist.
    pub directories: u64,
    /// Other inodes.
    pub files: u64,
    /// Extents of files.
    pub extents: u64,
    /// Blocks of files.
    pub blocks: u64,
    /// Inodes without a name that wait to be freed.
    pub orphans: u64,
}

impl Report {
    fn wrong(&mut self, what: String) {
        self.wrong += 1;
        if self.problems.len() < TEXTS_MAX {
            self.problems.push(what);
        }
    }

    /// Nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.wrong == 0
    }
}

/// What is known of one inode while tables are walked. There is one for each: no more than is needed.
struct Seen {
    kind: Kind,
    nlink: u32,
    /// Names found for it.
    names: u32,
    /// Of a directory: directories found in it.
    directories: u32,
    /// What its attributes say, less what was found: blocks; of a directory, names in it; of a symbolic link, its size.
    left: i64,
    /// Of a directory: the one it is in.
    parent: u64,
}

/// Checks a file system that nobody has mounted. Memory goes with the number of inodes: about 100 bytes for each.
pub fn check(pair: &Pair) -> Result<Report> {
    let db = database(Backend::new(pair, true)?, 64 << 20)?;
    check_database(&db)
}

/// Checks the last commit.
pub(crate) fn check_database(db: &Database) -> Result<Report> {
    let read = db.begin_read().map_err(|e| opening(&e.into()))?;
    let mut report = Report::default();
    walk(&read, &mut report).map_err(|error| Error::io(format!("check a file system: {error}")))?;
    Ok(report)
}

type Walked<T> = std::result::Result<T, redb::Error>;

fn walk(read: &ReadTransaction, report: &mut Report) -> Walked<()> {
    let counters = match Counters::load(&read.open_table(SUPER)?) {
        Ok(Some(counters)) => counters,
        _ => {
            report.wrong("the counters of the file system are missing".into());
            return Ok(());
        }
    };
    let mut inodes = inodes(read, &counters, report)?;
    entries(read, &counters, &mut inodes, report)?;
    let used = extents(read, &counters, &mut inodes, report)?;
    bitmaps(read, used, report)?;
    let orphans = orphans(read, &inodes, report)?;
    targets(read, &inodes, report)?;
    if inodes.get(&ROOT).is_none_or(|root| root.kind != Kind::Directory) {
        report.wrong("the root directory is missing".into());
    }
    let mut sorted: Vec<(&u64, &Seen)> = inodes.iter().collect();
    sorted.sort_unstable_by_key(|(ino, _)| **ino);
    for (ino, seen) in sorted {
        inode(*ino, seen, orphans.contains(ino), report);
    }
    reachable(&inodes, report);
    if counters.used != report.blocks + FIRST_BLOCK {
        report.wrong(format!("{} blocks are counted as used, {} are", counters.used, report.blocks + FIRST_BLOCK));
    }
    if counters.inodes != inodes.len() as u64 {
        report.wrong(format!("{} inodes are counted, {} exist", counters.inodes, inodes.len()));
    }
    Ok(())
}

fn inodes(read: &ReadTransaction, counters: &Counters, report: &mut Report) -> Walked<FxHashMap<u64, Seen>> {
    let mut found = FxHashMap::default();
    for row in read.open_table(INODES)?.iter()? {
        let (ino, value) = row?;
        let ino = ino.value();
        let Some(attr) = Attr::decode(ino, value.value()) else {
            report.wrong(format!("inode {ino} is damaged"));
            continue;
        };
        if ino == 0 || ino >= counters.next_ino {
            report.wrong(format!("inode {ino} has a number that was not given yet"));
        }
        match attr.kind {
            Kind::Directory => report.directories += 1,
            _ => report.files += 1,
        }
        let left = match attr.kind {
            Kind::Directory => attr.size / ENTRY_SIZE,
            Kind::Symlink => attr.size,
            _ => attr.blocks,
        };
        if attr.kind == Kind::Directory && !attr.size.is_multiple_of(ENTRY_SIZE) {
            report.wrong(format!("directory {ino} has a size of {}", attr.size));
        }
        if attr.kind != Kind::File && attr.blocks != 0 {
            report.wrong(format!("inode {ino} is no file and says it has {} blocks", attr.blocks));
        }
        let left = i64::try_from(left).unwrap_or(i64::MAX);
        let Attr { kind, nlink, parent, .. } = attr;
        found.insert(ino, Seen { kind, nlink, names: 0, directories: 0, left, parent });
    }
    Ok(found)
}

fn entries(
    read: &ReadTransaction,
    counters: &Counters,
    inodes: &mut FxHashMap<u64, Seen>,
    report: &mut Report,
) -> Walked<()> {
    for row in read.open_table(ENTRIES)?.iter()? {
        let (key, value) = row?;
        let (dir, at) = key.value();
        let Some(entry) = Entry::decode(value.value()) else {
            report.wrong(format!("entry {at} of directory {dir} is damaged"));
            continue;
        };
        let name = entry.name.escape_ascii();
        if cookie(counters, &entry.name) != at / SAME_HASH * SAME_HASH {
            report.wrong(format!("'{name}' in directory {dir} is filed under the hash of another name"));
        }
        let Some(target) = inodes.get_mut(&entry.ino) else {
            report.wrong(format!("'{name}' in directory {dir} names inode {}, which does not exist", entry.ino));
            continue;
        };
        target.names += 1;
        let is_directory = target.kind == Kind::Directory;
        if target.kind != entry.kind {
            report.wrong(format!("'{name}' in directory {dir} says that inode {} is another type", entry.ino));
        }
        if is_directory && target.parent != dir {
            report.wrong(format!("directory {} is in {dir} and says it is in {}", entry.ino, target.parent));
        }
        match inodes.get_mut(&dir).filter(|dir| dir.kind == Kind::Directory) {
            Some(dir) => {
                dir.left -= 1;
                dir.directories += u32::from(is_directory);
            }
            None => report.wrong(format!("'{name}' is in directory {dir}, which does not exist")),
        }
    }
    Ok(())
}

/// The bitmaps that the extents make.
fn extents(
    read: &ReadTransaction,
    counters: &Counters,
    inodes: &mut FxHashMap<u64, Seen>,
    report: &mut Report,
) -> Walked<FxHashMap<u64, Bitmap>> {
    let mut used: FxHashMap<u64, Bitmap> = FxHashMap::default();
    let mut before = (0, 0);
    for row in read.open_table(EXTENTS)?.iter()? {
        let (key, value) = row?;
        let ((ino, block), (start, len)) = (key.value(), value.value());
        let what = || format!("the extent of inode {ino} at block {block}");
        report.extents += 1;
        let end = start.checked_add(len).filter(|end| start >= FIRST_BLOCK && *end <= counters.blocks && len > 0);
        let (Some(end), Some(file_end)) = (end, block.checked_add(len)) else {
            report.wrong(format!("{} lies outside the volume: {len} blocks at {start}", what()));
            continue;
        };
        if before.0 == ino && block < before.1 {
            report.wrong(format!("{} overlaps the one before", what()));
        }
        before = (ino, file_end);
        match inodes.get_mut(&ino).filter(|seen| seen.kind == Kind::File) {
            Some(seen) => seen.left = seen.left.saturating_sub_unsigned(len),
            None => report.wrong(format!("{} is no file's", what())),
        }
        report.blocks += len;
        let mut twice = 0;
        for block in start..end {
            let map = used.entry(block / GROUP_BLOCKS).or_default();
            twice += u64::from(map.get(block % GROUP_BLOCKS));
            map.set(block % GROUP_BLOCKS, 1);
        }
        if twice > 0 {
            report.wrong(format!("{} has {twice} blocks that another extent has, too", what()));
        }
    }
    Ok(used)
}

fn bitmaps(read: &ReadTransaction, mut used: FxHashMap<u64, Bitmap>, report: &mut Report) -> Walked<()> {
    for row in read.open_table(GROUPS)?.iter()? {
        let (index, value) = row?;
        let index = index.value();
        let Some(says) = Bitmap::decode(value.value()) else {
            report.wrong(format!("the bitmap of group {index} is damaged"));
            continue;
        };
        let is = used.remove(&index).unwrap_or_default();
        if says != is {
            let count =
                |map: &Bitmap, other: &Bitmap| (0..GROUP_BLOCKS).filter(|at| map.get(*at) && !other.get(*at)).count();
            report.wrong(format!(
                "the bitmap of group {index} says used of {} blocks that no file has, and free of {} that one has",
                count(&says, &is),
                count(&is, &says)
            ));
        }
    }
    for (index, map) in used {
        report.wrong(format!("group {index} has no bitmap, and {} blocks that files have", map.count()));
    }
    Ok(())
}

fn orphans(read: &ReadTransaction, inodes: &FxHashMap<u64, Seen>, report: &mut Report) -> Walked<FxHashSet<u64>> {
    let mut found = FxHashSet::default();
    for row in read.open_table(ORPHANS)?.iter()? {
        let ino = row?.0.value();
        if !inodes.contains_key(&ino) {
            report.wrong(format!("inode {ino} is to be freed and does not exist"));
        }
        report.orphans += 1;
        found.insert(ino);
    }
    Ok(found)
}

/// Targets of symbolic links, and owners of extended attributes.
fn targets(read: &ReadTransaction, inodes: &FxHashMap<u64, Seen>, report: &mut Report) -> Walked<()> {
    let mut links = FxHashSet::default();
    for row in read.open_table(LINKS)?.iter()? {
        let (ino, target) = row?;
        let (ino, len) = (ino.value(), target.value().len() as u64);
        links.insert(ino);
        match inodes.get(&ino).filter(|seen| seen.kind == Kind::Symlink) {
            Some(seen) if seen.left.cast_unsigned() == len => {}
            Some(seen) => report.wrong(format!("link {ino} has {len} bytes and says {}", seen.left)),
            None => report.wrong(format!("inode {ino} has a target and is no link")),
        }
    }
    for (ino, _) in inodes.iter().filter(|(ino, seen)| seen.kind == Kind::Symlink && !links.contains(ino)) {
        report.wrong(format!("link {ino} has no target"));
    }
    for row in read.open_table(XATTRS)?.iter()? {
        let ino = row?.0.value().0;
        if !inodes.contains_key(&ino) {
            report.wrong(format!("inode {ino} has an extended attribute and does not exist"));
        }
    }
    Ok(())
}

fn inode(ino: u64, seen: &Seen, orphan: bool, report: &mut Report) {
    let Seen { kind, nlink, names, directories, left, .. } = seen;
    match kind {
        Kind::Directory if *left != 0 => {
            report.wrong(format!("directory {ino} has {} names less than its size says", left));
        }
        Kind::File if *left != 0 => report.wrong(format!("inode {ino} has {left} blocks less than it says")),
        _ => {}
    }
    let named = match kind {
        Kind::Directory if ino == ROOT => {
            if *names > 0 {
                report.wrong(format!("the root directory has {names} names"));
            }
            directories + 2
        }
        Kind::Directory if *names == 0 => 0,
        Kind::Directory => directories + 2,
        _ => *names,
    };
    if *nlink != named {
        report.wrong(format!("inode {ino} says it has {nlink} links, and has {named}"));
    }
    if *kind == Kind::Directory && *names > 1 {
        report.wrong(format!("directory {ino} has {names} names"));
    }
    if *nlink == 0 && !orphan {
        report.wrong(format!("inode {ino} has no name and is not to be freed"));
    }
}

/// Every directory with a name is found from the root.
fn reachable(inodes: &FxHashMap<u64, Seen>, report: &mut Report) {
    let mut good: FxHashSet<u64> = FxHashSet::from_iter([ROOT]);
    let mut all: Vec<u64> =
        inodes.iter().filter(|(_, seen)| seen.names > 0 && seen.kind == Kind::Directory).map(|(ino, _)| *ino).collect();
    all.sort_unstable();
    for start in all {
        let (mut way, mut at) = (Vec::new(), start);
        let mut on_way = FxHashSet::default();
        let found = loop {
            if good.contains(&at) {
                break true;
            }
            if !on_way.insert(at) {
                break false;
            }
            way.push(at);
            match inodes.get(&at) {
                Some(seen) if seen.kind == Kind::Directory => at = seen.parent,
                _ => break false,
            }
        };
        if found {
            good.extend(way);
        } else {
            report.wrong(format!("directory {start} is not found from the root"));
        }
    }
}

#[cfg(test)]
mod tests;
