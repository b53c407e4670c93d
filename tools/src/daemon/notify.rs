//! Tells the service manager how the daemon is: one datagram to the socket that `NOTIFY_SOCKET` names, as sd_notify(3) describes it.

use std::ffi::{OsStr, OsString};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Opening the pool, or presenting volumes.
pub fn starting(what: &str) {
    send(&format!("STATUS={what}"));
}

/// The daemon answers. `reloading` had begun an upgrade, if there was one.
pub fn ready(pool: &str) {
    send(&format!("READY=1\nSTATUS=serving pool {pool}, version {}", env!("CARGO_PKG_VERSION")));
}

/// Another program is about to go on in this process.
pub fn reloading(version: &str) {
    send(&format!("RELOADING=1\nSTATUS=handing over to version {version}"));
}

/// The daemon ends.
pub fn stopping() {
    send("STOPPING=1\nSTATUS=closing the pool");
}

/// Nobody listens outside a service manager; that it cannot be told must not keep the daemon from serving.
fn send(text: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else { return };
    if let Err(error) = send_to(&socket, text) {
        tracing::warn!(socket = %socket.display(), %error, "the service manager cannot be told how the daemon is");
    }
}

/// A name that begins with `@` is of the abstract kind.
fn send_to(socket: &OsStr, text: &str) -> std::io::Result<()> {
    let bytes = socket.as_bytes();
    let address = match bytes.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(OsString::from(socket))?,
    };
    UnixDatagram::unbound()?.send_to_addr(text.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_names_are_reached() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("ashlar-notify-{}", std::process::id());
        let abstract_one = SocketAddr::from_abstract_name(&name).unwrap();
        for (receiver, socket) in [
            (UnixDatagram::bind(&path).unwrap(), path.clone().into_os_string()),
            (UnixDatagram::bind_addr(&abstract_one).unwrap(), OsString::from(format!("@{name}"))),
        ] {
            send_to(&socket, "READY=1").unwrap();
            let mut bytes = [0; 64];
            let got = receiver.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..got], b"READY=1");
        }
        assert!(send_to(OsStr::new("/nonexistent/socket"), "x").is_err());
    }
}
