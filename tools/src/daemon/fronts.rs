//! The front ends of the product: NBD, FUSE, loop devices over FUSE files, and ublk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use blockdev::error::{Error, ErrorKind, Result};
use blockdev::frontend::BlockDevice;
use blockdev::frontend::fuse::{FuseOptions, FuseServer, Unmounted};
use blockdev::frontend::loopdev::{self, LoopOptions, with_private_files};
use blockdev::frontend::nbd::{Exports, Limits, Listen, MetaContext, NbdServer, TlsConfig};
use blockdev::report::VolumeInfo;
use blockdev::units::Uuid;
use parking_lot::RwLock;
use tokio::runtime::Handle;
use tokio::sync::Mutex;

use super::attach::{FrontEnds, Loops, Presenter, Target};
use super::changed;
use super::config::Config;
use super::engine::Engine;
use super::instance::clear_socket;
use super::ublk::Ublk;

/// Permission bits of the NBD socket: only the daemon's user, as for the API.
const SOCKET_MODE: u32 = 0o600;

/// Starts what serves without being asked; FUSE is mounted when the first volume is attached by it. `pool` is the identity of the pool.
pub async fn start(config: &Config, engine: Arc<dyn Engine>, pool: Uuid) -> Result<FrontEnds> {
    let fuse = Fuse {
        mountpoint: config.fuse_mountpoint.value.clone(),
        memory: config.fuse_memory() as usize,
        server: Mutex::new(None),
    };
    let nbd = Arc::new(Nbd::start(config, engine).await?);
    let ublk = Arc::new(Ublk::new(config, pool));
    Ok(FrontEnds { nbd, fuse: Arc::new(fuse), ublk, loops: Arc::new(KernelLoops) })
}

/// Runs work that blocks away from the runtime's threads.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.unwrap_or_else(|e| Err(Error::io(format!("a front end's thread ended unexpectedly: {e}"))))
}

/// Volumes attached by NBD.
struct NbdExports {
    devices: RwLock<BTreeMap<String, Arc<dyn BlockDevice>>>,
    engine: Arc<dyn Engine>,
}

impl Exports for NbdExports {
    fn list(&self) -> Vec<String> {
        self.devices.read().keys().cloned().collect()
    }

    fn open(&self, name: &str) -> Result<Arc<dyn BlockDevice>> {
        let found = self.devices.read().get(name).cloned();
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no volume '{name}' is attached via nbd")))
    }

    fn contexts(&self, name: &str) -> Vec<Arc<dyn MetaContext>> {
        changed::contexts(&self.engine, name)
    }
}

struct Nbd {
    exports: Arc<NbdExports>,
    /// The unix socket's first.
    servers: Vec<NbdServer>,
}

impl Nbd {
    async fn start(config: &Config, engine: Arc<dyn Engine>) -> Result<Self> {
        let exports = Arc::new(NbdExports { devices: RwLock::default(), engine });
        let socket = &config.nbd_socket.value;
        clear_socket(socket)?;
        let handle = Handle::current();
        let local = Listen::Unix(socket.clone(), SOCKET_MODE);
        let limits = Limits::within(config.nbd_memory());
        let mut servers = vec![NbdServer::start_with(handle.clone(), local, exports.clone(), None, limits.clone())?];
        if let Some(address) = config.nbd_listen.value {
            let tls = config.nbd_tls_cert.value.clone().zip(config.nbd_tls_key.value.clone());
            let client_ca = config.nbd_tls_ca.value.clone();
            let tls = tls.map(|(certificate, key)| TlsConfig { certificate, key, client_ca, required: true });
            if tls.is_none() && !address.ip().is_loopback() {
                tracing::warn!(%address, "NBD is served to other machines without TLS: anybody who can connect can write");
            }
            match NbdServer::start_with(handle, Listen::Tcp(address), exports.clone(), tls, limits) {
                Ok(server) => servers.push(server),
                Err(e) => {
                    servers[0].shutdown().await;
                    return Err(e);
                }
            }
        }
        Ok(Self { exports, servers })
    }
}

