//! One seed: operations against file system and model, crashes, checks.

use std::collections::BTreeMap;
use std::sync::Arc;

use blockdev::env::Rng;
use bytes::Bytes;
use nas::fs::{Fallocate, FileSystem, New, Options, ROOT, RenameFlags, SetAttr, Whence, XattrFlags};
use nas::{Errno, Kind, Pair, Result, Time};

use super::device::Pool;
use super::oracle::{Tree, Written};

/// Longest file.
const FILE_MAX: u64 = 200_000;

/// What the tables had at a commit, and what was written since.
struct Snapshot {
    tree: Tree,
    /// Index into the log of writes.
    writes: usize,
}

pub struct Run {
    rng: Rng,
    pool: Pool,
    fs: Option<Arc<FileSystem>>,
    tree: Tree,
    snapshots: BTreeMap<u64, Snapshot>,
    writes: Vec<Written>,
    /// Files whose content was made durable as it is, and the log's length then; until they change in size or place.
    synced: BTreeMap<u64, (Vec<u8>, usize)>,
    /// The newest commit that is known to be durable.
    durable: u64,
    verbose: bool,
}

type Outcome<T> = std::result::Result<T, String>;

fn options(hash_bits: u64) -> Options {
    let clock = Box::new(|| Time { s: 1_000_000_000, ns: 5 });
    Options { cache_bytes: 1 << 20, background: false, clock, hash_key: 0, hash_bits }
}

impl Run {
    pub fn new(seed: u64, verbose: bool) -> Outcome<Self> {
        let mut rng = Rng::new(seed);
        // A third of the seeds run out of space now and then.
        let data = if rng.chance(1, 3) { 16 << 20 } else { 64 << 20 };
        let hash_bits = if rng.chance(1, 3) { 2 } else { 55 };
        let pool = Pool::new([64 << 20, data]);
        let [meta, files] = pool.volumes();
        let pair = nas::format(meta, files, [3; 16]).map_err(|e| format!("format: {e}"))?;
        let fs = FileSystem::open(pair, options(hash_bits)).map_err(|e| format!("first open: {e}"))?;
        let durable = fs.commits();
        let tree = Tree::new();
        let snapshots = BTreeMap::from([(durable, Snapshot { tree: tree.clone(), writes: 0 })]);
        let fs = Some(fs);
        Ok(Self { rng, pool, fs, tree, snapshots, writes: Vec::new(), synced: BTreeMap::new(), durable, verbose })
    }

    fn fs(&self) -> Arc<FileSystem> {
        Arc::clone(self.fs.as_ref().expect("it is open"))
    }

    /// Several lives, each ended by a crash or orderly.
    pub fn lives(&mut self, lives: u64) -> Outcome<()> {
        for _ in 0..lives {
            if self.rng.chance(3, 4) {
                let reach = 1 << self.rng.between(1, 12);
                self.pool.fail_after(1 + self.rng.below(reach));
            }
            for _ in 0..self.rng.between(5, 200) {
                let before = (self.tree.clone(), self.writes.len());
                self.step()?;
                self.note_commit(before);
                if self.pool.is_dead() {
                    break;
                }
            }
            self.crash()?;
        }
        Ok(())
    }

    /// If the operation made a commit, it has the state before it or after it: those that make one on their own change nothing.
    fn note_commit(&mut self, before: (Tree, usize)) {
        let commits = self.fs().commits();
        self.snapshots.entry(commits).or_insert(Snapshot { tree: before.0, writes: before.1 });
    }

