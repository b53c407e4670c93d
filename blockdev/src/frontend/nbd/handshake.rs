//! The handshake: greeting, client flags, options.
//!
//! [`Negotiation`] is the protocol without I/O: it takes one option and appends the replies. [`negotiate`] moves the bytes.

use std::io;
use std::sync::Arc;

use bytes::{Buf as _, BufMut as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::wire::{
    self, InfoRequest, MetaRequest, OptionHeader, handshake_flag, info, option, option_reply, put_option_reply,
    transmission_flag,
};
use super::{Exports, MetaContext, REQUEST_BYTES_MAX, context};
use crate::error::{Error, ErrorKind};
use crate::frontend::{BlockDevice, Geometry};

/// Most bytes of one option's data; longer ones end the connection. A thousand context queries fit.
const OPTION_BYTES_MAX: usize = 64 << 10;

/// Most contexts a client may select, so that one `BLOCK_STATUS` has a bounded reply.
const CONTEXTS_MAX: usize = 16;

/// Handshake flags the server sends, and the only ones a client may answer with.
const FLAGS: u16 = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;

/// What both sides agreed on when the transmission phase starts.
pub(super) struct Agreed {
    /// Canonical name.
    pub(super) export: String,
    pub(super) device: Arc<dyn BlockDevice>,
    pub(super) structured: bool,
    /// The index is the context's id on the wire.
    pub(super) contexts: Vec<Arc<dyn MetaContext>>,
}

/// Whether TLS is possible or demanded, and whether it has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tls {
    /// The server has no certificate.
    None,
    /// The client may ask for it.
    Optional,
    /// Nothing goes before it.
    Required,
    /// This connection is encrypted.
    Running,
}

/// What follows an option.
pub(super) enum Step {
    /// More options.
    Options,
    /// The TLS handshake; everything negotiated so far is forgotten.
    StartTls,
    /// Transmission.
    Transmit(Agreed),
    /// The end of the connection.
    Close,
}

/// Why the handshake ended without transmission.
#[derive(Debug)]
pub(super) enum Failure {
    /// The socket broke or the peer left.
    Io(io::Error),
    /// The peer does not keep to the protocol.
    Protocol(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<wire::WireError> for Failure {
    fn from(error: wire::WireError) -> Self {
        Self::Protocol(error.to_string())
    }
}

/// Negotiated so far.
pub(super) struct Negotiation<'a> {
    exports: &'a dyn Exports,
    tls: Tls,
    client_flags: u32,
    structured: bool,
    /// Export and contexts of the last `SET_META_CONTEXT`.
    selected: Option<(String, Vec<Arc<dyn MetaContext>>)>,
}

impl<'a> Negotiation<'a> {
    /// Starts over, as after the client's flags or after TLS came up.
    pub(super) fn new(exports: &'a dyn Exports, tls: Tls, client_flags: u32) -> Self {
        Self { exports, tls, client_flags, structured: false, selected: None }
    }

    /// Answers one option.
    pub(super) fn option(&mut self, option: u32, data: &[u8], out: &mut BytesMut) -> Step {
        let step = match option {
            option::ABORT => {
                put_option_reply(out, option, option_reply::ACK, &[]);
                return Step::Close;
            }
            _ if self.tls == Tls::Required && option != option::STARTTLS => {
                if option == option::EXPORT_NAME {
                    return Step::Close;
                }
                Err((option_reply::ERR_TLS_REQD, "this server requires TLS".to_owned()))
            }
            option::EXPORT_NAME => return self.export_name(data, out),
            option::LIST => self.list(data, out),
            option::STARTTLS => self.start_tls(data, out),
            option::INFO | option::GO => self.info_or_go(option, data, out),
            option::STRUCTURED_REPLY => self.structured_reply(data, out),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.meta_context(option, data, out),
            option::EXTENDED_HEADERS => Err((option_reply::ERR_UNSUP, "no extended headers here".to_owned())),
            _ => Err((option_reply::ERR_UNSUP, format!("option {option} is unknown"))),
        };
        step.unwrap_or_else(|(kind, message)| {
            put_option_reply(out, option, kind, &[message.as_bytes()]);
            Step::Options
        })
    }

    /// The old way to start transmission, which cannot tell of errors.
    fn export_name(&mut self, data: &[u8], out: &mut BytesMut) -> Step {
        let Ok((name, device)) = wire::text(data).map_err(|_| Refusal::default()).and_then(|name| self.open(name))
        else {
            return Step::Close;
        };
        let geometry = device.geometry();
        out.put_u64(geometry.size);
        out.put_u16(self.transmission_flags(&geometry));
        if self.client_flags & u32::from(handshake_flag::NO_ZEROES) == 0 {
            out.put_bytes(0, 124);
        }
        Step::Transmit(self.agree(name, device))
    }

