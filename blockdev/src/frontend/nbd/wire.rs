//! NBD on the wire: pure encoding and decoding, no I/O. Everything is big-endian.
//!
//! Source: `doc/proto.md` and `doc/uri.md` of the NetworkBlockDevice project. Names are those of that document without
//! their `NBD_` prefix.

use bytes::{BufMut, BytesMut};

#[cfg(test)]
mod tests;

/// First word of the server's greeting: "NBDMAGIC".
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second word of the greeting, and the start of every option: "IHAVEOPT".
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Start of every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Start of every request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Start of every simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Start of every chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Longest string the protocol allows, in bytes.
pub const STRING_MAX: usize = 4096;

/// Handshake flags (bits of the server's greeting, and of the client's answer).
pub mod handshake_flag {
    /// Fixed newstyle negotiation.
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    /// No 124 zero bytes after the answer to `EXPORT_NAME`.
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// Transmission flags: what an export can do.
pub mod transmission_flag {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// `FLUSH` works.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// The `FUA` command flag works.
    pub const SEND_FUA: u16 = 1 << 3;
    /// `TRIM` works.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// `WRITE_ZEROES` works.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// The `DF` command flag works; only with structured replies.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection covers all.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// The `FAST_ZERO` command flag works.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Options of the handshake.
pub mod option {
    /// Choose an export and start transmission.
    pub const EXPORT_NAME: u32 = 1;
    /// Give up.
    pub const ABORT: u32 = 2;
    /// List exports.
    pub const LIST: u32 = 3;
    /// Go on encrypted.
    pub const STARTTLS: u32 = 5;
    /// Describe an export.
    pub const INFO: u32 = 6;
    /// Describe an export and start transmission.
    pub const GO: u32 = 7;
    /// Use structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// List metadata contexts.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Select metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
    /// Use 64-bit requests; not supported.
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Types of replies to options.
pub mod option_reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// One export of a list.
    pub const SERVER: u32 = 2;
    /// One piece of information on an export.
    pub const INFO: u32 = 3;
    /// One metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// Bit of all errors.
    pub const ERROR_BIT: u32 = 1 << 31;
    /// Unknown option.
    pub const ERR_UNSUP: u32 = ERROR_BIT | 1;
    /// Forbidden by the server's configuration.
    pub const ERR_POLICY: u32 = ERROR_BIT | 2;
    /// Malformed.
    pub const ERR_INVALID: u32 = ERROR_BIT | 3;
    /// Nothing goes before TLS.
    pub const ERR_TLS_REQD: u32 = ERROR_BIT | 5;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = ERROR_BIT | 6;
    /// The server is about to stop.
    pub const ERR_SHUTDOWN: u32 = ERROR_BIT | 7;
    /// Too large.
    pub const ERR_TOO_BIG: u32 = ERROR_BIT | 9;
}

/// Types of information on an export.
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// Canonical name.
    pub const NAME: u16 = 1;
    /// Text for people.
    pub const DESCRIPTION: u16 = 2;
    /// Minimum, preferred and maximum block size.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Requests.
pub mod command {
    /// Read.
    pub const READ: u16 = 0;
    /// Write; the payload follows the header.
    pub const WRITE: u16 = 1;
    /// Disconnect; not answered.
    pub const DISC: u16 = 2;
    /// Make completed writes durable.
    pub const FLUSH: u16 = 3;
    /// Give a range back.
    pub const TRIM: u16 = 4;
    /// Zero a range.
    pub const WRITE_ZEROES: u16 = 6;
    /// Query metadata contexts.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of requests.
pub mod command_flag {
    /// Answer when durable.
    pub const FUA: u16 = 1 << 0;
    /// Do not make a hole of what is zeroed.
    pub const NO_HOLE: u16 = 1 << 1;
    /// Answer with one content chunk.
    pub const DF: u16 = 1 << 2;
    /// One extent per context.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Fail unless zeroing is faster than writing.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Types of chunks of structured replies.
pub mod chunk {
    /// Flag: the last chunk of its reply.
    pub const FLAG_DONE: u16 = 1 << 0;
    /// Nothing but the flag.
    pub const NONE: u16 = 0;
    /// Bytes at an offset.
    pub const OFFSET_DATA: u16 = 1;
    /// Zeroes at an offset.
    pub const OFFSET_HOLE: u16 = 2;
    /// Extents of a metadata context.
    pub const BLOCK_STATUS: u16 = 5;
    /// An error and its text.
    pub const ERROR: u16 = (1 << 15) | 1;
}

/// Flags of extents in `base:allocation`.
pub mod state {
    /// Nothing is allocated.
    pub const HOLE: u32 = 1 << 0;
    /// Reads as zeroes.
    pub const ZERO: u32 = 1 << 1;
}

/// Error numbers of replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Errno {
    /// Not permitted; the export is read-only.
    Perm = 1,
    /// Input/output error.
    Io = 5,
    /// Invalid argument.
    Inval = 22,
    /// No space, or a write beyond the end.
    NoSpc = 28,
    /// Not supported.
    NotSup = 95,
    /// The server is going away.
    Shutdown = 108,
}

/// What is wrong with bytes from the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireError {
    /// A magic number is missing: the streams are out of step, or this is no NBD peer.
    Magic,
    /// A length reaches beyond the data, or data is left over.
    Length,
    /// A string is too long, or not UTF-8, or holds a NUL.
    Text,
}

impl std::fmt::Display for WireError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Magic => "wrong magic number",
            Self::Length => "a length does not fit the data",
            Self::Text => "a string is too long or not valid UTF-8",
        })
    }
}