    fn crash(&mut self) -> Outcome<()> {
        let orderly = !self.pool.is_dead() && self.rng.chance(1, 4);
        let last = self.fs().commits();
        if orderly {
            self.pool.fail_after(u64::MAX);
            for ino in self.open_files() {
                self.fs().release(ino);
                self.tree.release(ino);
            }
            self.fs().close().map_err(|e| format!("close: {e}"))?;
            let commits = self.fs().commits();
            self.snapshots.insert(commits, Snapshot { tree: self.tree.clone(), writes: self.writes.len() });
            self.durable = commits;
        }
        self.fs = None;
        let open = self.pool.open_changes();
        let kept = if orderly { open } else { self.rng.index(open + 1) };
        if self.verbose {
            println!("crash: {kept} of {open} changes kept, commits {} to {last}", self.durable);
        }
        self.pool.restart(kept);
        let [meta, files] = self.pool.volumes();
        let pair = Pair::open(meta.clone(), files.clone()).map_err(|e| format!("volumes: {e}"))?;
        let report = nas::check::check(&pair).map_err(|e| format!("check: {e}"))?;
        if !report.is_clean() {
            return Err(format!("after a crash: {:?}", report.problems));
        }
        let fs = FileSystem::open(pair, options(55)).map_err(|e| format!("open: {e}"))?;
        let commits = fs.commits();
        if commits < self.durable {
            return Err(format!("commit {} was durable, {commits} is there", self.durable));
        }
        let snapshot = self.snapshots.remove(&commits).ok_or_else(|| format!("nobody knows of commit {commits}"))?;
        let mut expected = snapshot.tree;
        expected.forget_open();
        self.fs = Some(fs);
        self.tree = self.compare(&expected, snapshot.writes, true)?;
        // What the crash left is freed, and nothing is lost on the way.
        self.fs().tick().map_err(|e| format!("tick: {e}"))?;
        self.fs().sync().map_err(|e| format!("sync: {e}"))?;
        let report = self.fs().check().map_err(|e| format!("check: {e}"))?;
        if !report.is_clean() || report.orphans > 0 {
            return Err(format!("after freeing: {} orphans, {:?}", report.orphans, report.problems));
        }
        self.durable = self.fs().commits();
        self.writes.clear();
        self.synced.clear();
        self.snapshots = BTreeMap::from([(self.durable, Snapshot { tree: self.tree.clone(), writes: 0 })]);
        Ok(())
    }

    fn open_files(&self) -> Vec<u64> {
        self.tree.0.iter().flat_map(|(ino, node)| (0..node.opens).map(|_| *ino)).collect()
    }

    /// The tree of the file system, which must be `expected`; bytes may have what was written after it, if `later`.
    fn compare(&self, expected: &Tree, writes: usize, later: bool) -> Outcome<Tree> {
        let fs = self.fs();
        let mut found = expected.clone();
        for (ino, node) in &expected.0 {
            let attr = fs.getattr(*ino).map_err(|e| format!("inode {ino}: {e}"))?;
            let is = (attr.kind, attr.mode, attr.uid, attr.gid, attr.nlink);
            let should = (node.kind, node.mode, node.uid, node.gid, node.nlink);
            if is != should {
                return Err(format!("inode {ino} is {is:?}, not {should:?}"));
            }
            let mut names: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
            for name in fs.listxattr(*ino).map_err(|e| format!("names of {ino}: {e}"))? {
                let value = fs.getxattr(*ino, &name).map_err(|e| format!("attribute of {ino}: {e}"))?;
                names.insert(name, value);
            }
            if names != node.xattrs {
                return Err(format!("attributes of {ino}: {names:?}, not {:?}", node.xattrs));
            }
            match node.kind {
                Kind::Directory => self.compare_directory(*ino, node.nlink, &expected.get(*ino).entries)?,
                Kind::Symlink => {
                    let target = fs.readlink(*ino).map_err(|e| format!("link {ino}: {e}"))?;
                    if target != node.target {
                        return Err(format!("link {ino} has another target"));
                    }
                }
                Kind::File => {
                    let base = match self.synced.get(ino).filter(|(_, at)| later && *at >= writes) {
                        Some((data, at)) => (data.as_slice(), *at),
                        None => (node.data.as_slice(), writes),
                    };
                    let data = self.compare_content(*ino, node.data.len(), base, later)?;
                    found.0.get_mut(ino).expect("it is there").data = data;
                }
                _ => {}
            }
        }
        Ok(found)
    }

    fn compare_directory(&self, ino: u64, nlink: u32, entries: &BTreeMap<Vec<u8>, u64>) -> Outcome<()> {
        let (fs, mut cookie, mut names) = (self.fs(), 0, BTreeMap::new());
        loop {
            let batch = fs.readdir(ino, cookie, 7).map_err(|e| format!("list {ino}: {e}"))?;
            let Some(last) = batch.last() else { break };
            cookie = last.cookie;
            for entry in batch.into_iter().filter(|entry| entry.cookie > 2) {
                if names.insert(entry.name.clone(), entry.ino).is_some() {
                    return Err(format!("{ino} lists a name twice"));
                }
            }
        }
        if &names != entries {
            return Err(format!("directory {ino} ({nlink} links) has {names:?}, not {entries:?}"));
        }
        for (name, target) in entries {
            match fs.lookup(ino, name) {
                Ok(attr) if attr.ino == *target => {}
                other => return Err(format!("a name of {ino} is {other:?}, not {target}")),
            }
        }
        Ok(())
    }

