//! Who asked for a change: the process at the other end of the socket, as the kernel knows it.

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::http::request::Parts;
use axum::serve::IncomingStream;
use tokio::net::UnixListener;

use crate::wire::events::Event;

/// Longest command, in characters, that is noted.
const COMMAND_MAX: usize = 300;
/// Longest wait for a look at the process.
const LOOK_MAX: Duration = Duration::from_secs(1);

/// A peer on the API's socket.
#[derive(Clone, Copy, Debug, Default)]
pub struct Peer {
    uid: Option<u32>,
    pid: Option<i32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        match stream.io().peer_cred() {
            Ok(peer) => Self { uid: Some(peer.uid()), pid: peer.pid() },
            Err(_) => Self::default(),
        }
    }
}

/// Who asked; nothing is known of a peer that is gone already.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    user: Option<String>,
    command: Option<String>,
}

impl Origin {
    /// Adds to an event who asked for what it tells.
    pub fn of(&self, event: Event) -> Event {
        Event { user: self.user.clone(), command: self.command.clone(), ..event }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Origin {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let Some(ConnectInfo(peer)) = parts.extensions.get::<ConnectInfo<Peer>>().copied() else {
            return Ok(Self::default());
        };
        let look = tokio::task::spawn_blocking(move || look(peer));
        Ok(tokio::time::timeout(LOOK_MAX, look).await.ok().and_then(Result::ok).unwrap_or_default())
    }
}

fn look(peer: Peer) -> Origin {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let command = peer.pid.and_then(|pid| {
        let line = std::fs::read(PathBuf::from("/proc").join(pid.to_string()).join("cmdline")).ok()?;
        command(&line)
    });
    Origin { user: peer.uid.map(|uid| user_name(&passwd, uid)), command }
}

/// The name of a user by the lines of passwd(5).
fn user_name(passwd: &str, uid: u32) -> String {
    let named = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    named.unwrap_or_else(|| format!("uid {uid}"))
}

/// Words that end with a zero byte each, as one line.
fn command(words: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(words);
    let text = text.trim_end_matches('\0');
    let line: String = text
        .chars()
        .take(COMMAND_MAX)
        .map(|c| {
            if c == '\0' {
                ' '
            } else if c.is_control() {
                '?'
            } else {
                c
            }
        })
        .collect();
    (!line.is_empty()).then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_have_names_and_commands_are_one_line() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nbroken\nana:x:1000:1000::/home/ana:/bin/sh\n";
        assert_eq!([0, 1000, 7].map(|uid| user_name(passwd, uid)), ["root", "ana", "uid 7"]);
        assert_eq!(command(b"ashlar\0volume\0create\0a\nb\0").as_deref(), Some("ashlar volume create a?b"));
        assert_eq!((command(b""), command(b"\0")), (None, None));
        assert_eq!(command(&[b'x'; 5000]).unwrap().len(), COMMAND_MAX);
    }

    #[test]
    fn this_process_is_known() {
        let peer = Peer { uid: Some(0), pid: Some(std::process::id() as i32) };
        let origin = look(peer);
        assert_eq!(origin.user.as_deref(), Some("root"));
        assert!(origin.command.is_some_and(|line| !line.is_empty()));
        assert_eq!(look(Peer::default()), Origin::default());
    }
}
