//! Sockets a server listens on, and their addresses as URIs.

use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixSocket, UnixStream};

use super::Listen;
use crate::error::{Error, ErrorKind, Result};

/// Connections the kernel keeps until they are accepted.
const BACKLOG: u32 = 128;

/// A bound socket.
pub(super) enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// An accepted connection.
pub(super) enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Listener {
    pub(super) async fn accept(&self) -> io::Result<(Socket, String)> {
        match self {
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Socket::Unix(stream), "unix socket".to_owned()))
            }
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok((Socket::Tcp(stream), peer.to_string()))
            }
        }
    }
}

/// Where clients find the server. Dropping it removes a unix socket's file.
pub(super) enum Address {
    Unix(SocketFile),
    Tcp(SocketAddr),
}

/// A unix socket's file that we made.
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode: another server may have taken the path over.
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.identity)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the NBD socket file");
        }
    }
}

/// Binds and listens. Must run within a tokio runtime.
pub(super) fn bind(listen: &Listen) -> Result<(Listener, Address)> {
    match listen {
        Listen::Unix(path, mode) => {
            clear_stale(path)?;
            bind_unix(path, *mode).map_err(|e| cannot_listen(&path.display(), &e))
        }
        Listen::Tcp(address) => bind_tcp(*address).map_err(|e| cannot_listen(address, &e)),
    }
}

fn cannot_listen(at: &dyn std::fmt::Display, error: &io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::AddrInUse => ErrorKind::Busy,
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        _ => ErrorKind::InvalidArgument,
    };
    Error::new(kind, format!("cannot listen for NBD clients on {at}: {error}"))
}

/// Removes a socket file that nobody listens on; anything else at the path is an error.
fn clear_stale(path: &Path) -> Result<()> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return Ok(()) };
    let at = path.display();
    if !metadata.file_type().is_socket() {
        return Err(Error::new(ErrorKind::AlreadyExists, format!("{at} exists and is not a socket")));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|e| cannot_listen(&at, &e))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(_) => Err(Error::new(ErrorKind::Busy, format!("another process listens on {at}"))),
        Err(error) => Err(Error::new(ErrorKind::Busy, format!("{at} seems to be in use: {error}"))),
    }
}

fn bind_unix(path: &Path, mode: u32) -> io::Result<(Listener, Address)> {
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    let metadata = std::fs::symlink_metadata(path)?;
    let file = SocketFile { path: path.to_owned(), identity: (metadata.dev(), metadata.ino()) };
    // Nobody can connect before listen, so the permissions are in force for the first client.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok((Listener::Unix(socket.listen(BACKLOG)?), Address::Unix(file)))
}

fn bind_tcp(address: SocketAddr) -> io::Result<(Listener, Address)> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    // Inherited by accepted connections: a client that lost power does not hold its place for ever.
    socket.set_keepalive(true)?;
    socket.bind(address)?;
    let listener = socket.listen(BACKLOG)?;
    let address = listener.local_addr()?;
    Ok((Listener::Tcp(listener), Address::Tcp(address)))
}

impl Address {
    /// The NBD URI of an export. An address that means "any" is given as the loopback address.
    pub(super) fn uri(&self, export: &str, tls_required: bool) -> String {
        let scheme = if tls_required { "nbds" } else { "nbd" };
        let name = escape(export.as_bytes());
        match self {
            Self::Unix(file) => {
                let path = std::path::absolute(&file.path).unwrap_or_else(|_| file.path.clone());
                format!("{scheme}+unix:///{name}?socket={}", escape(path.as_os_str().as_encoded_bytes()))
            }
            Self::Tcp(address) => {
                let mut address = *address;
                if address.ip().is_unspecified() {
                    address.set_ip(match address.ip() {
                        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
                    });
                }
                format!("{scheme}://{address}/{name}")
            }
        }
    }
}

/// Percent-encodes what RFC 3986 does not allow in a path or a query, and what would end one.
fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~/:@".contains(&byte) {
            out.push(byte.into());
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris() {
        let v4 = Address::Tcp("0.0.0.0:10809".parse().unwrap());
        assert_eq!(v4.uri("vol 1?#%", false), "nbd://127.0.0.1:10809/vol%201%3F%23%25");
        let v6 = Address::Tcp("[::1]:5".parse().unwrap());
        assert_eq!(v6.uri("ä", true), "nbds://[::1]:5/%C3%A4");
        let unix = Address::Unix(SocketFile { path: "/run/a b&c.sock".into(), identity: (0, 0) });
        assert_eq!(unix.uri("x", false), "nbd+unix:///x?socket=/run/a%20b%26c.sock");
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a closed listener leaves its file");
        let listen = Listen::Unix(path.clone(), 0o620);
        let (_listener, address) = bind(&listen).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o620);
        assert_eq!(bind(&listen).err().unwrap().kind(), ErrorKind::Busy);
        assert!(path.exists());
        drop(address);
        assert!(!path.exists());
        std::fs::write(&path, "precious").unwrap();
        assert_eq!(bind(&listen).err().unwrap().kind(), ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        let nowhere = Listen::Unix(dir.path().join("no/such/dir.sock"), 0o600);
        assert_eq!(bind(&nowhere).err().unwrap().kind(), ErrorKind::NotFound);
    }
}