    fn compare_content(&self, ino: u64, size: usize, base: (&[u8], usize), later: bool) -> Outcome<Vec<u8>> {
        let fs = self.fs();
        let data = fs.read(ino, 0, FILE_MAX as usize * 2).map_err(|e| format!("read {ino}: {e}"))?;
        if data.len() != size {
            return Err(format!("file {ino} has {} bytes, not {size}", data.len()));
        }
        let may = |at: usize| {
            later
                && self.writes[base.1..].iter().any(|written| {
                    let within = at.checked_sub(written.offset).and_then(|i| written.bytes.get(i));
                    written.ino == ino && within == Some(&data[at])
                })
        };
        for at in 0..size {
            if base.0.get(at) != Some(&data[at]) && !may(at) {
                let is = data[at];
                return Err(format!("byte {at} of file {ino} (of {size}) is {is}, not {:?}", base.0.get(at)));
            }
        }
        Ok(data.to_vec())
    }

    fn pick(&mut self, kinds: &[Kind]) -> Option<u64> {
        let all: Vec<u64> =
            self.tree.0.iter().filter(|(_, node)| kinds.contains(&node.kind)).map(|(ino, _)| *ino).collect();
        (!all.is_empty()).then(|| all[self.rng.index(all.len())])
    }

    /// A name for `dir`, half of the time one that is there.
    fn name(&mut self, dir: u64) -> Vec<u8> {
        let there: Vec<Vec<u8>> = self.tree.get(dir).entries.keys().cloned().collect();
        if !there.is_empty() && self.rng.chance(1, 2) {
            return there[self.rng.index(there.len())].clone();
        }
        match self.rng.below(40) {
            0 => vec![b'x'; 255],
            1 => b"\xff\xfe\n\x01".to_vec(),
            n => format!("n{}", n % 24).into_bytes(),
        }
    }

    /// The result of an operation on names must be the model's. With the power gone anything may have failed.
    fn same(&self, what: &str, is: &Result<()>, should: &Result<()>) -> Outcome<()> {
        if self.verbose {
            println!("{what}: {is:?}");
        }
        if is != should && !(self.pool.is_dead() && *is == Err(Errno::IO)) {
            return Err(format!("{what}: {is:?}, not {should:?}"));
        }
        Ok(())
    }

    /// Runs an operation on names on both. The model goes back if the power was gone.
    fn names(&mut self, what: String, is: Result<()>, model: impl FnOnce(&mut Tree) -> Result<()>) -> Outcome<()> {
        let mut tree = self.tree.clone();
        let should = model(&mut tree);
        self.same(&what, &is, &should)?;
        if is.is_ok() {
            self.tree = tree;
        }
        Ok(())
    }

    /// Runs an operation on content on both: it may fail for want of space, and may have written something all the same.
    fn content(
        &mut self,
        what: String,
        ino: u64,
        operation: impl FnOnce(&FileSystem) -> Result<()>,
        model: impl FnOnce(&mut Tree) -> Vec<Written>,
    ) -> Outcome<()> {
        let fs = self.fs();
        let place = |fs: &FileSystem| fs.getattr(ino).map(|attr| (attr.size, attr.blocks)).ok();
        let before = place(&fs);
        let is = operation(&fs);
        if self.verbose {
            println!("{what}: {is:?}");
        }
        let mut tree = self.tree.clone();
        self.writes.extend(model(&mut tree));
        if before != place(&fs) || is.is_err() {
            self.synced.remove(&ino);
        }
        match is {
            Ok(()) => self.tree = tree,
            Err(Errno::NOSPC) if !self.pool.is_dead() => {
                // What was done before the space ran out stays done.
                let size = fs.getattr(ino).map_err(|e| format!("{what}: {e}"))?.size as usize;
                let data = fs.read(ino, 0, size).map_err(|e| format!("{what}: {e}"))?.to_vec();
                self.tree.0.get_mut(&ino).expect("a file").data = data;
            }
            Err(Errno::IO) if self.pool.is_dead() => {}
            Err(errno) => return Err(format!("{what}: {errno}")),
        }
        Ok(())
    }

