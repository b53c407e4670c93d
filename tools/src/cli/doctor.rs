//! `ashlar doctor`: what daemons that ended badly left on this machine, and what to do about it. Works without a daemon.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use blockdev::carry::SharedMemory;
use blockdev::error::{Error, Result};
use blockdev::frontend::ublk::{self, State};
use blockdev::frontend::{fuse, loopdev};
use serde::Serialize;

use super::Global;
use crate::client::socket_in;
use crate::daemon::engine::CARRY;
use crate::exit::{CommandResult, Exit, Failure};
use crate::output::{Align, Table, show};

/// Where devices have the names of their volumes.
const NAMES: &str = "/dev/ashlar";

/// What `ashlar doctor` takes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Looks for block devices, loop devices, mounts, names and sockets that no daemon stands behind. Exit code 0: nothing found, or all of it put right; 1: something is left.\n\nExamples:\n  ashlar doctor\n  ashlar doctor --fix              # clears away what nobody uses\n  ashlar doctor --fix --force      # also ublk devices in use, and writes that wait for a daemon: both are lost to hosts"
)]
pub struct Arguments {
    /// Clear away what is found and not in use
    #[arg(long)]
    fix: bool,
    /// With --fix: also ublk devices that are in use, and writes that a killed daemon left to the next one. I/O that waits fails, and what was not flushed is
    /// lost, as on a drive that is torn out
    #[arg(long, requires = "fix")]
    force: bool,
}

/// One thing that was left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    /// The device, mount, link or socket.
    object: String,
    /// What is wrong with it.
    problem: String,
    /// What to do.
    action: String,
    /// What `--fix` did: `cleared`, or why it could not.
    outcome: Option<String>,
}

/// How something is put right.
enum Remedy {
    /// By somebody who is let in.
    Look,
    Ublk(u32),
    Loop(PathBuf),
    Unmount(PathBuf),
    Remove(PathBuf),
    /// Holds what nobody else has.
    GiveUp(PathBuf),
}

pub fn run(arguments: &Arguments, global: &Global) -> CommandResult<Exit> {
    let mut all = Vec::new();
    for (mut finding, remedy) in look(global.dir.as_deref())? {
        if arguments.fix {
            finding.outcome = Some(match put_right(&remedy, arguments.force) {
                Ok(()) => "cleared".into(),
                Err(error) => error.to_string(),
            });
        }
        all.push(finding);
    }
    let left = all.iter().any(|finding| finding.outcome.as_deref() != Some("cleared"));
    show(global.output, &all, |all| table(all))?;
    Ok(if left { Exit::Failure } else { Exit::Ok })
}

fn look(dir: Option<&Path>) -> CommandResult<Vec<(Finding, Remedy)>> {
    let failed = |e: Error| Failure::other(format!("looking for what was left: {e}"));
    let mut all = Vec::new();
    let mut note = |object: String, problem: &str, action: &str, remedy: Remedy| {
        let finding = Finding { object, problem: problem.into(), action: action.into(), outcome: None };
        all.push((finding, remedy));
    };
    // What is left elsewhere is told all the same.
    let devices = ublk::existing().unwrap_or_else(|error| {
        let problem = format!("ublk devices are there that cannot be looked at: {error}");
        note("/sys/class/ublk-char".into(), &problem, "run it as root, with the ublk_drv module loaded", Remedy::Look);
        Vec::new()
    });
    for found in devices {
        if !found.owner.is_ashlar() || found.state == State::Live {
            continue;
        }
        note(
            format!("/dev/ublkb{}", found.number),
            "no daemon serves it, and its I/O waits",
            "start the daemon of its pool, which takes it over; or clear it away",
            Remedy::Ublk(found.number),
        );
    }
    let dead = fuse::dead_mounts().map_err(failed)?;
    for device in loopdev::in_use().map_err(failed)? {
        if dead.iter().any(|mount| device.backing_file.starts_with(mount)) {
            note(
                device.device.display().to_string(),
                "its file is on a FUSE mount without a daemon, and all its I/O fails",
                "unmount what is on it, then clear it away",
                Remedy::Loop(device.device),
            );
        }
    }
    for mount in dead {
        note(
            mount.display().to_string(),
            "a FUSE mount without a daemon",
            "start the daemon, which mounts it anew; or clear it away",
            Remedy::Unmount(mount),
        );
    }
    for memory in SharedMemory::new(CARRY).left().map_err(failed)? {
        note(
            memory.display().to_string(),
            "holds writes that hosts were told are done, and no daemon serves its pool",
            "start the daemon of its pool, which enters them into it; --fix --force gives them up",
            Remedy::GiveUp(memory),
        );
    }
    for link in std::fs::read_dir(NAMES).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if link.is_symlink() && !link.exists() {
            note(link.display().to_string(), "leads to no device", "clear it away", Remedy::Remove(link));
        }
    }
    let socket = dir.map_or_else(|| "/run/ashlar/api.sock".into(), socket_in);
    if socket.exists() && UnixStream::connect(&socket).is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
    {
        let action = "start the daemon, which makes it anew; or clear it away";
        note(socket.display().to_string(), "a socket nobody listens on", action, Remedy::Remove(socket));
    }
    Ok(all)
}

fn put_right(remedy: &Remedy, force: bool) -> Result<()> {
    match remedy {
        Remedy::Look => Err(Error::invalid("nothing is cleared away that cannot be looked at")),
        Remedy::Ublk(number) if force => ublk::delete_in_use(*number),
        Remedy::Ublk(number) => ublk::delete(*number),
        Remedy::Loop(device) => loopdev::detach(device),
        Remedy::Unmount(mount) => fuse::clear_stale(mount),
        Remedy::GiveUp(_) if !force => Err(Error::invalid("left alone: --force gives up what it holds")),
        Remedy::Remove(path) | Remedy::GiveUp(path) => {
            std::fs::remove_file(path).map_err(|e| Error::io(format!("removing {}: {e}", path.display())))
        }
    }
}

fn table(all: &[Finding]) -> String {
    if all.is_empty() {
        return "nothing was left behind\n".into();
    }
    let mut table = Table::new(&[("OBJECT", Align::Left), ("PROBLEM", Align::Left), ("WHAT TO DO", Align::Left)]);
    for finding in all {
        let action = finding.outcome.as_ref().unwrap_or(&finding.action);
        table.row([&finding.object, &finding.problem, action]);
    }
    table.render(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_nobody_listens_on_is_found_and_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let socket = socket_in(dir.path());
        std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let here = || {
            let all = look(Some(dir.path())).unwrap();
            all.into_iter().find(|(finding, _)| finding.object == socket.display().to_string())
        };
        assert!(here().is_none(), "somebody listens");
        drop(listener);
        let (finding, remedy) = here().unwrap();
        assert!(finding.problem.contains("nobody listens") && table(&[finding]).contains("start the daemon"));
        put_right(&remedy, false).unwrap();
        assert!(here().is_none() && !socket.exists());
        assert_eq!(table(&[]), "nothing was left behind\n");
    }
}
