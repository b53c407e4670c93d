//! NFS by NFS-Ganesha: its configuration, and the programs that serve it.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use blockdev::error::{Error, Result};
use parking_lot::Mutex;

use super::enter::{FILE_SYSTEMS, RUN};
use super::exports::{Access, Export, Hosts};
use super::mounts;
use super::supervise::{Before, Program};

/// Where NFS, its mount protocol, its lock manager and its status monitor listen.
const NFS_PORT: u16 = 2049;
const MOUNT_PORT: u16 = 20048;
const LOCK_PORT: u16 = 32803;
const STATUS_PORT: u16 = 32765;
const PORTMAP_PORT: u16 = 111;

/// How long clients have to claim again what they held when the server starts, in seconds. They notice a restart within a lease.
const GRACE_S: u32 = 9;
const LEASE_S: u32 = 8;

/// Attributes that Ganesha has in mind are asked for again after so many seconds: others change files, too.
const ATTRIBUTES_S: u32 = 1;

/// Longest read and write, in bytes. Ganesha's own limit is 64 times that, which some clients take and then fail.
const TRANSFER: u32 = 1 << 20;

/// Versions 4.x. Not 4.2: Ganesha 5.9 answers its READ_PLUS of a hole with a hole of length 0 at 0, which is an I/O error for Linux's client.
const MINOR_VERSIONS: &str = "0, 1";

/// Name of the program that serves NFS.
pub const NFS: &str = "nfs";

/// Its configuration file, in the directory of the server's processes.
pub const CONFIGURATION: &str = "ganesha.conf";

/// Directories on the file system that holds the server's state.
pub const STATE_DIRECTORIES: [&str; 5] = ["nfs", "nfs/v4recov", STATUS_MONITOR, "nsm/sm", "nsm/sm.bak"];

/// The one of the status monitor.
pub const STATUS_MONITOR: &str = "nsm";

/// What a server serves by NFS.
#[derive(Clone, Debug, Default)]
pub struct Nfs {
    /// What clients know the server by, on whatever node.
    pub identity: String,
    /// What clients reach the server by.
    pub address: String,
    /// File system that holds the server's state.
    pub state: String,
    /// Version 3, with locks.
    pub version_3: bool,
    /// Versions 4.0 and 4.1.
    pub version_4: bool,
    /// The exports, and by which path clients mount them.
    pub exports: Vec<(String, Export)>,
}

impl Nfs {
    /// Whether the state of a server, below `root`, names clients that held something.
    fn has_clients(root: &Path) -> bool {
        let children =
            |path: PathBuf| std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
        let of_version_4 = || children(root.join("nfs/v4recov")).any(|start| children(start).next().is_some());
        let of_version_3 = |list: &str| children(root.join("nsm").join(list)).next().is_some();
        of_version_4() || of_version_3("sm") || of_version_3("sm.bak")
    }

    /// The programs, in the order in which they are started. Once NFS is there, clients of version 3 are told of the restart and claim their locks again;
    /// that NFS has them again is for the status monitor to remember, which is therefore there before.
    fn programs(&self, before: Before) -> Vec<Program> {
        let program = |name, path: &str, package, arguments: &[&str], port| Program {
            name,
            path: path.into(),
            package,
            arguments: arguments.iter().map(|a| (*a).to_owned()).collect(),
            preload: false,
            port,
            before: None,
        };
        let (configuration, pid) = (format!("{RUN}/{CONFIGURATION}"), format!("{RUN}/ganesha.pid"));
        let arguments = ["-F", "-f", &configuration, "-L", "STDERR", "-p", &pid];
        let ganesha = "/usr/bin/ganesha.nfsd";
        let mut nfs = program(NFS, ganesha, "nfs-ganesha and nfs-ganesha-vfs", &arguments, Some(NFS_PORT));
        (nfs.preload, nfs.before) = (true, Some(before));
        if !self.version_3 {
            return vec![nfs];
        }
        let port = STATUS_PORT.to_string();
        let arguments = ["--foreground", "--no-notify", "--port", &port, "--name", &self.address];
        vec![
            program("portmap", "/usr/sbin/rpcbind", "rpcbind", &["-f"], Some(PORTMAP_PORT)),
            program("statd", "/usr/sbin/rpc.statd", "nfs-common", &arguments, Some(STATUS_PORT)),
            nfs,
            program("notify", "/usr/sbin/sm-notify", "nfs-common", &["-d", "-f", "-v", &self.address], None),
        ]
    }