#[async_trait]
impl Presenter for Nbd {
    async fn present(&self, volume: &VolumeInfo, device: Arc<dyn BlockDevice>) -> Result<Target> {
        let name = &volume.name;
        self.exports.devices.write().insert(name.clone(), device);
        Ok(Target { uris: self.servers.iter().map(|s| s.uri(name)).collect(), ..Target::default() })
    }

    async fn withdraw(&self, name: &str) -> Result<()> {
        self.exports.devices.write().remove(name);
        for server in &self.servers {
            server.disconnect(name).await;
        }
        Ok(())
    }

    async fn stop(&self) {
        for server in &self.servers {
            server.shutdown().await;
        }
        self.exports.devices.write().clear();
    }
}

struct Fuse {
    mountpoint: PathBuf,
    /// Bytes of requests under way.
    memory: usize,
    server: Mutex<Option<Arc<FuseServer>>>,
}

#[async_trait]
impl Presenter for Fuse {
    async fn present(&self, volume: &VolumeInfo, device: Arc<dyn BlockDevice>) -> Result<Target> {
        let mut mounted = self.server.lock().await;
        let server = match &*mounted {
            Some(server) => server.clone(),
            None => {
                let (handle, path) = (Handle::current(), self.mountpoint.clone());
                let options = FuseOptions::default();
                let options = FuseOptions { bytes: options.bytes.min(self.memory), ..options };
                let server = blocking(move || FuseServer::mount(handle, &path, options)).await?;
                tracing::info!(path = %server.mountpoint().display(), "FUSE is mounted");
                mounted.insert(Arc::new(server)).clone()
            }
        };
        let name = volume.name.clone();
        let path = blocking(move || server.add(&name, device)).await?;
        Ok(Target { path: Some(path), ..Target::default() })
    }

    async fn withdraw(&self, name: &str) -> Result<()> {
        let Some(server) = self.server.lock().await.clone() else {
            return Err(Error::new(ErrorKind::NotFound, format!("no volume '{name}' is attached via fuse")));
        };
        let name = name.to_owned();
        blocking(move || server.remove(&name, false)).await
    }

    async fn stop(&self) {
        let Some(server) = self.server.lock().await.take() else { return };
        match blocking(move || server.unmount()).await {
            Ok(Unmounted::Clean) => {}
            Ok(Unmounted::Forced) => tracing::warn!("FUSE was unmounted although files in it were open"),
            Err(e) => tracing::error!(error = %e, "unmounting FUSE"),
        }
    }
}

/// The kernel's loop devices. Their files are served by this very process, hence the private file tables.
struct KernelLoops;

#[async_trait]
impl Loops for KernelLoops {
    async fn set_up(&self, file: &Path) -> Result<PathBuf> {
        let file = file.to_owned();
        let attached = blocking(move || {
            with_private_files(move || {
                // A snapshot's file cannot be written to.
                let read_only = std::fs::metadata(&file).is_ok_and(|m| m.permissions().readonly());
                loopdev::attach(&file, LoopOptions { read_only, ..LoopOptions::default() })
            })?
        });
        let attached = attached.await?;
        if !attached.direct_io {
            let device = attached.device.display();
            tracing::warn!(%device, "the kernel gives this loop device no direct I/O: data is cached twice");
        }
        Ok(attached.device)
    }

    async fn refresh(&self, device: &Path) -> Result<()> {
        let device = device.to_owned();
        blocking(move || with_private_files(move || loopdev::set_capacity(&device))?).await.map(drop)
    }

    async fn take_down(&self, device: &Path, file: &Path) -> Result<()> {
        let (device, file) = (device.to_owned(), file.to_owned());
        blocking(move || with_private_files(move || loopdev::detach_from(&device, &file))?).await
    }
}
