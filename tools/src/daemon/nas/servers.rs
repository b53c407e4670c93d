//! NAS servers: file systems with an address, in a network namespace of their own. See `docs/design/0025-nas-servers.md`.
//!
//! What a server is to be is a setting, as for file systems; so is each export. What it must remember itself (clients and their locks) lies on a
//! small file system of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Permissions;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use blockdev::error::{Context, Error, ErrorKind, Result};
use blockdev::format::volume::Setting;
use blockdev::pool::Managed;
use blockdev::report::Alert;
use nas::server::enter::{Enter, HOSTS, RESOLVER, RUN};
use nas::server::network::{self, Address, Network};
use nas::server::nfs::{NFS, Nfs, STATE_DIRECTORIES, STATUS_MONITOR, Served};
use nas::server::supervise::{Service, State, Supervisor};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{NewFileSystem, StoredState, exports};
use crate::daemon::engine::Engine;
use crate::daemon::fronts::blocking;
use crate::daemon::state::{Appliance, now_s};
use crate::values::check_name;
use crate::wire::servers::{NasServer, NasServerCreate, ServerService, ServerState};

/// What settings of servers are called, before the name.
const PREFIX: &str = "nas-server/";

/// Longest name: it is part of those of its state and its namespace.
const NAME_LEN_MAX: usize = 40;

/// Size of the file system that holds a server's state, in bytes.
const STATE_SIZE: u64 = 64 << 20;

/// The library that is loaded into servers. It lies with the daemon's state: below /run nothing may be executed.
pub const LIBRARY: &str = "nas-fsid.so";

/// File in a server's directory that says which namespace is its own.
const NAMESPACE: &str = "namespace";

/// What the pool remembers of a server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Stored {
    state: StoredState,
    created_s: u64,
    address: String,
    gateway: Option<IpAddr>,
    interface: Option<String>,
    #[serde(default)]
    dns: Vec<IpAddr>,
    nfs: BTreeSet<u8>,
    /// The number the next export gets: one that was deleted is in the handles of clients, and leads nowhere.
    #[serde(default)]
    next_export: u16,
}

impl Stored {
    /// Whether it can ask for the names of hosts.
    pub(super) fn has_names(&self) -> bool {
        !self.dns.is_empty()
    }

    /// A number for a new export that none of `used` has, and the server afterwards.
    pub(super) fn number(mut self, used: &BTreeSet<u16>) -> Result<(u16, Self)> {
        for _ in 0..=u16::MAX {
            self.next_export = self.next_export.wrapping_add(1);
            if self.next_export != 0 && !used.contains(&self.next_export) {
                return Ok((self.next_export, self));
            }
        }
        Err(Error::new(ErrorKind::NoSpace, "the NAS server has too many exports"))
    }
}

/// The file system that holds the state of a server.
pub(super) fn state_of(server: &str) -> String {
    format!("{server}.nas")
}

pub(super) fn stored(engine: &dyn Engine) -> BTreeMap<String, Stored> {
    super::settings(engine, PREFIX)
}

pub(super) fn put(name: &str, stored: &Stored) -> Result<Managed> {
    super::setting(&format!("{PREFIX}{name}"), stored)
}

fn take(name: &str) -> Managed {
    Managed::Setting(Setting { name: format!("{PREFIX}{name}"), value: Vec::new() })
}

pub(super) fn missing(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no NAS server '{name}' (ashlar nas server list)"))
}

/// A server that should serve.
#[derive(Clone)]
enum Entry {
    Up(Arc<Running>),
    /// Why it does not.
    Failed(String),
}

/// The programs of a server, and what they serve.
struct Running {
    supervisor: Supervisor,
    served: Arc<Served>,
}

/// The NAS servers of an appliance.
pub struct Servers {
    /// Each has a directory below it, for its processes.
    run: PathBuf,
    /// Where the daemon keeps its state; what protocol servers say is in `log` below it.
    state: PathBuf,
    /// Where file systems are mounted.
    file_systems: PathBuf,
    /// Tells pools on one machine apart.
    pool: String,
    /// Held over whole changes, before any other lock.
    turn: tokio::sync::Mutex<()>,
    table: Mutex<BTreeMap<String, Entry>>,
    /// The daemon is stopping: nothing is started any more.
    stopped: AtomicBool,
}