    /// Ganesha's configuration.
    fn configuration(&self, grace: bool) -> String {
        let mut text = String::from("# Written by the daemon, anew for every change.\n");
        let versions = match (self.version_3, self.version_4) {
            (true, true) => "3, 4",
            (true, false) => "3",
            (false, _) => "4",
        };
        let Self { identity, state, .. } = self;
        let _ = write!(
            text,
            "NFS_CORE_PARAM {{\n  Protocols = {versions};\n  Enable_UDP = false;\n  Enable_NLM = {v3};\n  Enable_RQUOTA = false;\n  \
             NFS_Port = {NFS_PORT};\n  MNT_Port = {MOUNT_PORT};\n  NLM_Port = {LOCK_PORT};\n  \
             mount_path_pseudo = true;\n  Plugins_Dir = \"{plugins}\";\n}}\n\
             NFS_KRB5 {{ Active_krb5 = false; }}\n\
             NFSv4 {{\n  Grace_Period = {grace};\n  Lease_Lifetime = {LEASE_S};\n  RecoveryBackend = fs_ng;\n  \
             RecoveryRoot = \"{FILE_SYSTEMS}/{state}/nfs\";\n  Minor_Versions = {MINOR_VERSIONS};\n  Only_Numeric_Owners = true;\n  Delegations = false;\n  \
             Server_Scope = \"{identity}\";\n  Server_Owner = \"{identity}\";\n}}\n\
             EXPORT_DEFAULTS {{ SecType = sys; Attr_Expiration_Time = {ATTRIBUTES_S}; }}\n\
             LOG {{ Default_Log_Level = EVENT; }}\n",
            v3 = self.version_3,
            grace = if grace { GRACE_S } else { 0 },
            plugins = plugins().display(),
        );
        for (path, export) in &self.exports {
            export_block(&mut text, path, export);
        }
        text
    }
}

/// What a server serves, and where its configuration is written anew before each start.
#[derive(Debug)]
pub struct Served {
    /// What it serves by now.
    pub nfs: Mutex<Nfs>,
    /// The directory of its processes.
    pub run: PathBuf,
    /// Its state.
    pub state: PathBuf,
    /// Where file systems are mounted.
    pub file_systems: PathBuf,
}

impl Served {
    /// The programs, in the order in which they are started.
    pub fn programs(self: &Arc<Self>) -> Vec<Program> {
        let this = self.clone();
        self.nfs.lock().programs(Before(Arc::new(move || this.before_start())))
    }

    /// Who is to be told of a start is put aside, since Ganesha has the status monitor forget them; then the configuration is written.
    fn before_start(&self) -> Result<()> {
        let grace = Nfs::has_clients(&self.state);
        let (from, to) = (self.state.join("nsm/sm"), self.state.join("nsm/sm.bak"));
        let failed = |e: std::io::Error| Error::io(format!("{}: {e}", from.display()));
        for file in std::fs::read_dir(&from).map_err(failed)? {
            let file = file.map_err(failed)?;
            std::fs::rename(file.path(), to.join(file.file_name())).map_err(failed)?;
        }
        self.write(grace)?;
        // Clients see by the second of a start that the server was restarted, and what they have to write again. No two starts are in one second if
        // each waits for a new one.
        std::thread::sleep(until_next_second(
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default(),
        ));
        Ok(())
    }

    /// Writes the configuration. Exports of file systems that are not mounted are left out: in their place there is a directory of something else.
    pub fn write(&self, grace: bool) -> Result<()> {
        let text = std::fs::read("/proc/self/mountinfo").map_err(|e| Error::io(format!("reading mountinfo: {e}")))?;
        let mounts = mounts(&text);
        let mounted = |fs: &str| mounts.iter().any(|(_, at)| *at == self.file_systems.join(fs));
        let mut nfs = self.nfs.lock().clone();
        nfs.exports.retain(|(_, export)| mounted(&export.file_system));
        let path = self.run.join(CONFIGURATION);
        // Whoever reads it at this moment reads all of the one or of the other.
        let new = path.with_extension("new");
        let written = std::fs::write(&new, nfs.configuration(grace)).and_then(|()| std::fs::rename(&new, &path));
        written.map_err(|e| Error::io(format!("writing {}: {e}", path.display())))
    }
}

