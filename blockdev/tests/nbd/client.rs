//! A raw NBD client over a unix socket, for what well-behaved tools never send.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use blockdev::frontend::nbd::wire::{
    OPTION_REPLY_MAGIC, OptionHeader, Reply, Request, chunk, command, greeting, option, option_reply,
};

/// Client flags: fixed newstyle, no zeroes.
pub const FLAGS: u32 = 3;

pub struct Client {
    pub stream: UnixStream,
    structured: bool,
    cookie: u64,
}

/// A whole reply.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub cookie: u64,
    pub errno: u32,
    /// Text of a structured error.
    pub message: String,
    /// Bytes of a read, holes filled in.
    pub data: Vec<u8>,
    /// Chunks of a structured reply: type, offset, length. Extents of a block status: context, flags, length.
    pub parts: Vec<(u32, u64, u32)>,
}

pub fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat()
}

pub fn info_data(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut data = string(name);
    data.extend((wanted.len() as u16).to_be_bytes());
    wanted.iter().for_each(|item| data.extend(item.to_be_bytes()));
    data
}

pub fn meta_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = string(name);
    data.extend((queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|query| data.extend(string(query)));
    data
}

pub fn encode_option(option: u32, data: &[u8]) -> Vec<u8> {
    [&OptionHeader { option, len: data.len() as u32 }.encode(), data].concat()
}

impl Client {
    /// Connects and answers the greeting.
    pub fn connect(socket: &Path, flags: u32) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut client = Self { stream, structured: false, cookie: 0 };
        assert_eq!(client.take(18), greeting(3));
        client.stream.write_all(&flags.to_be_bytes()).unwrap();
        client
    }

    /// In transmission on an export; with structured replies, also with `base:allocation`.
    pub fn open(socket: &Path, export: &str, structured: bool) -> Self {
        let mut client = Self::connect(socket, FLAGS);
        if structured {
            client.option(option::STRUCTURED_REPLY, &[]);
            client.structured = true;
            let replies = client.option(option::SET_META_CONTEXT, &meta_data(export, &["base:allocation"]));
            assert_eq!(replies.len(), 2, "{replies:?}");
        }
        let replies = client.option(option::GO, &info_data(export, &[]));
        assert_eq!(replies.last().unwrap().0, option_reply::ACK, "{replies:?}");
        client
    }

    pub fn take(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn take_u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().unwrap())
    }

    fn take_u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take(8).try_into().unwrap())
    }

    /// Sends an option and gives the replies, the final one last.
    pub fn option(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.stream.write_all(&encode_option(option, data)).unwrap();
        let mut replies = Vec::new();
        loop {
            assert_eq!(self.take_u64(), OPTION_REPLY_MAGIC);
            assert_eq!(self.take_u32(), option);
            let kind = self.take_u32();
            let len = self.take_u32();
            let data = self.take(len as usize);
            replies.push((kind, data));
            if kind == option_reply::ACK || kind & option_reply::ERROR_BIT != 0 {
                return replies;
            }
        }
    }

    /// The type of the only reply to an option.
    pub fn option_kind(&mut self, option: u32, data: &[u8]) -> u32 {
        let replies = self.option(option, data);
        assert_eq!(replies.len(), 1, "{replies:?}");
        replies[0].0
    }

    /// Sends a request; its cookie.
    pub fn send(&mut self, command: u16, flags: u16, offset: u64, len: u32, payload: &[u8]) -> u64 {
        self.cookie += 1;
        let request = Request { flags, command, cookie: self.cookie, offset, len };
        self.stream.write_all(&[&request.encode(), payload].concat()).unwrap();
        self.cookie
    }

    /// Receives a whole reply; `reads` gives offset and length of the read it may answer.
    pub fn receive(&mut self, reads: impl Fn(u64) -> Option<(u64, u32)>) -> Answer {
        let mut answer = Answer { cookie: 0, errno: 0, message: String::new(), data: Vec::new(), parts: Vec::new() };
        loop {
            let mut header = self.take(Reply::SIMPLE_SIZE);
            if Reply::decode(&header).unwrap().is_none() {
                header.extend(self.take(Reply::CHUNK_SIZE - Reply::SIMPLE_SIZE));
            }
            match Reply::decode(&header).unwrap().unwrap().0 {
                Reply::Simple { cookie, errno } => {
                    (answer.cookie, answer.errno) = (cookie, errno);
                    if let (0, Some((_, len))) = (errno, reads(cookie)) {
                        assert!(!self.structured, "a simple reply to a read");
                        answer.data = self.take(len as usize);
                    }
                    return answer;
                }
                Reply::Chunk { cookie, flags, kind, len } => {
                    assert!(self.structured, "a structured reply that was not negotiated");
                    assert!(answer.cookie == 0 || answer.cookie == cookie, "interleaved replies");
                    answer.cookie = cookie;
                    self.chunk(kind, len, reads(cookie), &mut answer);
                    if flags & chunk::FLAG_DONE != 0 {
                        return answer;
                    }
                }
            }
        }
    }

    fn chunk(&mut self, kind: u16, len: u32, read: Option<(u64, u32)>, answer: &mut Answer) {
        match kind {
            chunk::NONE => assert_eq!(len, 0),
            chunk::OFFSET_DATA | chunk::OFFSET_HOLE => {
                let (start, wanted) = read.expect("content for a read");
                let offset = self.take_u64();
                let data = if kind == chunk::OFFSET_HOLE {
                    assert_eq!(len, 12);
                    vec![0; self.take_u32() as usize]
                } else {
                    self.take(len as usize - 8)
                };
                assert!(!data.is_empty());
                answer.parts.push((kind.into(), offset, data.len() as u32));
                answer.data.resize(wanted as usize, 0xEE);
                let at = (offset - start) as usize;
                answer.data[at..at + data.len()].copy_from_slice(&data);
            }
            chunk::BLOCK_STATUS => {
                let context = self.take_u32();
                for _ in 0..(len - 4) / 8 {
                    let (len, flags) = (self.take_u32(), self.take_u32());
                    answer.parts.push((context, flags.into(), len));
                }
            }
            chunk::ERROR => {
                answer.errno = self.take_u32();
                let text = u16::from_be_bytes(self.take(2).try_into().unwrap());
                assert_eq!(len, u32::from(text) + 6);
                answer.message = String::from_utf8(self.take(text.into())).unwrap();
            }
            other => panic!("unexpected chunk type {other}"),
        }
    }

    /// One request and its reply.
    pub fn request(&mut self, command: u16, flags: u16, offset: u64, len: u32, payload: &[u8]) -> Answer {
        let cookie = self.send(command, flags, offset, len, payload);
        let answer = self.receive(|_| (command == command::READ).then_some((offset, len)));
        assert_eq!(answer.cookie, cookie);
        answer
    }

    pub fn read(&mut self, offset: u64, len: u32) -> Answer {
        self.request(command::READ, 0, offset, len, &[])
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> Answer {
        self.request(command::WRITE, 0, offset, data.len() as u32, data)
    }

    /// Whether the server closes the connection, whatever it sends before.
    pub fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}