impl std::error::Error for WireError {}

/// Takes fields off the front of a slice.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn bytes(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let (now, later) = self.0.split_at_checked(len).ok_or(WireError::Length)?;
        self.0 = later;
        Ok(now)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (now, later) = self.0.split_first_chunk().ok_or(WireError::Length)?;
        self.0 = later;
        Ok(*now)
    }

    fn u16(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string behind its 32-bit length.
    fn string(&mut self) -> Result<&'a str, WireError> {
        let len = self.u32()? as usize;
        if len > STRING_MAX {
            return Err(if len > self.0.len() { WireError::Length } else { WireError::Text });
        }
        text(self.bytes(len)?)
    }

    fn end(&self) -> Result<(), WireError> {
        if self.0.is_empty() { Ok(()) } else { Err(WireError::Length) }
    }
}

/// Bytes as a protocol string.
pub fn text(bytes: &[u8]) -> Result<&str, WireError> {
    if bytes.len() > STRING_MAX || bytes.contains(&0) {
        return Err(WireError::Text);
    }
    std::str::from_utf8(bytes).map_err(|_| WireError::Text)
}

/// The server's greeting with its handshake flags.
pub fn greeting(flags: u16) -> [u8; 18] {
    let mut out = [0; 18];
    out[..8].copy_from_slice(&GREETING_MAGIC.to_be_bytes());
    out[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    out[16..].copy_from_slice(&flags.to_be_bytes());
    out
}

/// Start of an option: which, and how many bytes of data follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// See [`option`].
    pub option: u32,
    /// Bytes of data behind the header.
    pub len: u32,
}

impl OptionHeader {
    /// Bytes on the wire.
    pub const SIZE: usize = 16;

    /// From the wire.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Result<Self, WireError> {
        let mut cursor = Cursor(bytes);
        if cursor.u64()? != OPTION_MAGIC {
            return Err(WireError::Magic);
        }
        Ok(Self { option: cursor.u32()?, len: cursor.u32()? })
    }

    /// For the wire.
    pub fn encode(self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        out[..8].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        out[8..12].copy_from_slice(&self.option.to_be_bytes());
        out[12..].copy_from_slice(&self.len.to_be_bytes());
        out
    }
}

