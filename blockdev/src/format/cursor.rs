//! Bounds-checked little-endian reading and writing.

use crate::error::{Error, Result};

/// Appends little-endian integers to a byte vector.
pub trait Put {
    /// One byte.
    fn put_u8(&mut self, v: u8);
    /// Two bytes.
    fn put_u16(&mut self, v: u16);
    /// Four bytes.
    fn put_u32(&mut self, v: u32);
    /// Eight bytes.
    fn put_u64(&mut self, v: u64);
    /// Sixteen bytes.
    fn put_u128(&mut self, v: u128);
    /// LEB128, 1 to 10 bytes.
    fn put_varint(&mut self, v: u64);
    /// Length as a varint, then the bytes.
    fn put_bytes(&mut self, v: &[u8]);
}

impl Put for Vec<u8> {
    fn put_u8(&mut self, v: u8) {
        self.push(v);
    }
    fn put_u16(&mut self, v: u16) {
        self.extend_from_slice(&v.to_le_bytes());
    }
    fn put_u32(&mut self, v: u32) {
        self.extend_from_slice(&v.to_le_bytes());
    }
    fn put_u64(&mut self, v: u64) {
        self.extend_from_slice(&v.to_le_bytes());
    }
    fn put_u128(&mut self, v: u128) {
        self.extend_from_slice(&v.to_le_bytes());
    }
    fn put_varint(&mut self, mut v: u64) {
        while v >= 0x80 {
            self.push(v as u8 | 0x80);
            v >>= 7;
        }
        self.push(v as u8);
    }
    fn put_bytes(&mut self, v: &[u8]) {
        self.put_varint(v.len() as u64);
        self.extend_from_slice(v);
    }
}

/// Reads from the front of a slice; every method fails with `Corrupt` when the input is too short.
#[derive(Clone, Copy, Debug)]
pub struct Get<'a>(pub &'a [u8]);

impl<'a> Get<'a> {
    /// The next `n` bytes.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (head, tail) =
            self.0.split_at_checked(n).ok_or_else(|| Error::corrupt(format!("{} bytes missing", n - self.0.len())))?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8> {
        Ok(u8::from_le_bytes(self.array()?))
    }
    /// Two bytes.
    pub fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    /// Sixteen bytes.
    pub fn u128(&mut self) -> Result<u128> {
        Ok(u128::from_le_bytes(self.array()?))
    }
    /// Sixteen raw bytes.
    pub fn uuid(&mut self) -> Result<crate::units::Uuid> {
        Ok(crate::units::Uuid(self.array()?))
    }

    /// LEB128.
    pub fn varint(&mut self) -> Result<u64> {
        let mut out = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            out |= bits << shift;
            if byte == 0 && shift > 0 {
                return Err(Error::corrupt("a variable-length integer is longer than need be"));
            }
            if byte < 0x80 {
                return Ok(out);
            }
        }
        Err(Error::corrupt("a variable-length integer is too long"))
    }

    /// A varint that counts items of at least `item_min` bytes each (not 0) in what follows: never more than there is
    /// input for, so that what is allocated for them is bounded by the input.
    pub fn count(&mut self, item_min: usize) -> Result<usize> {
        let n = self.varint()?;
        let max = self.0.len() / item_min;
        usize::try_from(n)
            .ok()
            .filter(|&n| n <= max)
            .ok_or_else(|| Error::corrupt(format!("a count of {n}, but there is input for {max} at most")))
    }

    /// A varint that must be below `limit`.
    pub fn below(&mut self, limit: u64, what: &str) -> Result<u64> {
        let n = self.varint()?;
        if n < limit { Ok(n) } else { Err(Error::corrupt(format!("{what} {n} is not below {limit}"))) }
    }

    /// A byte that says yes (1) or no (0).
    pub fn flag(&mut self) -> Result<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            n => Err(Error::corrupt(format!("{n} is neither yes nor no"))),
        }
    }

    /// A varint that must fit 16 bits.
    pub fn varint16(&mut self) -> Result<u16> {
        u16::try_from(self.varint()?).map_err(|_| Error::corrupt("an integer exceeds 16 bits"))
    }

    /// A varint that must fit 32 bits.
    pub fn varint32(&mut self) -> Result<u32> {
        u32::try_from(self.varint()?).map_err(|_| Error::corrupt("an integer exceeds 32 bits"))
    }

    /// A length-prefixed byte string of at most `max` bytes.
    pub fn bytes(&mut self, max: usize) -> Result<&'a [u8]> {
        let n = self.count(1)?;
        if n > max {
            return Err(Error::corrupt(format!("{n} bytes where at most {max} may be")));
        }
        self.take(n)
    }

    /// A length-prefixed UTF-8 string of at most `max` bytes.
    pub fn string(&mut self, max: usize) -> Result<String> {
        String::from_utf8(self.bytes(max)?.to_vec()).map_err(|_| Error::corrupt("a name is not valid UTF-8"))
    }

    /// Fails unless everything was read.
    pub fn finish(self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::corrupt(format!("{} bytes left over", self.0.len()))) }
    }
}

/// Numbers that only ever count up stay below this: whoever reads one may add to it.
pub const COUNTER_LIMIT: u64 = 1 << 62;

/// Checks a number that only ever counts up.
pub fn counter(value: u64, what: &str) -> Result<u64> {
    if value < COUNTER_LIMIT { Ok(value) } else { Err(Error::corrupt(format!("{what} {value} is impossible"))) }
}

/// Closes a fixed-size structure: pads `body` to `size - 8` with zeroes and appends its checksum.
pub fn seal_fixed(mut body: Vec<u8>, size: usize) -> Vec<u8> {
    assert!(body.len() + 8 <= size, "structure of {} bytes does not fit {size}", body.len());
    body.resize(size - 8, 0);
    let sum = super::checksum(&body);
    body.put_u64(sum);
    body
}

/// Checks magic, version and checksum of what [`seal_fixed`] made; returns the cursor behind magic and version.
pub fn open_fixed<'a>(data: &'a [u8], magic: &[u8; 8], what: &str) -> Result<Get<'a>> {
    let (body, sum) = data
        .len()
        .checked_sub(8)
        .map(|n| data.split_at(n))
        .ok_or_else(|| Error::corrupt(format!("{what}: too short")))?;
    let mut get = Get(body);
    if get.take(8)? != magic {
        return Err(Error::new(crate::error::ErrorKind::NotFound, format!("{what}: no magic")));
    }
    if Get(sum).u64()? != super::checksum(body) {
        return Err(Error::corrupt(format!("{what}: checksum mismatch")));
    }
    check_version(get.u32()?, what)?;
    Ok(get)
}

/// Refuses a structure of a format version that is not this release's.
pub fn check_version(version: u32, what: &str) -> Result<()> {
    let todo = match version.cmp(&super::FORMAT_VERSION) {
        std::cmp::Ordering::Equal => return Ok(()),
        std::cmp::Ordering::Greater => "use a newer release",
        std::cmp::Ordering::Less => "use the release that wrote it",
    };
    Err(Error::new(
        crate::error::ErrorKind::Unsupported,
        format!(
            "{what}: format version {version} is unknown to this release, which reads version {}; {todo}",
            super::FORMAT_VERSION
        ),
    ))
}
