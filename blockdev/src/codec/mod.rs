//! Frames: a few blocks that arrived together, or one metadata page, compressed as one.
//!
//! A frame carries neither its codec nor its length; both are in what refers to it. Zstandard frames are stored without
//! magic number and checksum (blocks have checksums of their own), which matters at these sizes: see
//! `docs/design/0003-frame-size.md`.

mod lz4;
mod probe;

use std::cell::RefCell;

use zstd::zstd_safe::{self, CCtx, CParameter, DCtx, DParameter, FrameFormat, WriteBuf};

use crate::error::{Error, Result};
use crate::report::Compression;
use crate::units::BLOCK_SIZE;

pub use probe::is_zero;

/// Blocks of data that are compressed together; see `docs/design/0003-frame-size.md`.
pub const FRAME_BLOCKS: usize = 4;
/// Most blocks of one frame.
pub const FRAME_BLOCKS_MAX: usize = 8;
/// Most bytes of one frame before compression.
pub const FRAME_MAX: usize = FRAME_BLOCKS_MAX * BLOCK_SIZE;
/// A frame is stored compressed only if that saves at least one part in so many.
pub const SAVING_MIN: usize = 16;

/// Zstandard's level for data that has just been written.
const ZSTD_LEVEL: i32 = 1;

/// How a frame is stored. The numbers are on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// As it is.
    #[default]
    Raw = 0,
    /// An LZ4 block.
    Lz4 = 1,
    /// A Zstandard frame without magic number.
    Zstd = 2,
}

impl TryFrom<u8> for Codec {
    type Error = Error;

    fn try_from(number: u8) -> Result<Self> {
        match number {
            0 => Ok(Self::Raw),
            1 => Ok(Self::Lz4),
            2 => Ok(Self::Zstd),
            _ => Err(Error::corrupt(format!("codec {number} is unknown"))),
        }
    }
}

/// Compresses frames. Keeps its work space between frames, so every thread should keep one.
pub struct Compressor {
    zstd: CCtx<'static>,
    /// Room for LZ4, which asks for more than its result takes; it is never cleared.
    room: Vec<u8>,
}

impl Default for Compressor {
    fn default() -> Self {
        Self::new()
    }
}

impl Compressor {
    /// For data that has just been written.
    pub fn new() -> Self {
        Self::with_level(ZSTD_LEVEL)
    }

    /// With another Zstandard level, for data that has time. Levels out of the library's range are brought into it.
    pub fn with_level(level: i32) -> Self {
        let mut zstd = CCtx::create();
        let parameters = [
            CParameter::CompressionLevel(level),
            CParameter::Format(FrameFormat::Magicless),
            CParameter::ContentSizeFlag(false),
            CParameter::ChecksumFlag(false),
            CParameter::DictIdFlag(false),
        ];
        for parameter in parameters {
            zstd.set_parameter(parameter)
                .unwrap_or_else(|code| unreachable!("zstd: {}", zstd_safe::get_error_name(code)));
        }
        Self { zstd, room: Vec::new() }
    }

    /// Appends `raw` to `out` in the smallest form `compression` allows and says which that is: [`Codec::Raw`] unless
    /// compression saves a [`SAVING_MIN`]th.
    pub fn compress(&mut self, compression: Compression, raw: &[u8], out: &mut Vec<u8>) -> Codec {
        let start = out.len();
        let limit = raw.len() - raw.len().div_ceil(SAVING_MIN);
        let lz4 = match compression {
            Compression::Off => None,
            Compression::Lz4 => pack_lz4(raw, &mut self.room),
            Compression::Zstd => match repetitions_only(raw, &mut self.room) {
                Some(len) => Some(len),
                // An error means that the result is longer than the limit.
                None if self.zstd.compress2(&mut Tail::of(out, limit), raw).is_ok() => return Codec::Zstd,
                None => None,
            },
        };
        out.truncate(start);
        match lz4.filter(|&len| len <= limit) {
            Some(len) => {
                out.extend_from_slice(&self.room[..len]);
                Codec::Lz4
            }
            None => {
                out.extend_from_slice(raw);
                Codec::Raw
            }
        }
    }
}

/// Room behind what is in a vector, for the library to fill; nobody has to clear it first.
struct Tail<'a> {
    vector: &'a mut Vec<u8>,
    start: usize,
    room: usize,
}

impl<'a> Tail<'a> {
    fn of(vector: &'a mut Vec<u8>, room: usize) -> Self {
        vector.reserve(room);
        Self { start: vector.len(), vector, room }
    }
}

