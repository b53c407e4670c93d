//! What the process of a protocol server does before it becomes one: it enters the server's network namespace, and sees a `/run` of the server's
//! own, in which the file systems are, too. So servers on one machine do not meet in sockets and pid files that have fixed names.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use blockdev::error::{Context, Error, Result};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_bind_recursive, mount_change};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use super::network;

/// The directory of a server's processes, as they see it.
pub const RUN: &str = "/run";

/// Where they see the file systems.
pub const FILE_SYSTEMS: &str = "/run/fs";

/// Files in [`RUN`] that stand for those in `/etc`: the machine's name servers may be out of a server's reach, and waiting for them holds clients up.
pub const RESOLVER: &str = "resolv.conf";
/// Who the server is to itself.
pub const HOSTS: &str = "hosts";

/// Where the status monitor keeps whom to tell of a restart: part of what helps it ignores its options.
const STATUS_MONITOR: &str = "/var/lib/nfs";

/// How a process enters.
#[derive(Clone, Debug)]
pub struct Enter {
    /// Name of the NAS server: the name of the host, for its processes.
    pub name: String,
    /// Network namespace, for `ip netns`.
    pub namespace: String,
    /// What becomes [`RUN`].
    pub run: PathBuf,
    /// What becomes `/var/lib/nfs`, if there is one.
    pub state: PathBuf,
    /// What becomes [`FILE_SYSTEMS`].
    pub file_systems: PathBuf,
    /// Library to be loaded into the program.
    pub preload: Option<PathBuf>,
    /// Process that starts it. When its thread ends, the program is killed: what it serves is gone.
    pub parent: u32,
}

impl Enter {
    /// Enters, and becomes `program`. Comes back only with what went wrong.
    pub fn exec(&self, program: &OsStr, arguments: &[OsString]) -> Error {
        if let Err(error) = self.enter() {
            return error;
        }
        let mut command = Command::new(program);
        command.args(arguments).current_dir("/");
        if let Some(library) = &self.preload {
            command.env("LD_PRELOAD", library);
        }
        Error::io(format!("starting {}: {}", program.display(), command.exec()))
    }

    fn enter(&self) -> Result<()> {
        set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed("asking for the end of the parent"))?;
        if getppid().map(Pid::as_raw_nonzero).map(std::num::NonZero::get) != i32::try_from(self.parent).ok() {
            return Err(Error::io("the process that started this one is gone"));
        }
        // What it serves decides itself who may do what; and it is not among the last that may be killed for memory, as the daemon is.
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        let _ = std::fs::write("/proc/self/oom_score_adj", "0");
        let path = network::path_of(&self.namespace);
        let namespace = std::fs::File::open(&path).map_err(|e| Error::io(format!("{}: {e}", path.display())))?;
        rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(failed("entering the network namespace"))?;
        self.mount().context("making a /run of its own")
    }

    fn mount(&self) -> Result<()> {
        // SAFETY: no memory, stack or file descriptor table is unshared.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::NEWUTS) }
            .map_err(failed("namespaces for mounts and the host's name"))?;
        rustix::system::sethostname(self.name.as_bytes()).map_err(failed("the host's name"))?;
        // What is mounted later outside is seen here, if the machine shares its mounts; what is mounted here, not there.
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC).map_err(failed("/"))?;
        let inside = self.run.join(Path::new(FILE_SYSTEMS).strip_prefix(RUN).unwrap_or(Path::new("fs")));
        for directory in [&inside, &self.run.join("rpcbind")] {
            std::fs::create_dir_all(directory).map_err(|e| Error::io(format!("{}: {e}", directory.display())))?;
        }
        mount_bind_recursive(&self.file_systems, &inside).map_err(failed("the file systems"))?;
        if Path::new(STATUS_MONITOR).exists() {
            mount_bind(&self.state, STATUS_MONITOR).map_err(failed(STATUS_MONITOR))?;
        }
        for file in [RESOLVER, HOSTS] {
            self.replace(file)?;
        }
        mount_bind_recursive(&self.run, RUN).map_err(failed(RUN))
    }
}

impl Enter {
    /// Puts the server's own file where the machine has its in `/etc`, which may lead into the machine's `/run`.
    fn replace(&self, file: &str) -> Result<()> {
        let own = self.run.join(file);
        let Ok(machines) = Path::new("/etc").join(file).canonicalize() else { return Ok(()) };
        let Ok(in_run) = machines.strip_prefix(RUN) else {
            return mount_bind(&own, &machines).map_err(failed("a file of its own in /etc"));
        };
        let copy = self.run.join(in_run);
        let parent = copy.parent().map_or(Ok(()), std::fs::create_dir_all);
        parent
            .and_then(|()| std::fs::copy(&own, &copy))
            .map(drop)
            .map_err(|e| Error::io(format!("{}: {e}", copy.display())))
    }
}

fn failed(what: &str) -> impl Fn(rustix::io::Errno) -> Error {
    move |errno| Error::io(format!("{what}: {errno}"))
}
