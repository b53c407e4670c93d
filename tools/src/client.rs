//! Client of the daemon's REST API: HTTP/1.1 over its unix socket.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::exit::{CommandResult, Failure};
use crate::wire::ErrorBody;

/// Largest answer, in bytes, that is read.
const ANSWER_MAX: usize = 256 << 20;

/// Where a daemon is expected.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    /// The appliance directory it was found by.
    dir: Option<PathBuf>,
}

impl Client {
    /// The daemon listening on `socket`; `dir` is told in messages.
    pub fn new(socket: PathBuf, dir: Option<PathBuf>) -> Self {
        Self { socket, dir }
    }

    /// Reads a resource.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> CommandResult<T> {
        self.call(Method::GET, path, None::<&()>).await
    }

    /// Sends a request without body.
    pub async fn send<T: DeserializeOwned>(&self, method: Method, path: &str) -> CommandResult<T> {
        self.call(method, path, None::<&()>).await
    }

    /// Sends a request; `()` fits an answer without body.
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> CommandResult<T> {
        let (status, bytes) = self.exchange(method, path, body).await?;
        if !status.is_success() {
            return Err(match serde_json::from_slice::<ErrorBody>(&bytes) {
                Ok(body) => Failure::from_body(body),
                Err(_) => Failure::other(format!("the daemon answered {status}: {}", String::from_utf8_lossy(&bytes))),
            });
        }
        let text = if bytes.is_empty() { b"null".as_slice() } else { &bytes };
        serde_json::from_slice(text).map_err(|e| {
            Failure::other(format!("the daemon's answer to {path} is not understood ({e}); is it of another version?"))
        })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> CommandResult<(StatusCode, Bytes)> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| self.unreachable(&e))?;
        // It would take the request and never answer.
        if let Some(pid) = stream.peer_cred().ok().and_then(|daemon| daemon.pid()).filter(|pid| stands_still(*pid)) {
            return Err(Failure::unreachable(format!(
                "the daemon (process {pid}) was stopped by a signal; let it go on with `kill -CONT {pid}`"
            )));
        }
        let broken = |e: &dyn std::fmt::Display| {
            Failure::unreachable(format!("the connection to the daemon on {} broke: {e}", self.socket.display()))
        };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| broken(&e))?;
        let connection = tokio::spawn(connection);
        let text = match body {
            Some(body) => serde_json::to_vec(body).map_err(|e| Failure::other(format!("writing the request: {e}")))?,
            None => Vec::new(),
        };
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, "ashlar");
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(Bytes::from(text)))
            .map_err(|e| Failure::usage(format!("'{path}' cannot be asked for: {e}")))?;
        let answer = sender.send_request(request).await.map_err(|e| broken(&e))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await.map_err(|e| broken(&e))?;
        connection.abort();
        Ok((status, body.to_bytes()))
    }

    fn unreachable(&self, error: &std::io::Error) -> Failure {
        use std::io::ErrorKind;
        let socket = self.socket.display();
        if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) {
            return Failure::unreachable(format!("connecting to the daemon on {socket}: {error}"));
        }
        Failure::unreachable(match &self.dir {
            Some(dir) if crate::lab::is_lab(dir) => {
                let dir = dir.display();
                format!("no daemon is running in {dir}; start it with `ashlar lab start --dir {dir}`")
            }
            Some(dir) if dir.join(crate::daemon::config::FILE_NAME).exists() => {
                let dir = dir.display();
                format!("no daemon is running in {dir}; start it with `ashlar serve --dir {dir}`")
            }
            Some(dir) => {
                let dir = dir.display();
                format!("there is no appliance in {dir}; make a laboratory there with `ashlar lab up --dir {dir}`")
            }
            None => format!(
                "no daemon is running on {socket}; start it with `ashlar serve --config FILE`, \
                 or choose another by --dir DIR or --socket PATH"
            ),
        })
    }
}

/// Whether a process is stopped, by a signal or a debugger.
fn stands_still(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // What is in front, the name in brackets, may hold anything.
    let state = stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
    matches!(state, Some('T' | 't'))
}

/// `text` as one segment of a path.
pub fn segment(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Where the daemon of an appliance directory listens.
pub fn socket_in(dir: &Path) -> PathBuf {
    let configured = crate::daemon::config::read_file(&dir.join(crate::daemon::config::FILE_NAME));
    let socket = configured.ok().and_then(|file| file.socket);
    dir.join(socket.unwrap_or_else(|| "run/api.sock".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    #[test]
    fn segments_are_escaped() {
        assert_eq!(segment("db-1_a.b"), "db-1_a.b");
        assert_eq!(segment("/dev/a b?#%ä"), "%2Fdev%2Fa%20b%3F%23%25%C3%A4");
    }

    #[tokio::test]
    async fn a_missing_daemon_is_explained() {
        let dir = tempfile::tempdir().unwrap();
        let client = Client::new(socket_in(dir.path()), Some(dir.path().into()));
        let failure = client.get::<()>("/v1/health").await.unwrap_err();
        assert_eq!(failure.exit, Exit::Unreachable);
        assert!(failure.message.contains("there is no appliance in"), "{}", failure.message);
        std::fs::write(dir.path().join("ashlar.toml"), "socket = 'other.sock'").unwrap();
        assert_eq!(socket_in(dir.path()), dir.path().join("other.sock"));
        let failure = client.get::<()>("/v1/health").await.unwrap_err();
        assert!(failure.message.contains("ashlar serve --dir"), "{}", failure.message);
    }

    #[test]
    fn a_process_that_was_stopped_is_known() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id() as i32;
        let moving = stands_still(pid);
        let send = |signal: &str| std::process::Command::new("kill").args([signal, &pid.to_string()]).status().unwrap();
        send("-STOP");
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !stands_still(pid) && std::time::Instant::now() < until {
            std::thread::yield_now();
        }
        let still = stands_still(pid);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!((moving, still, stands_still(pid)), (false, true, false));
    }

    #[tokio::test]
    async fn a_daemon_that_hangs_up_is_unreachable() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move { while listener.accept().await.is_ok() {} });
        let failure = Client::new(socket, None).get::<()>("/v1/health").await.unwrap_err();
        assert_eq!(failure.exit, Exit::Unreachable);
    }
}
