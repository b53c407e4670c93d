//! What a file system should be, in memory.

use std::collections::BTreeMap;

use nas::fs::{Fallocate, New, ROOT, RenameFlags, XattrFlags};
use nas::{Errno, Kind, Result};

pub type Name = Vec<u8>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    pub kind: Kind,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    pub data: Vec<u8>,
    pub target: Vec<u8>,
    pub xattrs: BTreeMap<Name, Vec<u8>>,
    pub entries: BTreeMap<Name, u64>,
    pub parent: u64,
    /// Of a file without a name: somebody still has it.
    pub opens: u32,
}

/// A tree of inodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree(pub BTreeMap<u64, Inode>);

/// A byte range of one file got these bytes, or zeroes, after a commit.
#[derive(Clone, Debug)]
pub struct Written {
    pub ino: u64,
    pub offset: usize,
    pub bytes: Vec<u8>,
}

impl Tree {
    pub fn new() -> Self {
        let root = Inode { nlink: 2, parent: ROOT, ..inode(&New::directory(0o755)) };
        Self(BTreeMap::from([(ROOT, root)]))
    }

    pub fn get(&self, ino: u64) -> &Inode {
        &self.0[&ino]
    }

    fn of(&mut self, ino: u64) -> &mut Inode {
        self.0.get_mut(&ino).expect("an inode of the model")
    }

    fn dir(&self, ino: u64) -> Result<&Inode> {
        let dir = self.0.get(&ino).ok_or(Errno::STALE)?;
        match (dir.kind, dir.nlink) {
            (Kind::Directory, 0) => Err(Errno::NOENT),
            (Kind::Directory, _) => Ok(dir),
            _ => Err(Errno::NOTDIR),
        }
    }

    pub fn lookup(&self, dir: u64, name: &[u8]) -> Result<u64> {
        self.dir(dir)?.entries.get(name).copied().ok_or(Errno::NOENT)
    }

    /// The inode gets the number `ino`.
    pub fn create(&mut self, dir: u64, name: &[u8], new: &New<'_>, ino: u64) -> Result<()> {
        if self.dir(dir)?.entries.contains_key(name) {
            return Err(Errno::EXIST);
        }
        let above = self.of(dir);
        above.entries.insert(name.to_vec(), ino);
        let mut made = inode(new);
        if above.mode & 0o2000 != 0 {
            made.gid = above.gid;
        }
        if new.kind == Kind::Directory {
            above.nlink += 1;
            made.nlink = 2;
            made.mode |= above.mode & 0o2000;
            made.parent = dir;
        }
        self.0.insert(ino, made);
        Ok(())
    }

    pub fn link(&mut self, ino: u64, dir: u64, name: &[u8]) -> Result<()> {
        match (self.get(ino).kind, self.get(ino).nlink) {
            (Kind::Directory, _) => return Err(Errno::PERM),
            (_, 0) => return Err(Errno::NOENT),
            _ => {}
        }
        if self.dir(dir)?.entries.contains_key(name) {
            return Err(Errno::EXIST);
        }
        self.of(dir).entries.insert(name.to_vec(), ino);
        self.of(ino).nlink += 1;
        Ok(())
    }

    pub fn unlink(&mut self, dir: u64, name: &[u8]) -> Result<()> {
        let ino = self.lookup(dir, name)?;
        if self.get(ino).kind == Kind::Directory {
            return Err(Errno::ISDIR);
        }
        self.of(dir).entries.remove(name);
        self.drop_name(ino);
        Ok(())
    }

    pub fn rmdir(&mut self, dir: u64, name: &[u8]) -> Result<()> {
        let ino = self.lookup(dir, name)?;
        if self.get(ino).kind != Kind::Directory {
            return Err(Errno::NOTDIR);
        }
        if !self.get(ino).entries.is_empty() {
            return Err(Errno::NOTEMPTY);
        }
        self.of(dir).entries.remove(name);
        self.of(dir).nlink -= 1;
        self.drop_name(ino);
        Ok(())
    }

    fn drop_name(&mut self, ino: u64) {
        let node = self.of(ino);
        node.nlink = if node.kind == Kind::Directory { 0 } else { node.nlink - 1 };
        if node.nlink == 0 && node.opens == 0 {
            self.0.remove(&ino);
        }
    }

    pub fn release(&mut self, ino: u64) {
        let node = self.of(ino);
        node.opens -= 1;
        if node.opens == 0 && node.nlink == 0 {
            self.0.remove(&ino);
        }
    }

    fn below(&self, ino: u64, mut dir: u64) -> bool {
        while dir != ino && dir != ROOT {
            dir = self.get(dir).parent;
        }
        dir == ino
    }

