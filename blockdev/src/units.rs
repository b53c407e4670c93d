//! Addresses and sizes as newtypes that do not convert by themselves.

/// Bytes in one logical block: the grain of thin provisioning, deduplication and checksums.
pub const BLOCK_SIZE: usize = 4096;
/// [`BLOCK_SIZE`] for arithmetic on byte offsets.
pub const BLOCK_BYTES: u64 = BLOCK_SIZE as u64;

macro_rules! newtype {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

newtype! {
    /// Logical block address within a volume, in blocks of [`BLOCK_SIZE`].
    Lba(u64)
}
newtype! {
    /// Identity of a stored block, independent of where it lies; 0 means "nothing here" (reads as zeroes). 48 bits on disk.
    VirtualBlock(u64)
}
newtype! {
    /// A segment: one redundancy extent used as a log-structured container of frames.
    SegmentId(u32)
}
newtype! {
    /// Index of a disk in the pool's catalogue; never reused while the pool lives.
    DiskId(u16)
}
newtype! {
    /// Index of a chunk on one disk.
    ChunkIndex(u32)
}
newtype! {
    /// Identity of a volume in the pool's catalogue; never reused.
    VolumeId(u32)
}
newtype! {
    /// Order of host operations over the whole pool.
    Seqno(u64)
}
newtype! {
    /// Writer epoch: raised by every opening for writing.
    Epoch(u64)
}

impl VirtualBlock {
    /// The unmapped block.
    pub const NONE: Self = Self(0);

    /// Whether this is the unmapped block.
    pub fn is_none(self) -> bool {
        self.0 == 0
    }
}

/// A 128-bit random identity (pool, disk), shown as hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Uuid(pub [u8; 16]);

impl std::fmt::Display for Uuid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl std::fmt::Debug for Uuid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Uuid({self})")
    }
}

impl From<Uuid> for String {
    fn from(uuid: Uuid) -> Self {
        uuid.to_string()
    }
}

impl TryFrom<String> for Uuid {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bad = || format!("'{text}' is not an identity of 32 hexadecimal digits");
        if text.len() != 32 || !text.is_ascii() {
            return Err(bad());
        }
        let mut out = [0; 16];
        for (i, byte) in out.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| bad())?;
        }
        Ok(Self(out))
    }
}