    fn list(&self, data: &[u8], out: &mut BytesMut) -> Answer {
        no_data(data)?;
        for name in self.exports.list() {
            let len = (name.len() as u32).to_be_bytes();
            put_option_reply(out, option::LIST, option_reply::SERVER, &[&len, name.as_bytes()]);
        }
        put_option_reply(out, option::LIST, option_reply::ACK, &[]);
        Ok(Step::Options)
    }

    fn start_tls(&self, data: &[u8], out: &mut BytesMut) -> Answer {
        no_data(data)?;
        match self.tls {
            Tls::None => Err((option_reply::ERR_POLICY, "this server has no TLS certificate".to_owned())),
            Tls::Running => Err((option_reply::ERR_INVALID, "TLS is running already".to_owned())),
            // Without fixed newstyle there is no TLS, by the protocol.
            _ if self.client_flags & u32::from(handshake_flag::FIXED_NEWSTYLE) == 0 => {
                Err((option_reply::ERR_POLICY, "TLS needs fixed newstyle negotiation".to_owned()))
            }
            Tls::Optional | Tls::Required => {
                put_option_reply(out, option::STARTTLS, option_reply::ACK, &[]);
                Ok(Step::StartTls)
            }
        }
    }

    fn structured_reply(&mut self, data: &[u8], out: &mut BytesMut) -> Answer {
        no_data(data)?;
        self.structured = true;
        put_option_reply(out, option::STRUCTURED_REPLY, option_reply::ACK, &[]);
        Ok(Step::Options)
    }

    fn info_or_go(&mut self, option: u32, data: &[u8], out: &mut BytesMut) -> Answer {
        let request = InfoRequest::decode(data).map_err(invalid)?;
        let (name, device) = self.open(request.name)?;
        let geometry = device.geometry();
        let mut put = |kind: u16, parts: [&[u8]; 2]| {
            put_option_reply(out, option, option_reply::INFO, &[&kind.to_be_bytes(), parts[0], parts[1]]);
        };
        put(info::EXPORT, [&geometry.size.to_be_bytes(), &self.transmission_flags(&geometry).to_be_bytes()]);
        if request.wanted.contains(&info::NAME) {
            put(info::NAME, [name.as_bytes(), &[]]);
        }
        if request.wanted.contains(&info::BLOCK_SIZE) {
            let sizes = [1, preferred_block(&geometry), REQUEST_BYTES_MAX].map(u32::to_be_bytes);
            put(info::BLOCK_SIZE, [sizes.as_flattened(), &[]]);
        }
        put_option_reply(out, option, option_reply::ACK, &[]);
        if option == option::INFO {
            return Ok(Step::Options);
        }
        Ok(Step::Transmit(self.agree(name, device)))
    }

    fn meta_context(&mut self, option: u32, data: &[u8], out: &mut BytesMut) -> Answer {
        let set = option == option::SET_META_CONTEXT;
        if set {
            // A failing selection also replaces the earlier one.
            self.selected = None;
        }
        if !self.structured {
            return Err((option_reply::ERR_INVALID, "metadata contexts need structured replies".to_owned()));
        }
        let request = MetaRequest::decode(data).map_err(invalid)?;
        let (name, _) = self.open(request.export)?;
        let mut contexts: Vec<Arc<dyn MetaContext>> = vec![Arc::new(context::BaseAllocation)];
        contexts.extend(self.exports.contexts(&name));
        contexts.retain(|context| {
            let matches =
                |query: &&str| if set { *query == context.name() } else { context::lists(query, context.name()) };
            (!set && request.queries.is_empty()) || request.queries.iter().any(matches)
        });
        if set && contexts.len() > CONTEXTS_MAX {
            let message = format!("at most {CONTEXTS_MAX} metadata contexts can be selected");
            return Err((option_reply::ERR_TOO_BIG, message));
        }
        for (index, context) in contexts.iter().enumerate() {
            let id = if set { index as u32 } else { 0 };
            put_option_reply(out, option, option_reply::META_CONTEXT, &[&id.to_be_bytes(), context.name().as_bytes()]);
        }
        put_option_reply(out, option, option_reply::ACK, &[]);
        if set {
            self.selected = Some((name, contexts));
        }
        Ok(Step::Options)
    }

