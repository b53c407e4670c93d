//! NBD server: fixed newstyle, structured replies, block status, TLS, over unix sockets and TCP.
//!
//! A connection goes through two phases. In the *handshake* ([`handshake`]) the client lists exports, switches to TLS,
//! selects metadata contexts and chooses an export; the whole of it must end within [`Limits::handshake`]. In the
//! *transmission* phase ([`transmission`]) one task per connection reads requests, starts them on the device, and sends
//! replies in the order in which the device completes them. Requests the device answers at once never leave that task.
//!
//! Memory is bounded: a connection that has too many requests or bytes in flight is not read from until some are done.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Result;
use crate::frontend::BlockDevice;

mod context;
mod handshake;
mod listener;
mod output;
mod request;
mod server;
mod tls;
mod transmission;
pub mod wire;

pub use context::MetaContext;
pub use server::NbdServer;
pub use tls::TlsConfig;

/// Largest read or write in bytes: what every client may rely on by the protocol.
pub const REQUEST_BYTES_MAX: u32 = 32 << 20;

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A unix socket at this path with these permission bits, such as `0o600`. A socket file nobody listens on is replaced.
    Unix(PathBuf, u32),
    /// A TCP address; port 0 takes a free one.
    Tcp(SocketAddr),
}

/// What a server offers.
pub trait Exports: Send + Sync + 'static {
    /// Names of all exports.
    fn list(&self) -> Vec<String>;

    /// The device behind a name. Called in the handshake; must not block.
    fn open(&self, name: &str) -> Result<Arc<dyn BlockDevice>>;

    /// Metadata contexts of an export beyond `base:allocation`, which every export has.
    fn contexts(&self, name: &str) -> Vec<Arc<dyn MetaContext>> {
        let _ = name;
        Vec::new()
    }
}

/// Bounds on what clients can take.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at a time; further ones are closed at once.
    pub connections: usize,
    /// Requests in flight per connection.
    pub requests: usize,
    /// Payload bytes in flight that every connection may have without asking.
    pub own_bytes: usize,
    /// Payload bytes in flight of one connection, beyond `own_bytes`. At least [`REQUEST_BYTES_MAX`].
    pub connection_bytes: usize,
    /// Payload bytes in flight of all connections, beyond their `own_bytes`. At least [`REQUEST_BYTES_MAX`].
    pub shared_bytes: usize,
    /// Time for the whole handshake.
    pub handshake: Duration,
    /// How long a peer may neither take a reply nor finish sending a request it began.
    pub stall: Duration,
    /// How long a peer may take to fetch its last replies when the server closes the connection.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            requests: 128,
            own_bytes: 256 << 10,
            connection_bytes: 64 << 20,
            shared_bytes: 128 << 20,
            handshake: Duration::from_secs(10),
            stall: Duration::from_secs(60),
            grace: Duration::from_secs(5),
        }
    }
}