impl Servers {
    /// None yet; see [`Servers::start`].
    pub fn new(run: PathBuf, state: PathBuf, file_systems: PathBuf, pool: &str) -> Self {
        let pool = pool.chars().filter(char::is_ascii_alphanumeric).take(8).collect();
        let (turn, table) = Default::default();
        Self { run, state, file_systems, pool, turn, table, stopped: AtomicBool::new(false) }
    }

    /// Keeps servers and exports as they are.
    pub async fn hold(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Starts all servers; undoes and finishes what was cut short.
    pub async fn start(&self, app: &Appliance) {
        let _turn = self.turn.lock().await;
        for (name, stored) in stored(&*app.engine) {
            match stored.state {
                StoredState::Ready => self.bring_up(app, &name).await,
                StoredState::Making | StoredState::Deleting => {
                    if let Err(error) = self.erase(app, &name).await {
                        tracing::error!(name, %error, "a NAS server that was half made or half deleted stays so");
                    }
                }
            }
        }
    }

    /// Stops all servers.
    pub async fn stop(&self) {
        let _turn = self.turn.lock().await;
        self.stopped.store(true, Ordering::Relaxed);
        let names: Vec<String> = self.table.lock().keys().cloned().collect();
        for name in names {
            if let Err(error) = self.bring_down(&name).await {
                tracing::error!(name, %error, "stopping a NAS server");
            }
        }
    }

    fn network(&self, name: &str, stored: &Stored) -> Result<Network> {
        Ok(Network {
            namespace: self.namespace(name),
            address: stored.address.parse()?,
            gateway: stored.gateway,
            interface: stored.interface.clone(),
        })
    }

    fn namespace(&self, name: &str) -> String {
        format!("ashlar-{}-{name}", self.pool)
    }

    /// Starts a server; what keeps it from serving is remembered.
    pub(super) async fn bring_up(&self, app: &Appliance, name: &str) {
        let entry = match self.up(app, name).await {
            Ok(running) => Entry::Up(Arc::new(running)),
            Err(error) => {
                tracing::error!(name, %error, "a NAS server cannot serve");
                Entry::Failed(error.to_string())
            }
        };
        self.table.lock().insert(name.to_owned(), entry);
    }

    async fn up(&self, app: &Appliance, name: &str) -> Result<Running> {
        if self.stopped.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Unavailable, "the daemon is stopping"));
        }
        let stored = stored(&*app.engine).remove(name).ok_or_else(|| missing(name))?;
        if !rustix::process::geteuid().is_root() {
            return Err(Error::new(ErrorKind::Unsupported, "NAS servers need the daemon to run as root"));
        }
        let state = app.nas.path(&state_of(name)).ok_or_else(|| {
            Error::new(ErrorKind::Unavailable, format!("its file system '{}' is not mounted", state_of(name)))
        })?;
        let nfs = self.nfs(app, name, &stored);
        let network = self.network(name, &stored)?;
        let resolver = resolver(&stored.dns);
        let (dir, own_state, file_systems) = (self.run.join(name), self.state.clone(), self.file_systems.clone());
        let (name, prefix) = (name.to_owned(), format!("nas-{name}"));
        blocking(move || {
            for directory in STATE_DIRECTORIES {
                make_dir(&state.join(directory), 0o700)?;
            }
            // Processes of an earlier daemon may still have it as theirs.
            network::down(&network.namespace)?;
            let run = dir.join("run");
            clear(&run)?;
            make_dir(&run, 0o755)?;
            write(&dir.join(NAMESPACE), network.namespace.as_bytes())?;
            write(&run.join(HOSTS), hosts(&name, &nfs.address).as_bytes())?;
            write(&run.join(RESOLVER), resolver.as_bytes())?;
            let library = absolute(&own_state.join(LIBRARY))?;
            write(&library, nas::server::FSID_LIBRARY)?;
            network.up()?;
            let file_systems = absolute(&file_systems)?;
            let enter = Enter {
                name,
                namespace: network.namespace.clone(),
                run: run.clone(),
                state: state.join(STATUS_MONITOR),
                file_systems: file_systems.clone(),
                preload: None,
                parent: std::process::id(),
            };
            let served = Arc::new(Served { nfs: Mutex::new(nfs), run, state, file_systems });
            match Supervisor::start(enter, &library, served.programs(), &own_state.join("log"), &prefix) {
                Ok(supervisor) => Ok(Running { supervisor, served }),
                Err(error) => {
                    let _ = network::down(&network.namespace);
                    Err(error)
                }
            }
        })
        .await
    }

    /// Stops a server and takes its address away. What keeps the address is remembered in its directory.
    pub(super) async fn bring_down(&self, name: &str) -> Result<()> {
        let entry = self.table.lock().remove(name);
        let (namespace, run, dir) = (self.namespace(name), self.run.clone(), self.run.join(name));
        let down = blocking(move || {
            if let Some(Entry::Up(running)) = entry {
                running.supervisor.stop();
            }
            network::down(&namespace)?;
            // Only what it made itself, and nothing that is mounted.
            clear(&dir.join("run"))?;
            let _ = std::fs::remove_file(dir.join(NAMESPACE));
            let _ = std::fs::remove_dir(&dir);
            let _ = std::fs::remove_dir(&run);
            Ok(())
        });
        down.await.context(format_args!("stopping NAS server '{name}'"))
    }

    fn nfs(&self, app: &Appliance, name: &str, stored: &Stored) -> Nfs {
        Nfs {
            identity: format!("{}-{name}", self.pool),
            address: stored.address.split('/').next().unwrap_or_default().to_owned(),
            state: state_of(name),
            version_3: stored.nfs.contains(&3),
            version_4: stored.nfs.contains(&4),
            exports: exports::of_server(&*app.engine, name).into_iter().collect(),
        }
    }

    /// Has a server export what it is to export by now. When that cannot be said to it, it starts anew.
    pub(super) async fn apply(&self, app: &Appliance, name: &str) {
        let Some(stored) = stored(&*app.engine).remove(name) else { return };
        let nfs = self.nfs(app, name, &stored);
        let entry = self.table.lock().get(name).cloned();
        let Some(Entry::Up(running)) = entry else { return };
        let told = blocking(move || {
            let served = &running.served;
            // One that is mounted later is not seen on a machine that does not share its mounts.
            let seen =
                |fs: &str| running.supervisor.sees_mount(NFS, &served.file_systems.join(fs), &format!("{RUN}/fs/{fs}"));
            let all_seen = nfs.exports.iter().all(|(_, export)| seen(&export.file_system));
            *served.nfs.lock() = nfs;
            if all_seen {
                served.write(true)?;
                running.supervisor.reload(NFS);
            }
            Ok(all_seen)
        });
        if !told.await.unwrap_or(false) {
            self.again(app, name).await;
        }
    }

    pub(super) async fn again(&self, app: &Appliance, name: &str) {
        match self.bring_down(name).await {
            Ok(()) => self.bring_up(app, name).await,
            Err(error) => {
                tracing::error!(name, %error, "a NAS server cannot be started again");
                self.table.lock().insert(name.to_owned(), Entry::Failed(error.to_string()));
            }
        }
    }

    /// Stops a server and starts it again. Clients wait meanwhile.
    pub async fn restart(&self, app: &Appliance, name: &str) -> Result<()> {
        let _turn = self.turn.lock().await;
        self.ready(app, name)?;
        self.again(app, name).await;
        match self.table.lock().get(name) {
            Some(Entry::Failed(why)) => Err(Error::new(ErrorKind::Unavailable, format!("NAS server '{name}': {why}"))),
            _ => Ok(()),
        }
    }

    /// A server that is neither half made nor half deleted.
    pub(super) fn ready(&self, app: &Appliance, name: &str) -> Result<Stored> {
        let stored = stored(&*app.engine).remove(name).ok_or_else(|| missing(name))?;
        match stored.state {
            StoredState::Ready => Ok(stored),
            _ => Err(Error::new(ErrorKind::Unavailable, format!("NAS server '{name}' is half made or half deleted"))),
        }
    }

    /// Makes a server and starts it.
    pub async fn create(&self, app: &Appliance, wanted: &NasServerCreate) -> Result<()> {
        let name = &wanted.name;
        check_name("NAS server", name)?;
        if name.len() > NAME_LEN_MAX {
            return Err(Error::invalid(format!("the name of a NAS server has at most {NAME_LEN_MAX} characters")));
        }
        if !rustix::process::geteuid().is_root() {
            return Err(Error::new(ErrorKind::Unsupported, "NAS servers need the daemon to run as root"));
        }
        let _turn = self.turn.lock().await;
        let new = self.check(app, wanted).await?;
        app.engine.manage(vec![put(name, &new)?]).await?;
        let made = async {
            let state = NewFileSystem {
                name: state_of(name),
                size: STATE_SIZE,
                server: Some(name.clone()),
                internal: true,
                policy: None,
            };
            app.nas.make_new(app, &state).await?;
            let running = self.up(app, name).await?;
            let ready = app.engine.manage(vec![put(name, &Stored { state: StoredState::Ready, ..new })?]).await;
            if let Err(error) = ready {
                let stopped = blocking(move || {
                    running.supervisor.stop();
                    Ok(())
                });
                let _ = stopped.await;
                return Err(error);
            }
            Ok(running)
        };
        match made.await {
            Ok(running) => {
                self.table.lock().insert(name.clone(), Entry::Up(Arc::new(running)));
                Ok(())
            }
            Err(error) => {
                if let Err(error) = self.erase(app, name).await {
                    tracing::error!(name, %error, "undoing a NAS server that could not be made");
                }
                Err(error.context(format!("making NAS server '{name}'")))
            }
        }
    }

    /// What is to be remembered of a new server, if it can be.
    async fn check(&self, app: &Appliance, wanted: &NasServerCreate) -> Result<Stored> {
        let all = stored(&*app.engine);
        if all.contains_key(&wanted.name) {
            return Err(Error::new(ErrorKind::AlreadyExists, format!("NAS server '{}' exists already", wanted.name)));
        }
        // Before anything is remembered: what is undone later is only what it made.
        let state = state_of(&wanted.name);
        if super::stored(&*app.engine).contains_key(&state) {
            let text =
                format!("file system '{state}' exists already: NAS server '{}' would need that name", wanted.name);
            return Err(Error::new(ErrorKind::AlreadyExists, text));
        }
        let address: Address = wanted.address.parse()?;
        let same = |stored: &Stored| stored.address.parse::<Address>().is_ok_and(|a| a.ip == address.ip);
        if let Some((other, _)) = all.iter().find(|(_, stored)| same(stored)) {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("NAS server '{other}' has address {}", address.ip),
            ));
        }
        if blocking(move || network::is_local(address.ip)).await? {
            let text = format!("{} is an address of this machine; a NAS server needs one of its own", address.ip);
            return Err(Error::new(ErrorKind::AlreadyExists, text));
        }
        let gateway = match wanted.gateway.as_deref().map(str::parse::<IpAddr>) {
            None => None,
            Some(Ok(gateway)) if gateway.is_ipv4() == address.ip.is_ipv4() && wanted.interface.is_some() => {
                Some(gateway)
            }
            Some(Ok(_)) if wanted.interface.is_none() => {
                return Err(Error::invalid("without an interface this machine is the gateway: leave the gateway out"));
            }
            Some(_) => {
                let given = wanted.gateway.as_deref().unwrap_or_default();
                return Err(Error::invalid(format!(
                    "'{given}' cannot be the gateway of {address}: an address of the same kind"
                )));
            }
        };
        if let Some(interface) = &wanted.interface
            && !network::has_interface(interface)
        {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("this machine has no interface '{interface}' (ip link)"),
            ));
        }
        let dns: std::result::Result<Vec<IpAddr>, _> = wanted.dns.iter().map(|server| server.parse()).collect();
        let dns =
            dns.map_err(|_| Error::invalid(format!("'{}' are no addresses of name servers", wanted.dns.join(","))))?;
        let nfs: BTreeSet<u8> = wanted.nfs.iter().copied().collect();
        if nfs.is_empty() || nfs.iter().any(|version| !matches!(version, 3 | 4)) {
            return Err(Error::invalid("NFS has the versions 3 and 4: name one or both"));
        }
        Ok(Stored {
            state: StoredState::Making,
            created_s: now_s(),
            address: address.to_string(),
            gateway,
            interface: wanted.interface.clone(),
            dns,
            nfs,
            next_export: 0,
        })
    }

    /// Takes everything away there is of a server that serves nothing.
    async fn erase(&self, app: &Appliance, name: &str) -> Result<()> {
        self.bring_down(name).await?;
        app.nas.delete_state(app, name).await?;
        app.engine.manage(vec![take(name)]).await?;
        for program in ["portmap", "statd", NFS, "notify"] {
            for end in ["log", "log.old"] {
                let _ = std::fs::remove_file(self.state.join("log").join(format!("nas-{name}-{program}.{end}")));
            }
        }
        Ok(())
    }

    /// Deletes a server that has no file systems any more.
    pub async fn delete(&self, app: &Appliance, name: &str) -> Result<()> {
        let _turn = self.turn.lock().await;
        let known = stored(&*app.engine).remove(name).ok_or_else(|| missing(name))?;
        let exports = exports::of_server(&*app.engine, name);
        if let Some((path, _)) = exports.first_key_value() {
            let text = format!(
                "NAS server '{name}' exports {path}: delete its exports first (ashlar nas export delete {name}:{path})"
            );
            return Err(Error::new(ErrorKind::Busy, text));
        }
        if let Some(fs) = super::of_server(&*app.engine, name).first() {
            let text = format!(
                "file system '{fs}' belongs to NAS server '{name}': delete it, or let it go (ashlar nas fs assign {fs} --none)"
            );
            return Err(Error::new(ErrorKind::Busy, text));
        }
        let snapshots = app.engine.snapshots(None).await?;
        let of_state =
            |snapshot: &&blockdev::report::SnapshotInfo| super::volumes_of(&state_of(name)).contains(&snapshot.volume);
        if let Some(secure) = snapshots.iter().filter(of_state).find(|snapshot| snapshot.secure) {
            let text = format!("'{}', of its state, is secure and cannot be deleted before it expires", secure.name);
            return Err(Error::new(ErrorKind::Busy, text));
        }
        app.engine.manage(vec![put(name, &Stored { state: StoredState::Deleting, ..known })?]).await?;
        let gone = self.erase(app, name).await;
        gone.context(format!("deleting NAS server '{name}'; it is finished at the next start at the latest"))
    }

    /// All servers, by name.
    pub fn all(&self, app: &Appliance) -> Vec<NasServer> {
        let entries = self.table.lock().clone();
        stored(&*app.engine).into_iter().map(|(name, stored)| self.describe(app, name, stored, &entries)).collect()
    }

    /// One server.
    pub fn one(&self, app: &Appliance, name: &str) -> Result<NasServer> {
        self.all(app).into_iter().find(|server| server.name == name).ok_or_else(|| missing(name))
    }

    fn describe(&self, app: &Appliance, name: String, stored: Stored, entries: &BTreeMap<String, Entry>) -> NasServer {
        let (services, error) = match entries.get(&name) {
            Some(Entry::Up(running)) => (running.supervisor.services(), None),
            Some(Entry::Failed(why)) => (Vec::new(), Some(why.clone())),
            None => (Vec::new(), None),
        };
        let state = match stored.state {
            StoredState::Making => ServerState::Making,
            StoredState::Deleting => ServerState::Deleting,
            StoredState::Ready if error.is_some() => ServerState::Failed,
            StoredState::Ready if !services.is_empty() && services.iter().all(is_well) => ServerState::Running,
            StoredState::Ready => ServerState::Starting,
        };
        NasServer {
            state,
            address: stored.address,
            gateway: stored.gateway.map(|gateway| gateway.to_string()),
            interface: stored.interface,
            dns: stored.dns.iter().map(IpAddr::to_string).collect(),
            nfs: stored.nfs.into_iter().collect(),
            file_systems: super::of_server(&*app.engine, &name),
            state_file_system: state_of(&name),
            exports: exports::of_server(&*app.engine, &name).len(),
            namespace: self.namespace(&name),
            services: services.iter().map(describe_service).collect(),
            created_s: stored.created_s,
            error,
            name,
        }
    }

    /// What is wrong with servers.
    pub fn alerts(&self) -> Vec<Alert> {
        let mut alerts = Vec::new();
        for (name, entry) in self.table.lock().clone() {
            let mut alert = |severity: &str, code: &str, message: String| {
                let (severity, code) = (severity.to_owned(), code.to_owned());
                alerts.push(Alert { severity, code, object: format!("nas/{name}"), message });
            };
            match entry {
                Entry::Failed(why) => {
                    let text = format!(
                        "NAS server '{name}' cannot serve: {why}. Start it again: ashlar nas server restart {name}"
                    );
                    alert("critical", "nas.server", text);
                }
                Entry::Up(running) => {
                    let down = |s: &Service| !is_well(s) && s.restarts > 0;
                    for service in running.supervisor.services().into_iter().filter(down) {
                        let why = service.error.unwrap_or_default();
                        let (what, log) = (service.name, service.log.display());
                        let text = format!(
                            "{what} of NAS server '{name}' is started again and again: {why}. Its log is {log}"
                        );
                        alert("critical", "nas.service", text);
                    }
                }
            }
        }
        alerts
    }
}

