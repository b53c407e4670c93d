//! Serves a memory device by NBD until interrupted, for comparison with other servers:
//!
//! ```text
//! nbd_memory /tmp/memory.sock 1073741824
//! fio --name=r --ioengine=nbd --uri='nbd+unix:///memory?socket=/tmp/memory.sock' --rw=randread --bs=4k --iodepth=32
//! ```

use std::process::ExitCode;
use std::sync::Arc;

use blockdev::error::{Error, ErrorKind, Result};
use blockdev::frontend::BlockDevice;
use blockdev::frontend::memory::MemoryDevice;
use blockdev::frontend::nbd::{Exports, Listen, NbdServer};

const EXPORT: &str = "memory";

struct One(Arc<MemoryDevice>);

impl Exports for One {
    fn list(&self) -> Vec<String> {
        vec![EXPORT.to_owned()]
    }

    fn open(&self, name: &str) -> Result<Arc<dyn BlockDevice>> {
        if name == EXPORT {
            return Ok(self.0.clone());
        }
        Err(Error::new(ErrorKind::NotFound, format!("there is no export '{name}', only '{EXPORT}'")))
    }
}

async fn run(socket: String, size: u64) -> Result<()> {
    let listen = match socket.parse() {
        Ok(address) => Listen::Tcp(address),
        Err(_) => Listen::Unix(socket.into(), 0o600),
    };
    let exports = Arc::new(One(Arc::new(MemoryDevice::new(size))));
    let server = NbdServer::start(tokio::runtime::Handle::current(), listen, exports, None)?;
    println!("{}", server.uri(EXPORT));
    tokio::signal::ctrl_c().await.map_err(|e| Error::io(format!("cannot wait for an interrupt: {e}")))?;
    server.shutdown().await;
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(socket), Some(Ok(size))) = (arguments.next(), arguments.next().map(|size| size.parse())) else {
        eprintln!("usage: nbd_memory <socket path or address:port> <size in bytes>");
        return ExitCode::from(2);
    };
    match run(socket, size).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nbd_memory: {error}");
            ExitCode::FAILURE
        }
    }
}