    fn step(&mut self) -> Outcome<()> {
        let fs = self.fs();
        let dir = self.pick(&[Kind::Directory]).unwrap_or(ROOT);
        let name = self.name(dir);
        match self.rng.below(28) {
            0..=3 => self.create(dir, &name),
            4 => {
                let Some(ino) = self.pick(&[Kind::File, Kind::Symlink, Kind::Directory]) else { return Ok(()) };
                let is = fs.link(ino, dir, &name).map(drop);
                self.names(format!("link {ino} to {dir}"), is, |tree| tree.link(ino, dir, &name))
            }
            5 => self.names(format!("unlink in {dir}"), fs.unlink(dir, &name), |tree| tree.unlink(dir, &name)),
            6 => self.names(format!("rmdir in {dir}"), fs.rmdir(dir, &name), |tree| tree.rmdir(dir, &name)),
            7..=9 => {
                let to = self.pick(&[Kind::Directory]).unwrap_or(ROOT);
                let new = self.name(to);
                let flags = match self.rng.below(4) {
                    0 => RenameFlags::NoReplace,
                    1 => RenameFlags::Exchange,
                    _ => RenameFlags::Replace,
                };
                let is = fs.rename(dir, &name, to, &new, flags);
                let what =
                    format!("rename {} in {dir} to {} in {to}, {flags:?}", name.escape_ascii(), new.escape_ascii());
                self.names(what, is, |tree| tree.rename(dir, &name, to, &new, flags))
            }
            10 => {
                let Some(ino) = self.pick(&[Kind::File]) else { return Ok(()) };
                let (mode, uid, gid) =
                    (self.rng.below(0o10000) as u16, self.rng.below(9) as u32, self.rng.below(9) as u32);
                let set = SetAttr { mode: Some(mode), uid: Some(uid), gid: Some(gid), ..SetAttr::default() };
                let is = fs.setattr(ino, &set).map(drop);
                self.names(format!("setattr {ino}"), is, |tree| {
                    tree.chmod(ino, mode, uid, gid);
                    Ok(())
                })
            }
            11 | 12 => self.xattr(),
            13 => self.open_or_release(),
            14 => {
                let is = fs.sync();
                self.synced_all(&is);
                self.same("sync", &is, &Ok(()))
            }
            15 => {
                let is = fs.tick();
                self.same("tick", &is, &Ok(()))
            }
            16 => self.fsync(),
            17 => self.look(),
            _ => self.change_content(),
        }
    }

    fn synced_all(&mut self, is: &Result<()>) {
        if is.is_ok() {
            self.durable = self.fs().commits();
        }
    }

    fn create(&mut self, dir: u64, name: &[u8]) -> Outcome<()> {
        let mode = self.rng.below(0o10000) as u16;
        let new = match self.rng.below(8) {
            0..=3 => New::file(mode),
            4 | 5 => New { uid: 4, gid: 5, ..New::directory(mode) },
            6 => New { kind: Kind::Symlink, target: b"where/to", ..New::file(0o777) },
            _ => New { kind: Kind::Fifo, rdev: 0, ..New::file(mode) },
        };
        let made = self.fs().create(dir, name, &new);
        let ino = made.map_or(0, |attr| attr.ino);
        let what = format!("create {:?} {} in {dir}: {ino}", new.kind, name.escape_ascii());
        self.names(what, made.map(drop), |tree| tree.create(dir, name, &new, ino))
    }

    fn xattr(&mut self) -> Outcome<()> {
        let Some(ino) = self.pick(&[Kind::File, Kind::Directory]) else { return Ok(()) };
        let name = format!("user.{}", self.rng.below(4)).into_bytes();
        let fs = self.fs();
        if self.rng.chance(1, 3) {
            return self
                .names(format!("removexattr {ino}"), fs.removexattr(ino, &name), |tree| tree.removexattr(ino, &name));
        }
        let mut value = vec![0; self.rng.index(300)];
        self.rng.fill(&mut value);
        let flags = match self.rng.below(3) {
            0 => XattrFlags::Any,
            1 => XattrFlags::Create,
            _ => XattrFlags::Replace,
        };
        let is = fs.setxattr(ino, &name, &value, flags);
        self.names(format!("setxattr {ino} {flags:?}"), is, |tree| tree.setxattr(ino, &name, &value, flags))
    }

