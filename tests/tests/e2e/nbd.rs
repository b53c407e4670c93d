//! A small NBD client (fixed newstyle, simple replies) that tells exactly what was acknowledged and what was not.
//!
//! Protocol: <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const FLAG_FUA: u16 = 1;

/// Longest wait for one answer; a server that takes longer hangs.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// One request.
pub enum Request {
    Read { offset: u64, len: u32 },
    Write { offset: u64, data: Vec<u8>, fua: bool },
    Flush,
    Trim { offset: u64, len: u32 },
    WriteZeroes { offset: u64, len: u32 },
}

/// A connection to one export.
pub struct Client {
    stream: UnixStream,
    /// Bytes of the export.
    pub size: u64,
    next: u64,
}

impl Client {
    pub fn connect(socket: &Path, export: &str) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        stream.set_write_timeout(Some(ANSWER_MAX))?;
        let mut hello = [0; 18];
        stream.read_exact(&mut hello)?;
        if &hello[..16] != b"NBDMAGICIHAVEOPT" {
            return Err(bad("this is no NBD server of the newstyle kind"));
        }
        // Fixed newstyle, no zeroes after the answer.
        let mut go = 3u32.to_be_bytes().to_vec();
        go.extend(b"IHAVEOPT");
        go.extend(OPT_GO.to_be_bytes());
        go.extend((export.len() as u32 + 6).to_be_bytes());
        go.extend((export.len() as u32).to_be_bytes());
        go.extend(export.as_bytes());
        go.extend(0u16.to_be_bytes());
        stream.write_all(&go)?;
        let mut size = 0;
        loop {
            let mut head = [0; 20];
            stream.read_exact(&mut head)?;
            let kind = be32(&head[12..]);
            let mut body = vec![0; be32(&head[16..]) as usize];
            stream.read_exact(&mut body)?;
            match kind {
                REP_ACK => return Ok(Self { stream, size, next: 0 }),
                3 if body.len() == 12 && body[..2] == [0, 0] => size = be64(&body[2..]),
                3 => {}
                _ => return Err(bad(&format!("export '{export}' refused: {}", String::from_utf8_lossy(&body)))),
            }
        }
    }

    /// Sends all `requests` at once and waits for all answers: data, or the server's error, each at its request's place.
    ///
    /// The outer error says that the connection broke; then nothing is known of any of them.
    pub fn batch(&mut self, requests: &[Request]) -> io::Result<Vec<Result<Vec<u8>, u32>>> {
        let first = self.next;
        self.next += requests.len() as u64;
        let mut out = Vec::new();
        for (request, cookie) in requests.iter().zip(first..) {
            encode(request, cookie, &mut out);
        }
        self.stream.write_all(&out)?;
        let mut answers: Vec<Option<Result<Vec<u8>, u32>>> = requests.iter().map(|_| None).collect();
        for _ in requests {
            let mut head = [0; 16];
            self.stream.read_exact(&mut head)?;
            let at = be64(&head[8..]).wrapping_sub(first) as usize;
            if be32(&head) != 0x6744_6698 || at >= requests.len() || answers[at].is_some() {
                return Err(bad("the answer is to no request of ours"));
            }
            let mut data = Vec::new();
            let error = be32(&head[4..]);
            if let (0, Request::Read { len, .. }) = (error, &requests[at]) {
                data.resize(*len as usize, 0);
                self.stream.read_exact(&mut data)?;
            }
            answers[at] = Some(if error == 0 { Ok(data) } else { Err(error) });
        }
        Ok(answers.into_iter().flatten().collect())
    }

    /// One request; the server's error becomes an I/O error with its number.
    pub fn one(&mut self, request: Request) -> io::Result<Vec<u8>> {
        let answer = self.batch(&[request])?.pop().ok_or_else(|| bad("no answer"))?;
        answer.map_err(|error| io::Error::from_raw_os_error(error as i32))
    }
}

fn encode(request: &Request, cookie: u64, out: &mut Vec<u8>) {
    let none: &[u8] = &[];
    let (flags, kind, offset, len, data) = match request {
        Request::Read { offset, len } => (0, 0u16, *offset, *len, none),
        Request::Write { offset, data, fua } => {
            (if *fua { FLAG_FUA } else { 0 }, 1, *offset, data.len() as u32, data.as_slice())
        }
        Request::Flush => (0, 3, 0, 0, none),
        Request::Trim { offset, len } => (0, 4, *offset, *len, none),
        Request::WriteZeroes { offset, len } => (0, 6, *offset, *len, none),
    };
    out.extend(0x2560_9513u32.to_be_bytes());
    out.extend(flags.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    out.extend(offset.to_be_bytes());
    out.extend(len.to_be_bytes());
    out.extend(data);
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn be64(bytes: &[u8]) -> u64 {
    u64::from(be32(bytes)) << 32 | u64::from(be32(&bytes[4..]))
}

fn bad(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}