    pub fn rename(&mut self, dir: u64, name: &[u8], to: u64, new: &[u8], flags: RenameFlags) -> Result<()> {
        self.dir(dir)?;
        self.dir(to)?;
        let ino = self.lookup(dir, name)?;
        let there = self.lookup(to, new).ok();
        match (there, flags) {
            (Some(_), RenameFlags::NoReplace) => return Err(Errno::EXIST),
            (None, RenameFlags::Exchange) => return Err(Errno::NOENT),
            _ => {}
        }
        let is_dir = |tree: &Self, ino: u64| tree.get(ino).kind == Kind::Directory;
        if dir != to && is_dir(self, ino) && self.below(ino, to) {
            return Err(Errno::INVAL);
        }
        if dir != to && there.is_some_and(|there| is_dir(self, there) && self.below(there, dir)) {
            return Err(Errno::INVAL);
        }
        if there == Some(ino) {
            return Ok(());
        }
        if let (Some(there), RenameFlags::Replace) = (there, flags) {
            match (is_dir(self, ino), is_dir(self, there)) {
                (true, false) => return Err(Errno::NOTDIR),
                (false, true) => return Err(Errno::ISDIR),
                (true, true) if !self.get(there).entries.is_empty() => return Err(Errno::NOTEMPTY),
                _ => {}
            }
        }
        let moves = [(Some(ino), dir, to, new), (there.filter(|_| flags == RenameFlags::Exchange), to, dir, name)];
        self.of(dir).entries.remove(name);
        self.of(to).entries.remove(new);
        for (ino, from, into, name) in moves {
            let Some(ino) = ino else { continue };
            self.of(into).entries.insert(name.to_vec(), ino);
            if is_dir(self, ino) {
                self.of(from).nlink -= 1;
                self.of(into).nlink += 1;
                self.of(ino).parent = into;
            }
        }
        if let (Some(there), RenameFlags::Replace) = (there, flags) {
            if is_dir(self, there) {
                self.of(to).nlink -= 1;
            }
            self.drop_name(there);
        }
        Ok(())
    }

    /// Content that changes: what to note of it.
    pub fn write(&mut self, ino: u64, offset: usize, bytes: &[u8]) -> Vec<Written> {
        let data = &mut self.of(ino).data;
        let old = data.len();
        let mut written = Vec::new();
        if data.len() < offset + bytes.len() {
            data.resize(offset + bytes.len(), 0);
        }
        if old < offset {
            written.push(Written { ino, offset: old, bytes: vec![0; offset - old] });
        }
        data[offset..offset + bytes.len()].copy_from_slice(bytes);
        written.push(Written { ino, offset, bytes: bytes.to_vec() });
        written
    }

    pub fn truncate(&mut self, ino: u64, size: usize) -> Vec<Written> {
        let data = &mut self.of(ino).data;
        let old = data.len();
        data.resize(size, 0);
        if size > old { vec![Written { ino, offset: old, bytes: vec![0; size - old] }] } else { Vec::new() }
    }

    pub fn fallocate(&mut self, ino: u64, what: Fallocate, offset: usize, len: usize) -> Vec<Written> {
        let mut written = Vec::new();
        let keeps = matches!(
            what,
            Fallocate::PunchHole | Fallocate::Allocate { keep_size: true } | Fallocate::ZeroRange { keep_size: true }
        );
        if !keeps && offset + len > self.get(ino).data.len() {
            written.extend(self.truncate(ino, offset + len));
        }
        if !matches!(what, Fallocate::Allocate { .. }) {
            let data = &mut self.of(ino).data;
            let end = (offset + len).min(data.len());
            if offset < end {
                data[offset..end].fill(0);
                written.push(Written { ino, offset, bytes: vec![0; end - offset] });
            }
        }
        written
    }

    pub fn chmod(&mut self, ino: u64, mode: u16, uid: u32, gid: u32) {
        let node = self.of(ino);
        (node.mode, node.uid, node.gid) = (mode, uid, gid);
    }

    pub fn setxattr(&mut self, ino: u64, name: &[u8], value: &[u8], flags: XattrFlags) -> Result<()> {
        let xattrs = &mut self.of(ino).xattrs;
        match (flags, xattrs.contains_key(name)) {
            (XattrFlags::Create, true) => return Err(Errno::EXIST),
            (XattrFlags::Replace, false) => return Err(Errno::NODATA),
            _ => {}
        }
        xattrs.insert(name.to_vec(), value.to_vec());
        Ok(())
    }

    pub fn removexattr(&mut self, ino: u64, name: &[u8]) -> Result<()> {
        self.of(ino).xattrs.remove(name).map(drop).ok_or(Errno::NODATA)
    }

    /// The power went: what has no name is gone.
    pub fn forget_open(&mut self) {
        self.0.retain(|_, node| {
            node.opens = 0;
            node.nlink > 0
        });
    }
}

fn inode(new: &New<'_>) -> Inode {
    Inode {
        kind: new.kind,
        mode: new.mode,
        uid: new.uid,
        gid: new.gid,
        nlink: 1,
        data: Vec::new(),
        target: new.target.to_vec(),
        xattrs: BTreeMap::new(),
        entries: BTreeMap::new(),
        parent: 0,
        opens: 0,
    }
}