/// Names that need no name server. The address is a name, too, and the first: by it the status monitor makes itself known, as clients know the server by it.
fn hosts(name: &str, address: &str) -> String {
    format!("127.0.0.1 localhost\n::1 localhost\n{address} {address} {name}\n")
}

/// The configuration of a resolver that gives up soon.
fn resolver(servers: &[IpAddr]) -> String {
    let mut text = String::from("options timeout:1 attempts:1\n");
    for server in servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    text
}

fn is_well(service: &Service) -> bool {
    matches!(service.state, State::Running | State::Done)
}

fn describe_service(service: &Service) -> ServerService {
    ServerService {
        name: service.name.to_owned(),
        state: match service.state {
            State::Starting => "starting",
            State::Running => "running",
            State::Done => "done",
            State::Stopped => "stopped",
        }
        .into(),
        pid: service.pid,
        restarts: service.restarts,
        since_s: service.since_s,
        log: service.log.display().to_string(),
        error: service.error.clone(),
    }
}

/// Makes a directory, with this mode whatever the daemon's own would be.
fn make_dir(path: &Path, mode: u32) -> Result<()> {
    let made =
        std::fs::create_dir_all(path).and_then(|()| std::fs::set_permissions(path, Permissions::from_mode(mode)));
    made.map_err(|e| Error::io(format!("making {}: {e}", path.display())))
}

