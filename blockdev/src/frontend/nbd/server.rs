//! The server: accepts connections, keeps a register of them, and ends them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use futures::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::handshake::{self, Failure, Negotiation, Step, Tls};
use super::listener::{self, Address, Listener, Socket, SocketFile};
use super::transmission::{self, End};
use super::{Exports, Limits, Listen, REQUEST_BYTES_MAX, TlsConfig};
use crate::error::Result;

/// What a connection is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Go on.
    Serve = 0,
    /// Take no more requests, answer those in flight, close.
    Finish = 1,
    /// Close now.
    Abort = 2,
}

/// Shared between a connection's task and the server.
#[derive(Default)]
pub(super) struct Control {
    phase: AtomicU8,
    waker: AtomicWaker,
    /// Grows whenever the connection gets on.
    pub(super) moved: AtomicU64,
    /// Whether the connection cannot get on because of its peer.
    pub(super) waiting: AtomicBool,
}

impl Control {
    pub(super) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Serve,
            1 => Phase::Finish,
            _ => Phase::Abort,
        }
    }

    /// Wakes this task when the phase changes.
    pub(super) fn register(&self, cx: &Context<'_>) {
        self.waker.register(cx.waker());
    }

    /// Goes to a later phase; never back.
    fn set(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::AcqRel);
        self.waker.wake();
    }

    /// Ready once the connection is to end.
    async fn ended(&self) {
        std::future::poll_fn(|cx| {
            self.register(cx);
            if self.phase() == Phase::Serve { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }
}

struct Entry {
    control: Arc<Control>,
    /// The export, once the handshake is over.
    export: Option<String>,
    /// Exports that were disconnected while the handshake went on: it may have opened one of them before.
    gone: Vec<String>,
}

#[derive(Default)]
struct Register {
    entries: HashMap<u64, Entry>,
    next: u64,
    stopping: bool,
}

struct Shared {
    exports: Arc<dyn Exports>,
    tls: Option<TlsAcceptor>,
    tls_required: bool,
    limits: Limits,
    /// Bytes in flight beyond what connections have of their own.
    bytes: Arc<Semaphore>,
    register: Mutex<Register>,
    /// Told when an entry leaves the register.
    left: Notify,
}

impl Shared {
    /// Waits until no connection matches.
    async fn until_gone(&self, matches: impl Fn(&Entry) -> bool) {
        loop {
            let left = self.left.notified();
            if !self.register.lock().entries.values().any(&matches) {
                return;
            }
            left.await;
        }
    }

    /// Ends all connections that match: those that do not finish within the grace period are cut.
    async fn finish(&self, matches: impl Fn(&Entry) -> bool) {
        let set = |phase| {
            for entry in self.register.lock().entries.values().filter(|entry| matches(entry)) {
                entry.control.set(phase);
            }
        };
        set(Phase::Finish);
        if tokio::time::timeout(self.limits.grace, self.until_gone(&matches)).await.is_err() {
            set(Phase::Abort);
            self.until_gone(&matches).await;
        }
    }
}

/// A connection's place in the register, left on drop.
struct Place {
    shared: Arc<Shared>,
    id: u64,
    control: Arc<Control>,
}

impl Place {
    fn take(shared: &Arc<Shared>) -> Option<Self> {
        let mut register = shared.register.lock();
        if register.stopping || register.entries.len() >= shared.limits.connections {
            return None;
        }
        let id = register.next;
        register.next += 1;
        let control = Arc::new(Control::default());
        let entry = Entry { control: Arc::clone(&control), export: None, gone: Vec::new() };
        register.entries.insert(id, entry);
        Some(Self { shared: Arc::clone(shared), id, control })
    }

    /// Notes the export; false if it was disconnected meanwhile.
    fn choose(&self, export: &str) -> bool {
        let mut register = self.shared.register.lock();
        let Some(entry) = register.entries.get_mut(&self.id) else { return false };
        entry.export = Some(export.to_owned());
        !std::mem::take(&mut entry.gone).iter().any(|gone| gone == export)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.register.lock().entries.remove(&self.id);
        self.shared.left.notify_waiters();
    }
}

/// An NBD server on one socket. Dropping it cuts all connections; [`NbdServer::shutdown`] ends them in order.
pub struct NbdServer {
    shared: Arc<Shared>,
    address: Address,
    file: Mutex<Option<SocketFile>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl NbdServer {
    /// Listens and serves on `handle`'s runtime. Errors: the address is in use or not allowed, a TLS file is not usable.
    pub fn start(handle: Handle, listen: Listen, exports: Arc<dyn Exports>, tls: Option<TlsConfig>) -> Result<Self> {
        Self::start_with(handle, listen, exports, tls, Limits::default())
    }

    /// [`NbdServer::start`] with other limits.
    pub fn start_with(
        handle: Handle,
        listen: Listen,
        exports: Arc<dyn Exports>,
        tls: Option<TlsConfig>,
        limits: Limits,
    ) -> Result<Self> {
        let _runtime = handle.enter();
        let acceptor = tls.as_ref().map(TlsConfig::acceptor).transpose()?;
        let (listener, address, file) = listener::bind(&listen)?;
        let own = || Arc::new(Semaphore::new(limits.shared_bytes.max(REQUEST_BYTES_MAX as usize)));
        let shared = Arc::new(Shared {
            exports,
            tls: acceptor,
            tls_required: tls.is_some_and(|tls| tls.required),
            bytes: limits.budget.clone().unwrap_or_else(own),
            limits,
            register: Mutex::default(),
            left: Notify::new(),
        });
        let tasks =
            vec![handle.spawn(accept(Arc::clone(&shared), listener)), handle.spawn(watch_stalls(Arc::clone(&shared)))];
        Ok(Self { shared, address, file: Mutex::new(file), tasks: Mutex::new(tasks) })
    }

    /// The NBD URI of an export, whether or not there is one of that name.
    pub fn uri(&self, export: &str) -> String {
        self.address.uri(export, self.shared.tls_required)
    }

    /// Connections now, those in the handshake included.
    pub fn connections(&self) -> usize {
        self.shared.register.lock().entries.len()
    }

    /// Ends the connections of an export that is being detached: requests in flight are answered, within the grace
    /// period, and nothing of the server uses the device when this returns. New connections are up to [`Exports::open`].
    pub async fn disconnect(&self, export: &str) {
        for entry in self.shared.register.lock().entries.values_mut().filter(|entry| entry.export.is_none()) {
            entry.gone.push(export.to_owned());
        }
        self.shared.finish(|entry| entry.export.as_deref() == Some(export)).await;
    }

    /// Stops accepting, answers the requests in flight, within the grace period, and closes all connections.
    pub async fn shutdown(&self) {
        self.shared.register.lock().stopping = true;
        drop(self.file.lock().take());
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        // The first is the one that accepts; the other watches for stalls and is needed until the end.
        if let Some(accept) = tasks.first_mut() {
            accept.abort();
            let _ = accept.await;
        }
        self.shared.finish(|_| true).await;
        tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        self.tasks.lock().iter().for_each(JoinHandle::abort);
        let mut register = self.shared.register.lock();
        register.stopping = true;
        register.entries.values().for_each(|entry| entry.control.set(Phase::Abort));
    }
}

async fn accept(shared: Arc<Shared>, listener: Listener) {
    loop {
        match listener.accept().await {
            Ok((socket, peer)) => match Place::take(&shared) {
                Some(place) => drop(tokio::spawn(serve(place, socket, peer))),
                None => tracing::warn!(peer, limit = shared.limits.connections, "NBD connection refused: too many"),
            },
            Err(error) => {
                // Out of descriptors, or the peer left already.
                tracing::warn!(%error, "cannot accept an NBD connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Cuts connections that wait for their peer longer than the limit.
async fn watch_stalls(shared: Arc<Shared>) {
    const STEPS: u32 = 4;
    let mut seen: HashMap<u64, (u64, u32)> = HashMap::new();
    loop {
        tokio::time::sleep(shared.limits.stall / STEPS).await;
        let register = shared.register.lock();
        seen.retain(|id, _| register.entries.contains_key(id));
        for (id, Entry { control, .. }) in &register.entries {
            let moved = control.moved.load(Ordering::Relaxed);
            let (before, steps) = seen.entry(*id).or_insert((moved, 0));
            if *before != moved || !control.waiting.load(Ordering::Relaxed) {
                (*before, *steps) = (moved, 0);
                continue;
            }
            *steps += 1;
            if *steps > STEPS {
                control.set(Phase::Abort);
            }
        }
    }
}

async fn serve(place: Place, socket: Socket, peer: String) {
    match socket {
        Socket::Unix(stream) => serve_stream(place, stream, &peer).await,
        Socket::Tcp(stream) => serve_stream(place, stream, &peer).await,
    }
}

/// A stream and what to do on it when the handshake is over.
enum Ready<S> {
    Plain(S, BytesMut, handshake::Agreed),
    Encrypted(Box<tokio_rustls::server::TlsStream<S>>, BytesMut, handshake::Agreed),
}

async fn serve_stream<S: AsyncRead + AsyncWrite + Unpin>(place: Place, stream: S, peer: &str) {
    let shared = &place.shared;
    let outcome = tokio::select! {
        outcome = tokio::time::timeout(shared.limits.handshake, shake(shared, stream)) => outcome,
        () = place.control.ended() => return,
    };
    let ready = match outcome {
        Ok(Ok(Some(ready))) => ready,
        Ok(Ok(None)) => return,
        Ok(Err(Failure::Io(error))) => return tracing::debug!(peer, %error, "NBD handshake broken off"),
        Ok(Err(Failure::Protocol(error))) => return tracing::warn!(peer, error, "NBD handshake failed"),
        Err(_) => return tracing::warn!(peer, "NBD handshake took too long"),
    };
    match ready {
        Ready::Plain(stream, input, agreed) => transmit(&place, stream, input, agreed, peer).await,
        Ready::Encrypted(stream, input, agreed) => transmit(&place, stream, input, agreed, peer).await,
    }
}

/// The whole handshake; None when the client gave up.
async fn shake<S>(shared: &Shared, mut stream: S) -> std::result::Result<Option<Ready<S>>, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut input = BytesMut::new();
    let flags = handshake::greet(&mut stream, &mut input).await?;
    let tls = match (&shared.tls, shared.tls_required) {
        (None, _) => Tls::None,
        (Some(_), false) => Tls::Optional,
        (Some(_), true) => Tls::Required,
    };
    let mut negotiation = Negotiation::new(&*shared.exports, tls, flags);
    let acceptor = match handshake::negotiate(&mut stream, &mut input, &mut negotiation).await? {
        Step::Transmit(agreed) => return Ok(Some(Ready::Plain(stream, input, agreed))),
        Step::Close | Step::Options => return Ok(None),
        Step::StartTls => shared.tls.as_ref(),
    };
    let Some(acceptor) = acceptor else { return Ok(None) };
    let mut stream = acceptor.accept(stream).await?;
    let mut negotiation = Negotiation::new(&*shared.exports, Tls::Running, flags);
    match handshake::negotiate(&mut stream, &mut input, &mut negotiation).await? {
        Step::Transmit(agreed) => Ok(Some(Ready::Encrypted(Box::new(stream), input, agreed))),
        Step::Close | Step::Options | Step::StartTls => Ok(None),
    }
}

async fn transmit<S>(place: &Place, stream: S, input: BytesMut, agreed: handshake::Agreed, peer: &str)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let shared = &place.shared;
    let export = agreed.export.clone();
    if !place.choose(&export) {
        return;
    }
    tracing::debug!(peer, export, structured = agreed.structured, "NBD client connected");
    let bytes = Arc::clone(&shared.bytes);
    match transmission::run(stream, input, agreed, shared.limits.clone(), bytes, &place.control).await {
        End::Disconnected | End::Stopped => tracing::debug!(peer, export, "NBD client disconnected"),
        End::Lost(error) => tracing::debug!(peer, export, %error, "NBD client lost"),
        End::Protocol(error) => tracing::warn!(peer, export, error, "NBD client dropped"),
    }
}
