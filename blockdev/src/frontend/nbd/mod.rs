//! NBD server: fixed newstyle, structured replies, block status, TLS, over unix sockets and TCP.
//!
//! A connection goes through two phases. In the *handshake* (`handshake`) the client lists exports, switches to TLS,
//! selects metadata contexts and chooses an export; the whole of it must end within [`Limits::handshake`]. In the
//! *transmission* phase (`transmission`) one task per connection reads requests, starts them on the device, and sends
//! replies in the order in which the device completes them. Requests the device answers at once never leave that task.
//!
//! Memory is bounded: a connection that has too many requests or bytes in flight is not read from until some are done.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

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

/// A connection may always have a small request under way.
const OWN_BYTES_MIN: usize = 32 << 10;

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
    /// Where `shared_bytes` are taken from, for servers that share them; each has its own when None.
    pub budget: Option<Arc<Semaphore>>,
    /// Time for the whole handshake.
    pub handshake: Duration,
    /// How long a peer may neither take a reply nor finish sending a request it began.
    pub stall: Duration,
    /// How long a peer may take to fetch its last replies when the server closes the connection.
    pub grace: Duration,
}

impl Limits {
    /// Payload buffers of at most `bytes`, over all servers started with a clone of these limits, as far as that leaves room for the longest
    /// request: all connections' own bytes may take a quarter.
    pub fn within(bytes: u64) -> Self {
        let defaults = Self::default();
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let own_bytes = (bytes / 4 / defaults.connections).clamp(OWN_BYTES_MIN, defaults.own_bytes);
        let shared_bytes = (bytes - bytes / 4).clamp(REQUEST_BYTES_MAX as usize, defaults.shared_bytes);
        Self {
            own_bytes,
            shared_bytes,
            budget: Some(Arc::new(Semaphore::new(shared_bytes))),
            connection_bytes: defaults.connection_bytes.min(shared_bytes),
            ..defaults
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            requests: 128,
            own_bytes: 256 << 10,
            connection_bytes: 64 << 20,
            shared_bytes: 128 << 20,
            budget: None,
            handshake: Duration::from_secs(10),
            stall: Duration::from_secs(60),
            grace: Duration::from_secs(5),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_follow_a_budget_between_the_longest_request_and_the_default() {
        let shared = |bytes| Limits::within(bytes).shared_bytes;
        assert_eq!((shared(0), shared(8 << 20)), (32 << 20, 32 << 20));
        assert_eq!((shared(64 << 20), shared(u64::MAX)), (48 << 20, 128 << 20));
        for bytes in [0, 44 << 20, 100 << 20, u64::MAX] {
            let limits = Limits::within(bytes);
            let most = limits.shared_bytes + limits.connections * limits.own_bytes;
            assert!(most as u64 <= bytes || bytes < 43 << 20, "{bytes}: {limits:?}");
            assert!(
                limits.connection_bytes >= REQUEST_BYTES_MAX as usize && limits.connection_bytes <= limits.shared_bytes
            );
        }
    }
}