/// Data of `INFO` and `GO`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InfoRequest<'a> {
    /// Export.
    pub name: &'a str,
    /// What the client wants to know, see [`info`].
    pub wanted: Vec<u16>,
}

impl<'a> InfoRequest<'a> {
    /// From an option's data.
    pub fn decode(data: &'a [u8]) -> Result<Self, WireError> {
        let mut cursor = Cursor(data);
        let name = cursor.string()?;
        let count = cursor.u16()?;
        let mut wanted = Vec::new();
        for _ in 0..count {
            wanted.push(cursor.u16()?);
        }
        cursor.end()?;
        Ok(Self { name, wanted })
    }
}

/// Data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaRequest<'a> {
    /// Export.
    pub export: &'a str,
    /// Names or patterns of contexts.
    pub queries: Vec<&'a str>,
}

impl<'a> MetaRequest<'a> {
    /// From an option's data.
    pub fn decode(data: &'a [u8]) -> Result<Self, WireError> {
        let mut cursor = Cursor(data);
        let export = cursor.string()?;
        let count = cursor.u32()?;
        let mut queries = Vec::new();
        // Each query takes four bytes at least, so a wild count ends at the end of the data.
        for _ in 0..count {
            queries.push(cursor.string()?);
        }
        cursor.end()?;
        Ok(Self { export, queries })
    }
}

/// Appends a reply to `option`.
pub fn put_option_reply(out: &mut BytesMut, option: u32, kind: u32, data: &[&[u8]]) {
    let len: usize = data.iter().map(|part| part.len()).sum();
    out.reserve(20 + len);
    out.put_u64(OPTION_REPLY_MAGIC);
    out.put_u32(option);
    out.put_u32(kind);
    out.put_u32(len as u32);
    for part in data {
        out.put_slice(part);
    }
}

/// A request's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// See [`command_flag`].
    pub flags: u16,
    /// See [`command`].
    pub command: u16,
    /// Chosen by the client, repeated in the reply.
    pub cookie: u64,
    /// Bytes from the start of the export.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
}

impl Request {
    /// Bytes on the wire.
    pub const SIZE: usize = 28;

    /// From the wire.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Result<Self, WireError> {
        let mut cursor = Cursor(bytes);
        if cursor.u32()? != REQUEST_MAGIC {
            return Err(WireError::Magic);
        }
        Ok(Self {
            flags: cursor.u16()?,
            command: cursor.u16()?,
            cookie: cursor.u64()?,
            offset: cursor.u64()?,
            len: cursor.u32()?,
        })
    }

    /// For the wire.
    pub fn encode(self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        out[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        out[4..6].copy_from_slice(&self.flags.to_be_bytes());
        out[6..8].copy_from_slice(&self.command.to_be_bytes());
        out[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        out[16..24].copy_from_slice(&self.offset.to_be_bytes());
        out[24..].copy_from_slice(&self.len.to_be_bytes());
        out
    }

    /// Bytes of payload behind the header.
    pub fn payload(&self) -> u32 {
        if self.command == command::WRITE { self.len } else { 0 }
    }
}

/// A short fixed-size message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    bytes: [u8; 32],
    len: u8,
}

impl Header {
    fn start() -> Self {
        Self { bytes: [0; 32], len: 0 }
    }