    fn open_or_release(&mut self) -> Outcome<()> {
        let open = self.open_files();
        if !open.is_empty() && self.rng.chance(1, 2) {
            let ino = open[self.rng.index(open.len())];
            self.fs().release(ino);
            self.tree.release(ino);
            return Ok(());
        }
        let Some(ino) = self.pick(&[Kind::File]) else { return Ok(()) };
        let is = self.fs().opened(ino);
        self.names(format!("open {ino}"), is, |tree| {
            tree.0.get_mut(&ino).expect("a file").opens += 1;
            Ok(())
        })
    }

    fn fsync(&mut self) -> Outcome<()> {
        let Some(ino) = self.pick(&[Kind::File, Kind::Directory]) else { return Ok(()) };
        let data_only = self.rng.chance(1, 2);
        let is = self.fs().fsync(ino, data_only);
        if is.is_ok() {
            self.durable = self.fs().commits();
            if self.tree.get(ino).kind == Kind::File {
                self.synced.insert(ino, (self.tree.get(ino).data.clone(), self.writes.len()));
            }
        }
        self.same(&format!("fsync {ino} data only {data_only}"), &is, &Ok(()))
    }

    /// Reads all of what is there, or where data is.
    fn look(&mut self) -> Outcome<()> {
        if self.pool.is_dead() {
            return Ok(());
        }
        if self.rng.chance(1, 4) {
            return self.compare(&self.tree, self.writes.len(), false).map(drop);
        }
        let Some(ino) = self.pick(&[Kind::File]) else { return Ok(()) };
        let (fs, data) = (self.fs(), self.tree.get(ino).data.clone());
        let offset = self.rng.below(data.len() as u64 + 1);
        let len = self.rng.index(FILE_MAX as usize);
        let read = fs.read(ino, offset, len).map_err(|e| format!("read {ino}: {e}"))?;
        let end = data.len().min(offset as usize + len);
        if read != data[offset as usize..end.max(offset as usize)] {
            return Err(format!("read of {ino} at {offset} is not what was written"));
        }
        match fs.seek(ino, offset, Whence::Data) {
            Ok(at) if data[offset as usize..at as usize].iter().any(|b| *b != 0) => {
                Err(format!("{ino} has no data in {offset}..{at}, and it has"))
            }
            Ok(_) => Ok(()),
            Err(Errno::NXIO) if data[offset as usize..].iter().all(|b| *b == 0) => Ok(()),
            Err(errno) => Err(format!("seek in {ino} at {offset}: {errno}")),
        }
    }

    fn change_content(&mut self) -> Outcome<()> {
        let Some(ino) = self.pick(&[Kind::File]) else { return Ok(()) };
        let grain = if self.rng.chance(1, 2) { 4096 } else { 1 };
        let most = FILE_MAX.min(1 << self.rng.between(4, 18));
        let offset = self.rng.below(most) / grain * grain;
        let len = (1 + self.rng.below(most)).div_ceil(grain) * grain;
        let end = (offset + len) as usize;
        let (at, len_bytes) = (offset as usize, len as usize);
        match self.rng.below(8) {
            0 => {
                let set = SetAttr { size: Some(offset), ..SetAttr::default() };
                let operation = |fs: &FileSystem| fs.setattr(ino, &set).map(drop);
                self.content(format!("truncate {ino} to {offset}"), ino, operation, |tree| tree.truncate(ino, at))
            }
            1 | 2 => {
                let what = match self.rng.below(5) {
                    0 => Fallocate::Allocate { keep_size: false },
                    1 => Fallocate::Allocate { keep_size: true },
                    2 => Fallocate::ZeroRange { keep_size: false },
                    3 => Fallocate::ZeroRange { keep_size: true },
                    _ => Fallocate::PunchHole,
                };
                let operation = |fs: &FileSystem| fs.fallocate(ino, what, offset, len);
                let model = |tree: &mut Tree| tree.fallocate(ino, what, at, len_bytes);
                self.content(format!("{what:?} of {ino}: {offset}..{end}"), ino, operation, model)
            }
            _ => {
                let mut data = vec![0; len_bytes];
                self.rng.fill(&mut data);
                let bytes = Bytes::from(data.clone());
                let operation = |fs: &FileSystem| fs.write(ino, offset, &bytes).map(drop);
                let model = |tree: &mut Tree| tree.write(ino, at, &data);
                self.content(format!("write {ino}: {offset}..{end}"), ino, operation, model)
            }
        }
    }
}
