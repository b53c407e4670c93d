//! The transmission phase: one task per connection that reads requests, starts them, and sends replies.
//!
//! The task is a loop over four steps, repeated while any of them moves something: take answers of the device, take
//! requests out of the input buffer, send replies, read from the socket. A request is polled once as it starts; most
//! requests that need no I/O are answered right there, and the replies to all that were read together leave together.
//!
//! Receiving goes through these states:
//!
//! ```text
//!            header complete           budget granted            payload complete
//!  Header ───────────────────▶ Waiting ──────────────▶ Payload ──────────────────▶ Header
//!    │ ▲   (budget at hand: straight on; short payloads are taken out of the buffer)
//!    │ └── Skipping: the payload of a refused write
//!    └──▶ Closed: DISC, end of stream, stop
//! ```
//!
//! Whatever ends the connection, requests already given to the device are waited for: a device's future is never dropped
//! half-way.

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::handshake::Agreed;
use super::output::{Charge, Output, SLICES};
use super::request::{self, Answer, Target, Work};
use super::server::{Control, Phase};
use super::wire::{Request, command};
use super::{Limits, REQUEST_BYTES_MAX};
use crate::env::BoxFuture;
use crate::error::Result;

/// Input buffer in bytes: holds 32 writes of 4 KiB with their headers.
const INPUT_BYTES: usize = 132 << 10;

/// Payloads up to this many bytes are collected in the input buffer and copied out of it; longer ones are read into
/// memory of their own.
const SHORT_PAYLOAD: usize = 16 << 10;

/// Bytes to read where a long payload is expected behind the next header, so that little of it has to be copied.
const SMALL_READ: usize = 4 << 10;

/// Replies waiting to be sent, in bytes and pieces, from which on no more requests are started.
const OUTPUT_BYTES_HIGH: usize = 1 << 20;
const OUTPUT_CHUNKS_HIGH: usize = 1024;

/// Pieces of replies after which they are sent, though more requests are at hand: so that the peer works at the same time.
const SEND_CHUNKS: usize = 8;

/// A refused write's payload up to this size is read and thrown away; a longer one ends the connection.
const SKIP_BYTES_MAX: u32 = 2 * REQUEST_BYTES_MAX;

/// How a connection ended.
#[derive(Debug)]
pub(super) enum End {
    /// The client said so.
    Disconnected,
    /// The server wanted it.
    Stopped,
    /// The socket broke, or the client left without a word.
    Lost(io::Error),
    /// The client does not keep to the protocol.
    Protocol(String),
}

enum Receive {
    Header,
    Waiting { request: Request, permit: Option<BoxFuture<Option<OwnedSemaphorePermit>>> },
    Payload { request: Request, charge: Charge, data: BytesMut },
    Skipping { left: usize },
    Closed(End),
}

/// A request at work, with what its reply needs.
struct InFlight {
    request: Request,
    charge: Charge,
    work: Work,
}

impl Future for InFlight {
    type Output = (Request, Charge, Result<Answer>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pin::new(&mut self.work).poll(cx));
        Poll::Ready((self.request, std::mem::take(&mut self.charge), answer))
    }
}

/// Bytes in flight, and where more come from.
struct Budget {
    limits: Limits,
    shared: Arc<Semaphore>,
    own_used: usize,
    shared_used: usize,
}

enum Grant {
    Now(Charge),
    /// When some of this connection's requests are done.
    Later,
    /// When some of other connections' requests are done.
    Ask(BoxFuture<Option<OwnedSemaphorePermit>>),
}

impl Budget {
    fn take(&mut self, bytes: usize) -> Grant {
        if self.own_used + bytes <= self.limits.own_bytes {
            self.own_used += bytes;
            return Grant::Now(Charge { own: bytes, shared: None });
        }
        if self.shared_used != 0 && self.shared_used + bytes > self.limits.connection_bytes {
            return Grant::Later;
        }
        let shared = Arc::clone(&self.shared);
        match Arc::clone(&shared).try_acquire_many_owned(bytes as u32) {
            Ok(permit) => Grant::Now(self.granted(permit)),
            Err(_) => Grant::Ask(Box::pin(async move { shared.acquire_many_owned(bytes as u32).await.ok() })),
        }
    }

    fn granted(&mut self, permit: OwnedSemaphorePermit) -> Charge {
        self.shared_used += permit.num_permits();
        Charge { own: 0, shared: Some(permit) }
    }

    fn give_back(&mut self, charge: &Charge) {
        self.own_used -= charge.own;
        self.shared_used -= charge.shared_bytes();
    }
}

/// Serves one connection until it ends; `input` is what the client sent already.
pub(super) async fn run<S>(
    stream: S,
    input: BytesMut,
    agreed: Agreed,
    limits: Limits,
    shared: Arc<Semaphore>,
    control: &Control,
) -> End
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Agreed { device, structured, contexts, .. } = agreed;
    let mut connection = Connection {
        stream,
        target: Target { device, structured, contexts },
        input,
        starved: true,
        read_size: INPUT_BYTES,
        receive: Receive::Header,
        in_flight: FuturesUnordered::new(),
        output: Output::default(),
        unflushed: false,
        budget: Budget { limits, shared, own_used: 0, shared_used: 0 },
        control,
    };
    let end = std::future::poll_fn(|cx| connection.poll(cx)).await;
    let Connection { stream, mut in_flight, .. } = connection;
    if matches!(end, End::Disconnected | End::Stopped) {
        close(stream, control).await;
    } else {
        drop(stream);
    }
    while in_flight.next().await.is_some() {}
    end
}