    fn put(mut self, field: &[u8]) -> Self {
        let at = usize::from(self.len);
        self.bytes[at..at + field.len()].copy_from_slice(field);
        self.len += field.len() as u8;
        self
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// A simple reply; the payload of a read follows it.
pub fn simple_reply(cookie: u64, errno: u32) -> Header {
    Header::start().put(&SIMPLE_REPLY_MAGIC.to_be_bytes()).put(&errno.to_be_bytes()).put(&cookie.to_be_bytes())
}

fn chunk_header(cookie: u64, flags: u16, kind: u16, len: u32) -> Header {
    Header::start()
        .put(&CHUNK_MAGIC.to_be_bytes())
        .put(&flags.to_be_bytes())
        .put(&kind.to_be_bytes())
        .put(&cookie.to_be_bytes())
        .put(&len.to_be_bytes())
}

/// Header and offset of a data chunk; `len` bytes of data follow it.
pub fn data_chunk(cookie: u64, flags: u16, offset: u64, len: u32) -> Header {
    chunk_header(cookie, flags, chunk::OFFSET_DATA, len + 8).put(&offset.to_be_bytes())
}

/// A whole hole chunk.
pub fn hole_chunk(cookie: u64, flags: u16, offset: u64, len: u32) -> Header {
    chunk_header(cookie, flags, chunk::OFFSET_HOLE, 12).put(&offset.to_be_bytes()).put(&len.to_be_bytes())
}

/// A whole chunk that says only that the reply is complete.
pub fn none_chunk(cookie: u64) -> Header {
    chunk_header(cookie, chunk::FLAG_DONE, chunk::NONE, 0)
}

/// A whole final error chunk. `message` is cut to the protocol's limit.
pub fn error_chunk(cookie: u64, errno: Errno, message: &str) -> BytesMut {
    let mut end = message.len().min(STRING_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    let message = &message.as_bytes()[..end];
    let header = chunk_header(cookie, chunk::FLAG_DONE, chunk::ERROR, 6 + message.len() as u32);
    let mut out = BytesMut::with_capacity(26 + message.len());
    out.put_slice(header.as_slice());
    out.put_u32(errno as u32);
    out.put_u16(message.len() as u16);
    out.put_slice(message);
    out
}

/// One extent of a metadata context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Bytes; never 0.
    pub len: u32,
    /// As the context defines them.
    pub flags: u32,
}

/// A whole block status chunk for the context `id`.
pub fn status_chunk(cookie: u64, flags: u16, id: u32, descriptors: &[Descriptor]) -> BytesMut {
    let len = 4 + 8 * descriptors.len();
    let mut out = BytesMut::with_capacity(20 + len);
    out.put_slice(chunk_header(cookie, flags, chunk::BLOCK_STATUS, len as u32).as_slice());
    out.put_u32(id);
    for descriptor in descriptors {
        out.put_u32(descriptor.len);
        out.put_u32(descriptor.flags);
    }
    out
}

/// Start of a server's message in the transmission phase, as a client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A simple reply.
    Simple {
        /// Of the request.
        cookie: u64,
        /// 0 is success.
        errno: u32,
    },
    /// A chunk of a structured reply; `len` bytes follow.
    Chunk {
        /// Of the request.
        cookie: u64,
        /// See [`chunk::FLAG_DONE`].
        flags: u16,
        /// See [`chunk`].
        kind: u16,
        /// Bytes behind the header.
        len: u32,
    },
}

impl Reply {
    /// Bytes of a simple reply's header.
    pub const SIMPLE_SIZE: usize = 16;
    /// Bytes of a chunk's header.
    pub const CHUNK_SIZE: usize = 20;

    /// From the wire: the reply and the bytes its header took. None while more bytes are needed.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, WireError> {
        let Some(magic) = bytes.first_chunk().map(|b| u32::from_be_bytes(*b)) else { return Ok(None) };
        let size = match magic {
            SIMPLE_REPLY_MAGIC => Self::SIMPLE_SIZE,
            CHUNK_MAGIC => Self::CHUNK_SIZE,
            _ => return Err(WireError::Magic),
        };
        let Some(header) = bytes.get(4..size) else { return Ok(None) };
        let mut cursor = Cursor(header);
        let reply = if magic == SIMPLE_REPLY_MAGIC {
            let errno = cursor.u32()?;
            Self::Simple { cookie: cursor.u64()?, errno }
        } else {
            let (flags, kind) = (cursor.u16()?, cursor.u16()?);
            Self::Chunk { cookie: cursor.u64()?, flags, kind, len: cursor.u32()? }
        };
        Ok(Some((reply, size)))
    }
}
