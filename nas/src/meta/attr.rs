//! The attributes of an inode.

/// What an inode is. The numbers are those of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// A regular file.
    File = 1,
    /// A directory.
    Directory = 2,
    /// A symbolic link.
    Symlink = 3,
    /// A named pipe.
    Fifo = 4,
    /// A socket.
    Socket = 5,
    /// A character device.
    CharDevice = 6,
    /// A block device.
    BlockDevice = 7,
}

impl Kind {
    pub(crate) fn from_code(code: u8) -> Option<Self> {
        use Kind::{BlockDevice, CharDevice, Directory, Fifo, File, Socket, Symlink};
        [File, Directory, Symlink, Fifo, Socket, CharDevice, BlockDevice].into_iter().find(|kind| *kind as u8 == code)
    }
}

/// A time: seconds since 1970, and nanoseconds after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds since 1970, also before.
    pub s: i64,
    /// Below 1,000,000,000.
    pub ns: u32,
}

/// Attributes of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Its number.
    pub ino: u64,
    /// What it is.
    pub kind: Kind,
    /// Permissions with set-user-ID, set-group-ID and sticky bit: 12 bits.
    pub mode: u16,
    /// Names it has; of a directory, 2 and one for each directory in it; 0 without any.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes; of a directory, how many names it has, times 32.
    pub size: u64,
    /// Blocks of 4 KiB that it takes.
    pub blocks: u64,
    /// Of a device.
    pub rdev: u32,
    /// The directory a directory lies in; else 0.
    pub parent: u64,
    /// Last read.
    pub atime: Time,
    /// Last change of content.
    pub mtime: Time,
    /// Last change of attributes or content.
    pub ctime: Time,
    /// When it was made.
    pub btime: Time,
}

/// Bytes of an encoded [`Attr`].
const LEN: usize = 104;

impl Attr {
    /// Little-endian: kind (1), 0 (1), mode (2), nlink, uid, gid, rdev (4 each), 0 (4), size, blocks, parent (8 each), then atime, mtime, ctime and btime as
    /// seconds (8) and nanoseconds (4), 0 (8). The number is the key.
    pub(crate) fn encode(&self) -> [u8; LEN] {
        let mut out = [0; LEN];
        out[0] = self.kind as u8;
        out[2..4].copy_from_slice(&self.mode.to_le_bytes());
        for (i, word) in [self.nlink, self.uid, self.gid, self.rdev].into_iter().enumerate() {
            out[4 + 4 * i..][..4].copy_from_slice(&word.to_le_bytes());
        }
        for (i, word) in [self.size, self.blocks, self.parent].into_iter().enumerate() {
            out[24 + 8 * i..][..8].copy_from_slice(&word.to_le_bytes());
        }
        for (i, time) in [self.atime, self.mtime, self.ctime, self.btime].into_iter().enumerate() {
            out[48 + 12 * i..][..8].copy_from_slice(&time.s.to_le_bytes());
            out[56 + 12 * i..][..4].copy_from_slice(&time.ns.to_le_bytes());
        }
        out
    }

    /// None when `value` is no inode.
    pub(crate) fn decode(ino: u64, value: &[u8]) -> Option<Self> {
        let value: &[u8; LEN] = value.try_into().ok()?;
        let word = |at: usize| u32::from_le_bytes(value[at..at + 4].try_into().expect("four bytes"));
        let long = |at: usize| u64::from_le_bytes(value[at..at + 8].try_into().expect("eight bytes"));
        let time = |i: usize| Time { s: long(48 + 12 * i).cast_signed(), ns: word(56 + 12 * i) };
        let times = [time(0), time(1), time(2), time(3)];
        if times.iter().any(|t| t.ns >= 1_000_000_000) {
            return None;
        }
        let [atime, mtime, ctime, btime] = times;
        Some(Self {
            ino,
            kind: Kind::from_code(value[0])?,
            mode: u16::from_le_bytes([value[2], value[3]]),
            nlink: word(4),
            uid: word(8),
            gid: word(12),
            rdev: word(16),
            size: long(24),
            blocks: long(32),
            parent: long(40),
            atime,
            mtime,
            ctime,
            btime,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back() {
        let time = |s| Time { s, ns: 999_999_999 };
        let attr = Attr {
            ino: 9,
            kind: Kind::CharDevice,
            mode: 0o7654,
            nlink: 1,
            uid: u32::MAX - 1,
            gid: 3,
            size: u64::MAX,
            blocks: 5,
            rdev: 6,
            parent: 7,
            atime: time(-1),
            mtime: time(i64::MAX),
            ctime: time(0),
            btime: time(1),
        };
        let bytes = attr.encode();
        assert_eq!(Attr::decode(9, &bytes), Some(attr));
        assert_eq!(Attr::decode(9, &bytes[1..]), None);
        let mut bad = bytes;
        bad[0] = 8;
        assert_eq!(Attr::decode(9, &bad), None);
        bad = bytes;
        bad[59] = 0xff;
        assert_eq!(Attr::decode(9, &bad), None, "nanoseconds");
    }
}