fn absolute(path: &Path) -> Result<PathBuf> {
    let parent = path.parent().unwrap_or(Path::new("/")).canonicalize();
    let parent = parent.map_err(|e| Error::io(format!("{}: {e}", path.display())))?;
    Ok(parent.join(path.file_name().unwrap_or_default()))
}

/// Removes a directory with what processes left in it. Where something is mounted below it, all of it stays: that may be somebody's data.
fn clear(dir: &Path) -> Result<()> {
    let failed = |e: std::io::Error| Error::io(format!("removing {}: {e}", dir.display()));
    match dir.symlink_metadata() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Ok(meta) if !meta.is_dir() => return Err(Error::io(format!("{} is no directory", dir.display()))),
        meta => meta.map_err(failed)?,
    };
    let real = dir.canonicalize().map_err(failed)?;
    let mounts = nas::server::mounts(&std::fs::read("/proc/self/mountinfo").map_err(failed)?);
    if mounts.iter().any(|(_, at)| at.starts_with(&real)) {
        return Err(Error::new(ErrorKind::Busy, format!("something is mounted below {}", dir.display())));
    }
    std::fs::remove_dir_all(&real).map_err(failed)
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    // Whoever reads it at this moment reads all of the one or of the other.
    let new = path.with_extension("new");
    let written = std::fs::write(&new, bytes)
        .and_then(|()| std::fs::set_permissions(&new, Permissions::from_mode(0o644)))
        .and_then(|()| std::fs::rename(&new, path));
    written.map_err(|e| Error::io(format!("writing {}: {e}", path.display())))
}

/// Takes away the namespaces of servers whose daemon is gone, for a laboratory that ends.
pub fn clear_left_over(run: &Path) -> Result<()> {
    let Ok(servers) = std::fs::read_dir(run) else { return Ok(()) };
    for server in servers.flatten() {
        let dir = server.path();
        let Ok(namespace) = std::fs::read_to_string(dir.join(NAMESPACE)) else { continue };
        let ours = namespace.starts_with("ashlar-") && !namespace.contains('/');
        if ours && namespace.ends_with(&format!("-{}", server.file_name().display())) {
            network::down(&namespace)?;
            clear(&dir)?;
        }
    }
    let _ = std::fs::remove_dir(run);
    Ok(())
}
