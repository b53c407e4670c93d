//! The first block of each volume. Little-endian:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `ASHLARFS` |
//! | 8 | 4 | format version |
//! | 12 | 4 | role: 1 metadata, 2 data |
//! | 16 | 16 | identity of the file system |
//! | 32 | 8 | metadata: length of the database in bytes; data: 0 |
//! | 4092 | 4 | CRC-32C of the bytes before |

use std::fmt;

use blockdev::error::{Error, ErrorKind, Result};
use bytes::Bytes;

use crate::BLOCK;

const MAGIC: &[u8; 8] = b"ASHLARFS";
/// Raised whenever an older program would misread what is stored.
pub(crate) const FORMAT_VERSION: u32 = 1;
const CRC_AT: usize = BLOCK as usize - 4;

/// What a volume is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Metadata = 1,
    Data = 2,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Metadata => "metadata",
            Role::Data => "data",
        })
    }
}

/// A volume's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub role: Role,
    pub identity: [u8; 16],
    /// Of the database, in bytes.
    pub length: u64,
}

impl Header {
    pub(crate) fn encode(&self) -> Bytes {
        let mut block = vec![0; BLOCK as usize];
        block[..8].copy_from_slice(MAGIC);
        block[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        block[12..16].copy_from_slice(&(self.role as u32).to_le_bytes());
        block[16..32].copy_from_slice(&self.identity);
        block[32..40].copy_from_slice(&self.length.to_le_bytes());
        let crc = crc32c::crc32c(&block[..CRC_AT]);
        block[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        Bytes::from(block)
    }

    /// The header in `block`, of a volume that should be for `role`.
    pub(crate) fn decode(block: &[u8], role: Role) -> Result<Self> {
        let word = |at: usize| u32::from_le_bytes(block[at..at + 4].try_into().expect("four bytes"));
        if block.len() != BLOCK as usize || &block[..8] != MAGIC {
            return Err(Error::new(ErrorKind::NotFound, format!("the {role} volume holds no file system of Ashlar")));
        }
        if word(CRC_AT) != crc32c::crc32c(&block[..CRC_AT]) {
            return Err(Error::corrupt(format!("the header of the {role} volume does not match its checksum")));
        }
        let version = word(8);
        if version != FORMAT_VERSION {
            let text = format!(
                "the file system has format version {version}; this program knows version {FORMAT_VERSION}: \
                 use the program that wrote it, or a newer one"
            );
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        if word(12) != role as u32 {
            return Err(Error::invalid(format!(
                "the volume given as {role} volume is the other one of its file system"
            )));
        }
        let identity = block[16..32].try_into().expect("sixteen bytes");
        let length = u64::from_le_bytes(block[32..40].try_into().expect("eight bytes"));
        Ok(Self { role, identity, length })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_and_refuses_what_is_wrong() {
        let header = Header { role: Role::Data, identity: [7; 16], length: 99 };
        let block = header.encode().to_vec();
        assert_eq!(Header::decode(&block, Role::Data).expect("whole"), header);
        assert_eq!(Header::decode(&block, Role::Metadata).expect_err("role").kind(), ErrorKind::InvalidArgument);
        assert_eq!(Header::decode(&[0; 4096], Role::Data).expect_err("empty").kind(), ErrorKind::NotFound);
        assert_eq!(Header::decode(&block[..100], Role::Data).expect_err("short").kind(), ErrorKind::NotFound);
        for at in 8..block.len() {
            let mut bad = block.clone();
            bad[at] ^= 0x40;
            assert_eq!(Header::decode(&bad, Role::Data).expect_err("damaged").kind(), ErrorKind::Corrupt, "{at}");
        }
    }
}