    /// The canonical name and the device of an export. The empty name means the only export.
    fn open(&self, name: &str) -> Result<(String, Arc<dyn BlockDevice>), Refusal> {
        let name = if name.is_empty() {
            match <[String; 1]>::try_from(self.exports.list()) {
                Ok([only]) => only,
                Err(all) => {
                    let message = format!("there are {} exports: name one", all.len());
                    return Err((option_reply::ERR_UNKNOWN, message));
                }
            }
        } else {
            name.to_owned()
        };
        match self.exports.open(&name) {
            Ok(device) => Ok((name, device)),
            Err(error) => Err((refusal_kind(&error), error.to_string())),
        }
    }

    fn transmission_flags(&self, geometry: &Geometry) -> u16 {
        use transmission_flag::*;
        let mut flags = HAS_FLAGS
            | SEND_FLUSH
            | SEND_FUA
            | SEND_TRIM
            | SEND_WRITE_ZEROES
            | SEND_FAST_ZERO
            // A device's flush covers whatever completed on it, by whichever connection.
            | CAN_MULTI_CONN;
        if geometry.read_only {
            flags |= READ_ONLY;
        }
        if self.structured {
            flags |= SEND_DF;
        }
        flags
    }

    fn agree(&mut self, export: String, device: Arc<dyn BlockDevice>) -> Agreed {
        let contexts = self.selected.take().filter(|(of, _)| *of == export).map(|(_, contexts)| contexts);
        Agreed { export, device, structured: self.structured, contexts: contexts.unwrap_or_default() }
    }
}

/// An error reply: its type and its text.
type Refusal = (u32, String);
type Answer = Result<Step, Refusal>;

fn invalid(error: wire::WireError) -> Refusal {
    (option_reply::ERR_INVALID, error.to_string())
}

fn no_data(data: &[u8]) -> Result<(), Refusal> {
    if data.is_empty() { Ok(()) } else { Err((option_reply::ERR_INVALID, "this option has no data".to_owned())) }
}

fn refusal_kind(error: &Error) -> u32 {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::InvalidArgument => option_reply::ERR_UNKNOWN,
        ErrorKind::Unavailable | ErrorKind::Fenced => option_reply::ERR_SHUTDOWN,
        _ => option_reply::ERR_POLICY,
    }
}

/// A power of two from which requests are not read-modify-write; the protocol allows none below 512.
fn preferred_block(geometry: &Geometry) -> u32 {
    geometry.block_size.clamp(512, 1 << 20).next_power_of_two()
}

/// Greets the client and takes its flags.
pub(super) async fn greet<S>(stream: &mut S, buffer: &mut BytesMut) -> Result<u32, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(&wire::greeting(FLAGS)).await?;
    stream.flush().await?;
    fill(stream, buffer, 4).await?;
    let flags = buffer.get_u32();
    if flags & !u32::from(FLAGS) != 0 {
        return Err(Failure::Protocol(format!("unknown client flags {flags:#x}")));
    }
    Ok(flags)
}

/// Answers options until something else follows. What the client sent beyond that stays in `buffer`.
pub(super) async fn negotiate<S>(
    stream: &mut S,
    buffer: &mut BytesMut,
    negotiation: &mut Negotiation<'_>,
) -> Result<Step, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut out = BytesMut::new();
    loop {
        fill(stream, buffer, OptionHeader::SIZE).await?;
        let mut header = [0; OptionHeader::SIZE];
        buffer.copy_to_slice(&mut header);
        let header = OptionHeader::decode(&header)?;
        let len = header.len as usize;
        if len > OPTION_BYTES_MAX {
            put_option_reply(&mut out, header.option, option_reply::ERR_TOO_BIG, &[]);
            stream.write_all(&out).await?;
            stream.flush().await?;
            return Err(Failure::Protocol(format!("option {} with {len} bytes of data", header.option)));
        }
        fill(stream, buffer, len).await?;
        let data = buffer.split_to(len);
        let step = negotiation.option(header.option, &data, &mut out);
        if matches!(step, Step::StartTls) && !buffer.is_empty() {
            // Plain bytes behind STARTTLS would be taken for encrypted ones: somebody in the middle may have put them there.
            return Err(Failure::Protocol("plain data behind STARTTLS".to_owned()));
        }
        stream.write_all(&out).await?;
        stream.flush().await?;
        out.clear();
        if !matches!(step, Step::Options) {
            return Ok(step);
        }
    }
}

/// Reads until `buffer` holds `len` bytes at least.
async fn fill<S: AsyncRead + Unpin>(stream: &mut S, buffer: &mut BytesMut, len: usize) -> Result<(), Failure> {
    while buffer.len() < len {
        buffer.reserve((len - buffer.len()).max(1024));
        if stream.read_buf(buffer).await? == 0 {
            return Err(Failure::Io(io::ErrorKind::UnexpectedEof.into()));
        }
    }
    Ok(())
}