/// How long it is from a time until a new second has begun.
fn until_next_second(now: Duration) -> Duration {
    Duration::from_secs(now.as_secs() + 1) - now
}

/// Where Debian has Ganesha's modules.
fn plugins() -> PathBuf {
    let usual = format!("/usr/lib/{}-linux-gnu/ganesha", std::env::consts::ARCH);
    if Path::new(&usual).exists() { usual.into() } else { "/usr/lib/ganesha".into() }
}

fn export_block(text: &mut String, path: &str, export: &Export) {
    let Export { id, file_system, directory, default_access, hosts, anonymous_uid, anonymous_gid } = export;
    let slash = if directory.is_empty() { "" } else { "/" };
    let _ = write!(
        text,
        "EXPORT {{\n  Export_Id = {id};\n  Path = \"{FILE_SYSTEMS}/{file_system}{slash}{directory}\";\n  Pseudo = \"{path}\";\n  \
         {access}\n  Anonymous_uid = {anonymous_uid};\n  Anonymous_gid = {anonymous_gid};\n  \
         MaxRead = {TRANSFER};\n  MaxWrite = {TRANSFER};\n  PrefRead = {TRANSFER};\n  PrefWrite = {TRANSFER};\n  FSAL {{ Name = VFS; }}\n",
        access = access(*default_access),
    );
    for Hosts { hosts, access: may } in hosts {
        let _ = writeln!(text, "  CLIENT {{ Clients = {}; {} }}", hosts.join(", "), access(*may));
    }
    text.push_str("}\n");
}

fn access(access: Access) -> &'static str {
    match access {
        Access::None => "Access_Type = None;",
        Access::ReadOnly => "Access_Type = RO; Squash = root_squash;",
        Access::ReadWrite => "Access_Type = RW; Squash = root_squash;",
        Access::ReadOnlyRoot => "Access_Type = RO; Squash = no_root_squash;",
        Access::Root => "Access_Type = RW; Squash = no_root_squash;",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_starts_are_in_one_second() {
        for now in [0, 1, 999_999_999, 1_000_000_000, 1_796_096_241_999_999_999] {
            let now = Duration::from_nanos(now);
            let wait = until_next_second(now);
            assert!(wait <= Duration::from_secs(1) && (now + wait).as_secs() == now.as_secs() + 1, "{now:?} {wait:?}");
        }
    }

    #[test]
    fn a_configuration_says_what_is_exported_to_whom() {
        let export = Export {
            id: 7,
            file_system: "home".into(),
            directory: "team a".into(),
            default_access: Access::None,
            hosts: vec![Hosts { hosts: vec!["10.0.0.0/8".into(), "*.example.com".into()], access: Access::Root }],
            anonymous_uid: 65534,
            anonymous_gid: 65534,
        };
        let mut nfs = Nfs {
            identity: "pool-files".into(),
            address: "10.0.0.5".into(),
            state: "files.nas".into(),
            version_3: true,
            version_4: true,
            exports: vec![("/home".into(), export)],
        };
        let text = nfs.configuration(true);
        for part in [
            "Protocols = 3, 4;",
            "Path = \"/run/fs/home/team a\";",
            "Pseudo = \"/home\";",
            "Clients = 10.0.0.0/8, *.example.com; Access_Type = RW; Squash = no_root_squash;",
            "Grace_Period = 9;",
            "RecoveryRoot = \"/run/fs/files.nas/nfs\";",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert_eq!(text.matches('{').count(), text.matches('}').count(), "{text}");
        assert_eq!(
            nfs.programs(Before(Arc::new(|| Ok(())))).iter().map(|p| p.name).collect::<Vec<_>>(),
            ["portmap", "statd", "nfs", "notify"]
        );
        nfs.version_3 = false;
        assert_eq!(nfs.programs(Before(Arc::new(|| Ok(())))).iter().map(|p| p.name).collect::<Vec<_>>(), ["nfs"]);
    }
}
