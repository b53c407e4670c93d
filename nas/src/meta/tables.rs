//! The tables of the database, and the values that are not plain numbers.

use redb::TableDefinition;

use super::attr::Kind;
use super::txn::Counters;

/// Counters by name; see the constants below.
pub(crate) const SUPER: TableDefinition<&str, u64> = TableDefinition::new("super");
/// Number given to the next inode.
pub(crate) const NEXT_INO: &str = "next_ino";
/// Key of the hashes of names.
pub(crate) const HASH_KEY: &str = "hash_key";
/// Bits of those hashes that are used: 55, fewer in tests.
pub(crate) const HASH_BITS: &str = "hash_bits";
/// Blocks of the data volume that are part of the file system, the header's among them.
pub(crate) const BLOCKS: &str = "blocks";
/// How many of them are used by files.
pub(crate) const USED: &str = "used";
/// Inodes that exist, those without a name among them.
pub(crate) const INODES_USED: &str = "inodes";
/// Commits so far.
pub(crate) const COMMITS: &str = "commits";

/// Attributes by inode: [`super::attr::Attr::encode`].
pub(crate) const INODES: TableDefinition<u64, &[u8]> = TableDefinition::new("inodes");
/// Directory and cookie to inode, type and name: [`Entry`].
pub(crate) const ENTRIES: TableDefinition<(u64, u64), &[u8]> = TableDefinition::new("entries");
/// Inode and first block in the file to first block on the volume and number of blocks.
pub(crate) const EXTENTS: TableDefinition<(u64, u64), (u64, u64)> = TableDefinition::new("extents");
/// Target of a symbolic link.
pub(crate) const LINKS: TableDefinition<u64, &[u8]> = TableDefinition::new("links");
/// Extended attributes by inode and name.
pub(crate) const XATTRS: TableDefinition<(u64, &[u8]), &[u8]> = TableDefinition::new("xattrs");
/// Bitmap of each allocation group that is not empty.
pub(crate) const GROUPS: TableDefinition<u64, &[u8]> = TableDefinition::new("groups");
/// Files to be freed, or whose extents beyond their end are: 1 or 0 names left.
pub(crate) const ORPHANS: TableDefinition<u64, ()> = TableDefinition::new("orphans");

/// One name in a directory: inode (8 bytes), type (1), name (1 to 255).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub ino: u64,
    pub kind: Kind,
    pub name: Vec<u8>,
}

impl Entry {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(9 + self.name.len());
        value.extend_from_slice(&self.ino.to_le_bytes());
        value.push(self.kind as u8);
        value.extend_from_slice(&self.name);
        value
    }

    /// None when the value is not one.
    pub(crate) fn decode(value: &[u8]) -> Option<Self> {
        let (ino, rest) = value.split_first_chunk::<8>()?;
        let (kind, name) = rest.split_first()?;
        let kind = Kind::from_code(*kind)?;
        (!name.is_empty() && name.len() <= NAME_MAX).then(|| Self {
            ino: u64::from_le_bytes(*ino),
            kind,
            name: name.to_vec(),
        })
    }
}

/// Longest name, in bytes.
pub(crate) const NAME_MAX: usize = 255;

/// Names that may share a hash.
pub(crate) const SAME_HASH: u64 = 256;

/// Bits of hashes that are used.
pub(crate) const HASH_BITS_MAX: u64 = 55;

/// The first cookie of `name`: lower bits of its hash, never 0, and eight zeroes. So cookies are positive as `off_t`, and the smallest are
/// free for `.` and `..`.
pub(crate) fn cookie(counters: &Counters, name: &[u8]) -> u64 {
    let bits = counters.hash_bits.min(HASH_BITS_MAX);
    let hash = xxhash_rust::xxh3::xxh3_64_with_seed(name, counters.hash_key) & ((1 << bits) - 1);
    hash.max(1) << 8
}