/// Tells the peer that this is the end, which TLS distinguishes from a cut.
async fn close<S: AsyncWrite + Unpin>(mut stream: S, control: &Control) {
    std::future::poll_fn(|cx| {
        control.register(cx);
        if control.phase() == Phase::Abort {
            return Poll::Ready(());
        }
        control.waiting.store(true, Ordering::Relaxed);
        Pin::new(&mut stream).poll_shutdown(cx).map(drop)
    })
    .await;
}

struct Connection<'a, S> {
    stream: S,
    target: Target,
    input: BytesMut,
    /// Whether the input buffer holds nothing more that could be started.
    starved: bool,
    /// Bytes to ask for at the next read.
    read_size: usize,
    receive: Receive,
    in_flight: FuturesUnordered<InFlight>,
    output: Output,
    /// Whether bytes given to the stream may still be in its own buffer.
    unflushed: bool,
    budget: Budget,
    control: &'a Control,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<'_, S> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        self.control.register(cx);
        loop {
            match self.control.phase() {
                Phase::Serve => {}
                Phase::Finish => self.close(End::Stopped),
                Phase::Abort => return Poll::Ready(self.end(End::Lost(io::ErrorKind::TimedOut.into()))),
            }
            let mut moved = self.take_answers(cx);
            moved |= self.take_requests(cx);
            let sent = match self.send(cx) {
                Ok(sent) => sent,
                Err(error) => return Poll::Ready(self.end(End::Lost(error))),
            };
            moved |= sent;
            if matches!(self.receive, Receive::Closed(_)) {
                if self.in_flight.is_empty() && self.output.is_empty() && !self.unflushed {
                    return Poll::Ready(self.end(End::Stopped));
                }
            } else {
                match self.read(cx) {
                    Ok(read) => moved |= read,
                    Err(error) => {
                        self.close(End::Lost(error));
                        moved = true;
                    }
                }
            }
            if !moved {
                break;
            }
            self.control.moved.fetch_add(1, Ordering::Relaxed);
        }
        let amid_request = match self.receive {
            Receive::Header => !self.input.is_empty() && !self.output_full(),
            Receive::Payload { .. } | Receive::Skipping { .. } => true,
            Receive::Waiting { .. } | Receive::Closed(_) => false,
        };
        let waiting = !self.output.is_empty() || self.unflushed || amid_request;
        self.control.waiting.store(waiting, Ordering::Relaxed);
        Poll::Pending
    }

    /// No more requests after this; the first reason stays.
    fn close(&mut self, end: End) {
        if !matches!(self.receive, Receive::Closed(_)) {
            self.receive = Receive::Closed(end);
        }
    }

    fn end(&mut self, otherwise: End) -> End {
        match std::mem::replace(&mut self.receive, Receive::Header) {
            Receive::Closed(end) => end,
            _ => otherwise,
        }
    }

    fn output_full(&self) -> bool {
        self.output.bytes() >= OUTPUT_BYTES_HIGH || self.output.chunks() >= OUTPUT_CHUNKS_HIGH
    }

    fn take_answers(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        while let Poll::Ready(Some((request, charge, answer))) = self.in_flight.poll_next_unpin(cx) {
            self.reply(&request, answer, charge);
            moved = true;
        }
        moved
    }

    fn reply(&mut self, request: &Request, answer: Result<Answer>, charge: Charge) {
        if let Some(charge) = self.target.reply(request, answer, charge, &mut self.output) {
            self.budget.give_back(&charge);
        }
    }

    /// Starts what the input buffer holds, as far as the limits allow and until there is something worth sending.
    fn take_requests(&mut self, cx: &mut Context<'_>) -> bool {
        let send_at = self.output.chunks() + SEND_CHUNKS;
        let mut moved = false;
        self.starved = false;
        while self.in_flight.len() < self.budget.limits.requests
            && !self.output_full()
            && self.output.chunks() < send_at
        {
            if !self.take_request(cx) {
                self.starved = true;
                break;
            }
            moved = true;
        }
        moved
    }

    /// One step of receiving; false when it needs more input or has to wait.
    fn take_request(&mut self, cx: &mut Context<'_>) -> bool {
        match &mut self.receive {
            Receive::Header => {
                let Some(header) = self.input.first_chunk() else { return false };
                match Request::decode(header) {
                    Ok(request) => self.header(request),
                    Err(error) => {
                        self.close(End::Protocol(error.to_string()));
                        false
                    }
                }
            }
            Receive::Waiting { request, permit } => {
                let request = *request;
                let charge = match permit {
                    Some(future) => match future.as_mut().poll(cx) {
                        Poll::Ready(Some(permit)) => self.budget.granted(permit),
                        // The semaphore is never closed.
                        Poll::Ready(None) | Poll::Pending => return false,
                    },
                    None => match self.budget.take(request::cost(&request, self.target.contexts.len())) {
                        Grant::Now(charge) => charge,
                        Grant::Later => return false,
                        Grant::Ask(future) => {
                            self.receive = Receive::Waiting { request, permit: Some(future) };
                            return true;
                        }
                    },
                };
                self.granted(cx, request, charge)
            }
            Receive::Payload { request, charge, data } => {
                let wanted = request.len as usize;
                if data.len() < wanted {
                    return false;
                }
                let (request, charge, data) = (*request, std::mem::take(charge), std::mem::take(data).freeze());
                self.receive = Receive::Header;
                self.start(cx, request, charge, data);
                true
            }
            Receive::Skipping { left } => {
                let now = self.input.len().min(*left);
                self.input.advance(now);
                *left -= now;
                if *left == 0 {
                    self.receive = Receive::Header;
                    return true;
                }
                false
            }
            Receive::Closed(_) => false,
        }
    }

    /// A header is at the front of the input buffer.
    fn header(&mut self, request: Request) -> bool {
        if request.command == command::DISC {
            self.close(End::Disconnected);
            return false;
        }
        let refused = request::check(&request, &self.target.device.geometry(), self.target.contexts.len()).err();
        if let Some(request::Refused(errno, message)) = refused {
            self.input.advance(Request::SIZE);
            if request.payload() > SKIP_BYTES_MAX {
                self.close(End::Protocol(format!("write of {} bytes", request.len)));
                return false;
            }
            self.target.refuse(request.cookie, errno, message, &mut self.output);
            self.receive = Receive::Skipping { left: request.payload() as usize };
            return true;
        }
        let payload = request.payload() as usize;
        if payload <= SHORT_PAYLOAD && self.input.len() < Request::SIZE + payload {
            return false;
        }
        self.input.advance(Request::SIZE);
        self.receive = Receive::Waiting { request, permit: None };
        true
    }

    /// Memory for the request is granted.
    fn granted(&mut self, cx: &mut Context<'_>, request: Request, charge: Charge) -> bool {
        let payload = request.payload() as usize;
        if payload <= self.input.len() {
            let data = Bytes::copy_from_slice(&self.input[..payload]);
            self.input.advance(payload);
            self.receive = Receive::Header;
            self.start(cx, request, charge, data);
        } else {
            let mut data = BytesMut::with_capacity(payload);
            data.extend_from_slice(&self.input);
            self.input.clear();
            self.receive = Receive::Payload { request, charge, data };
        }
        true
    }

    fn start(&mut self, cx: &mut Context<'_>, request: Request, charge: Charge, payload: Bytes) {
        let mut work = self.target.start(&request, payload);
        match Pin::new(&mut work).poll(cx) {
            Poll::Ready(answer) => self.reply(&request, answer, charge),
            Poll::Pending => self.in_flight.push(InFlight { request, charge, work }),
        }
    }

    fn send(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let mut moved = false;
        while !self.output.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = self.output.slices(&mut slices);
            match Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..count]) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(sent)) => {
                    self.output.advance(sent, |charge| self.budget.give_back(&charge));
                    self.unflushed = true;
                    moved = true;
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok(moved),
            }
        }
        if self.unflushed
            && let Poll::Ready(result) = Pin::new(&mut self.stream).poll_flush(cx)
        {
            result?;
            self.unflushed = false;
        }
        Ok(moved)
    }

    /// Reads once, unless what was read before is not taken yet.
    fn read(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let (result, wanted) = match &mut self.receive {
            Receive::Payload { request, data, .. } => {
                let wanted = request.len as usize - data.len();
                if wanted == 0 {
                    return Ok(false);
                }
                self.read_size = SMALL_READ;
                (poll_read(&mut self.stream, cx, data, wanted), wanted)
            }
            Receive::Header | Receive::Skipping { .. } => {
                if !self.starved || self.input.len() >= INPUT_BYTES {
                    return Ok(false);
                }
                let wanted = self.read_size.min(INPUT_BYTES - self.input.len());
                self.input.reserve(wanted);
                (poll_read(&mut self.stream, cx, &mut self.input, wanted), wanted)
            }
            Receive::Waiting { .. } | Receive::Closed(_) => return Ok(false),
        };
        match result {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(0)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Poll::Ready(Ok(read)) => {
                if read == wanted && !matches!(self.receive, Receive::Payload { .. }) {
                    self.read_size = INPUT_BYTES;
                }
                Ok(true)
            }
            Poll::Ready(Err(error)) => Err(error),
        }
    }
}

/// Appends at most `len` bytes from the stream to `buffer`, which has room for them.
fn poll_read<S: AsyncRead + Unpin>(
    stream: &mut S,
    cx: &mut Context<'_>,
    buffer: &mut BytesMut,
    len: usize,
) -> Poll<io::Result<usize>> {
    let mut room = buffer.limit(len);
    // The future keeps nothing between polls, so a new one each time loses nothing.
    pin!(stream.read_buf(&mut room)).poll(cx)
}