// SAFETY: `as_mut_ptr` points to `capacity` bytes that `of` reserved, and only those that were filled become part of the vector.
unsafe impl WriteBuf for Tail<'_> {
    fn as_slice(&self) -> &[u8] {
        &self.vector[self.start..]
    }

    fn capacity(&self) -> usize {
        self.room
    }

    fn as_mut_ptr(&mut self) -> *mut u8 {
        // SAFETY: `start` is at most the vector's capacity.
        unsafe { self.vector.as_mut_ptr().add(self.start) }
    }

    /// # Safety
    /// The first `n` bytes of the room are filled.
    unsafe fn filled_until(&mut self, n: usize) {
        // SAFETY: the caller has filled `n` bytes from `start` on, within the capacity.
        unsafe { self.vector.set_len(self.start + n) }
    }
}

/// Puts the LZ4 form of `raw` into `room` and returns its length.
fn pack_lz4(raw: &[u8], room: &mut Vec<u8>) -> Option<usize> {
    let most = lz4_flex::block::get_maximum_output_size(raw.len());
    if room.len() < most {
        room.resize(most, 0);
    }
    lz4_flex::block::compress_into(raw, room).ok()
}

/// A frame whose LZ4 form is longer than one part in so many of it consists of literals for the most part.
const LITERALS_SHARE: usize = 4;

/// Where Zstandard would gain nothing over LZ4, which is several times as fast: the LZ4 form of `raw`, put into `room`, and its length.
///
/// That is so where an entropy coder has nothing to do (the bytes between constants are evenly distributed) and LZ4 leaves them
/// as literals. What stands for the repetitions is all that Zstandard could store shorter.
fn repetitions_only(raw: &[u8], room: &mut Vec<u8>) -> Option<usize> {
    if !probe::is_flat(raw) {
        return None;
    }
    let (hardly, mostly) = (raw.len() - raw.len().div_ceil(SAVING_MIN), raw.len() / LITERALS_SHARE);
    // Between nothing at all and enough to be worth it there may be something that Zstandard makes more of.
    pack_lz4(raw, room).filter(|&len| (len > mostly && len <= hardly) || len > raw.len() - raw.len() / 64)
}

thread_local! {
    static DECOMPRESSOR: RefCell<Option<DCtx<'static>>> = const { RefCell::new(None) };
}

/// Uncompresses a stored frame to `out`, which is as long as the frame was (at most [`FRAME_MAX`] bytes).
///
/// # Errors
/// Corrupt, with anything in `out`, when `data` is not a frame of that length in this codec. Never panics, whatever
/// `data` holds; that a result is the original is for checksums to tell.
pub fn decompress(codec: Codec, data: &[u8], out: &mut [u8]) -> Result<()> {
    let raw_len = out.len();
    let bad = |why: &str| {
        Error::corrupt(format!("{codec:?} frame of {} bytes, {raw_len} before compression: {why}", data.len()))
    };
    if raw_len > FRAME_MAX {
        return Err(bad("longer than a frame can be"));
    }
    let len = match codec {
        Codec::Raw if data.len() != raw_len => return Err(bad("lengths differ")),
        Codec::Raw => {
            out.copy_from_slice(data);
            raw_len
        }
        Codec::Lz4 => lz4::decompress(data, out).ok_or_else(|| bad("is no LZ4 block, or longer"))?,
        Codec::Zstd => unzstd(data, out).map_err(bad)?,
    };
    if len == raw_len { Ok(()) } else { Err(bad(&format!("holds {len} bytes"))) }
}

fn unzstd(data: &[u8], out: &mut [u8]) -> std::result::Result<usize, &'static str> {
    DECOMPRESSOR.with_borrow_mut(|kept| {
        if kept.is_none() {
            let mut context = DCtx::try_create().ok_or("no memory for decompression")?;
            context.set_parameter(DParameter::Format(FrameFormat::Magicless)).map_err(zstd_safe::get_error_name)?;
            *kept = Some(context);
        }
        let context = kept.as_mut().ok_or("no memory for decompression")?;
        context.decompress(out, data).map_err(zstd_safe::get_error_name)
    })
}

/// The fingerprint deduplication looks blocks up by (XXH3, 128 bits). Not cryptographic: equal fingerprints are a
/// reason to compare, never proof.
pub fn fingerprint(block: &[u8]) -> u128 {
    xxhash_rust::xxh3::xxh3_128(block)
}

/// What tells a block's content from another: 0 for zeroes, else the [`fingerprint`].
pub fn content(block: &[u8]) -> u128 {
    if is_zero(block) { 0 } else { fingerprint(block) }
}

#[cfg(test)]
mod tests;
