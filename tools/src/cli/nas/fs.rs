//! `ashlar nas fs`.

use hyper::Method;

use crate::cli::volume::{KeepArguments, done};
use crate::cli::{Global, talk};
use crate::client::segment;
use crate::exit::{CommandResult, Exit, Failure};
use crate::output::{Align, Table, pairs, show, size, timestamp};
use crate::values::parse_size;
use crate::wire::nas::{
    FileSystem, FileSystemCheck, FileSystemClone, FileSystemCreate, FileSystemResize, FileSystemRestore,
};
use crate::wire::servers::FileSystemServer;

/// Problems that people are shown.
const PROBLEMS_SHOWN: usize = 30;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a file system and mount it
    ///
    /// It lies on two thin volumes, which form a group of its name: policies for the group protect it. It is mounted as long as the daemon runs. Its
    /// size is what files may take; what they do take of the pool is less, by zeroes, deduplication and compression.
    #[command(
        after_help = "Examples:\n  ashlar nas fs create home --size 100G\n  ashlar nas fs create home --size 100G --policy gold\n  cd \"$(ashlar nas fs show home -o json | jq -r .path)\""
    )]
    Create {
        /// Letters, digits, `.`, `_`, `-`; at most 50
        name: String,
        /// What files may take, such as 100G or 2T
        #[arg(long, value_parser = parse_size)]
        size: u64,
        /// The protection policy it has
        #[arg(long)]
        policy: Option<String>,
        /// The NAS server it belongs to
        #[arg(long)]
        server: Option<String>,
    },
    /// Give a file system to a NAS server, which can export it then
    #[command(after_help = "Examples:\n  ashlar nas fs assign home --server files\n  ashlar nas fs assign home --none")]
    Assign {
        /// The file system
        name: String,
        /// The NAS server it belongs to from now on
        #[arg(long, required_unless_present = "none", conflicts_with = "none")]
        server: Option<String>,
        /// It belongs to none any more
        #[arg(long)]
        none: bool,
    },
    /// All file systems
    #[command(visible_alias = "ls")]
    List,
    /// One file system in full
    Show {
        /// The file system
        name: String,
    },
    /// Make a file system larger, while it is used
    Resize {
        /// The file system
        name: String,
        /// What files may take from now on
        #[arg(long, value_parser = parse_size)]
        size: u64,
    },
    /// Count again everything that its metadata says: names, links, blocks, space; nothing is changed
    ///
    /// It stays in use meanwhile: what is checked is the instant at which the command was given. Exit code 7 when something is wrong. Content
    /// of files is the pool's to check: `ashlar pool scrub`.
    #[command(visible_alias = "fsck")]
    Check {
        /// The file system
        name: String,
    },
    /// Mount a file system that should be mounted and is not, or has failed
    Mount {
        /// The file system
        name: String,
    },
    /// Give a file system the content of one of its snapshots
    ///
    /// It is unmounted and mounted again. What it is now is kept as a snapshot, unless told otherwise.
    #[command(after_help = "Example:\n  ashlar nas fs restore home@monday")]
    Restore {
        /// FILESYSTEM@SNAPSHOT
        #[arg(value_name = "FILESYSTEM@SNAPSHOT")]
        name: String,
        #[command(flatten)]
        keep: KeepArguments,
        /// Also while files are open: they are cut off
        #[arg(long)]
        force: bool,
    },
    /// Make a file system from a snapshot of another one, at once; both share what they do not change
    #[command(after_help = "Example:\n  ashlar nas fs clone home@monday trial")]
    Clone {
        /// FILESYSTEM@SNAPSHOT
        #[arg(value_name = "FILESYSTEM@SNAPSHOT")]
        snapshot: String,
        /// Name of the new one
        name: String,
    },
    /// Delete a file system with everything in it, for good
    #[command(visible_alias = "rm")]
    Delete {
        /// The file system
        name: String,
        /// Its snapshots, too
        #[arg(long)]
        snapshots: bool,
        /// Also while files are open: they are cut off
        #[arg(long)]
        force: bool,
    },
}

fn path(name: &str) -> String {
    format!("/v1/nas/filesystems/{}", segment(name))
}

/// The parts of FILESYSTEM@SNAPSHOT, as a path of the API.
pub fn snapshot_path(name: &str) -> CommandResult<String> {
    match name.split_once('@') {
        Some((fs, snapshot)) if !fs.is_empty() && !snapshot.is_empty() => {
            Ok(format!("{}/snapshots/{}", path(fs), segment(snapshot)))
        }
        _ => Err(Failure::usage(format!("'{name}' is no snapshot of a file system: write FILESYSTEM@SNAPSHOT"))),
    }
}

pub fn run(command: Command, global: &Global) -> CommandResult<Exit> {
    let (client, format) = (global.client(), global.output);
    match command {
        Command::Create { name, size, policy, server } => {
            let request = FileSystemCreate { name, size, policy, server };
            let fs: FileSystem = talk(client.call(Method::POST, "/v1/nas/filesystems", Some(&request)))?;
            show(format, &fs, |fs| format!("file system {} is mounted at {}", fs.name, fs.path))?;
        }
        Command::List => {
            let all: Vec<FileSystem> = talk(client.get("/v1/nas/filesystems"))?;
            show(format, &all, |all| list(all))?;
        }
        Command::Show { name } => {
            let fs: FileSystem = talk(client.get(&path(&name)))?;
            show(format, &fs, describe)?;
        }
        Command::Resize { name, size: bytes } => {
            let request = FileSystemResize { size: bytes };
            let fs: FileSystem = talk(client.call(Method::PATCH, &path(&name), Some(&request)))?;
            show(format, &fs, |fs| format!("file system {} has {} now", fs.name, size(fs.size)))?;
        }
        Command::Assign { name, server, none: _ } => {
            let to = format!("{}/server", path(&name));
            let fs: FileSystem = talk(client.call(Method::PUT, &to, Some(&FileSystemServer { server })))?;
            show(format, &fs, |fs| match &fs.server {
                Some(server) => format!("file system {} belongs to NAS server {server}", fs.name),
                None => format!("file system {} belongs to no NAS server", fs.name),
            })?;
        }
        Command::Check { name } => {
            let found: FileSystemCheck = talk(client.send(Method::POST, &format!("{}/check", path(&name))))?;
            show(format, &found, describe_check)?;
            return Ok(if found.wrong == 0 { Exit::Ok } else { Exit::Corrupt });
        }
        Command::Mount { name } => {
            let fs: FileSystem = talk(client.send(Method::POST, &format!("{}/mount", path(&name))))?;
            show(format, &fs, |fs| format!("file system {} is mounted at {}", fs.name, fs.path))?;
        }
        Command::Restore { name, keep, force } => {
            let request = FileSystemRestore { keep: keep.wanted(), force };
            let to = format!("{}/restore", snapshot_path(&name)?);
            let fs: FileSystem = talk(client.call(Method::POST, &to, Some(&request)))?;
            show(format, &fs, |fs| format!("file system {} is what {name} holds", fs.name))?;
        }
        Command::Clone { snapshot, name } => {
            let to = format!("{}/clones", snapshot_path(&snapshot)?);
            let fs: FileSystem = talk(client.call(Method::POST, &to, Some(&FileSystemClone { name })))?;
            show(format, &fs, |fs| format!("file system {} cloned from {snapshot}, mounted at {}", fs.name, fs.path))?;
        }
        Command::Delete { name, snapshots, force } => {
            let to = format!("{}?snapshots={snapshots}&force={force}", path(&name));
            talk(client.send::<()>(Method::DELETE, &to))?;
            done(format, "file system", &name, "deleted")?;
        }
    }
    Ok(Exit::Ok)
}

/// Those that hold the state of NAS servers are nobody's business; JSON has them.
fn list(all: &[FileSystem]) -> String {
    if all.iter().all(|fs| fs.internal) {
        return "no file systems; make one with `ashlar nas fs create NAME --size SIZE`".into();
    }
    let mut table = Table::new(&[
        ("NAME", Align::Left),
        ("STATE", Align::Left),
        ("SIZE", Align::Right),
        ("USED", Align::Right),
        ("INODES", Align::Right),
        ("SNAPSHOTS", Align::Right),
        ("SERVER", Align::Left),
        ("POLICY", Align::Left),
        ("PATH", Align::Left),
    ]);
    for fs in all.iter().filter(|fs| !fs.internal) {
        table.row([
            fs.name.clone(),
            fs.state.to_string(),
            size(fs.size),
            fs.used.map_or_else(|| "-".into(), size),
            fs.inodes.map_or_else(|| "-".into(), |n| n.to_string()),
            fs.snapshots.to_string(),
            fs.server.clone().unwrap_or_else(|| "-".into()),
            fs.policy.clone().unwrap_or_else(|| "-".into()),
            fs.path.clone(),
        ]);
    }
    table.render(0)
}

fn describe(fs: &FileSystem) -> String {
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    let mut rows = vec![
        ("name", fs.name.clone()),
        ("state", fs.state.to_string()),
        ("size", format!("{} ({} bytes)", size(fs.size), fs.size)),
        ("used", fs.used.map_or_else(|| "-".into(), size)),
        ("inodes", fs.inodes.map_or_else(|| "-".into(), |n| n.to_string())),
        ("path", fs.path.clone()),
        ("volumes", fs.volumes.join(" ")),
        ("server", or_none(&fs.server)),
        ("policy", or_none(&fs.policy)),
        ("snapshots", fs.snapshots.to_string()),
        ("created", timestamp(fs.created_s)),
    ];
    if let Some(error) = &fs.error {
        rows.push(("error", error.clone()));
    }
    pairs(&rows, 0)
}

fn describe_check(found: &FileSystemCheck) -> String {
    let mut text = pairs(
        &[
            ("directories", found.directories.to_string()),
            ("files", found.files.to_string()),
            ("extents", found.extents.to_string()),
            ("used", size(found.used)),
            ("waiting to be freed", found.orphans.to_string()),
        ],
        0,
    );
    match found.wrong {
        0 => text.push_str("\nthe file system is sound\n"),
        n => {
            text.push_str(&format!("\n{n} wrong:\n"));
            for problem in found.problems.iter().take(PROBLEMS_SHOWN) {
                text.push_str(&format!("  {problem}\n"));
            }
            if n > PROBLEMS_SHOWN as u64 {
                text.push_str(&format!("  and {} more; -o json shows a thousand\n", n - PROBLEMS_SHOWN as u64));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::nas::FileSystemState;

    #[test]
    fn file_systems_are_shown() {
        let fs = FileSystem {
            name: "home".into(),
            state: FileSystemState::Unmounted,
            size: 1 << 30,
            used: None,
            inodes: None,
            path: "/run/ashlar/nas/home".into(),
            volumes: vec!["home.fs-meta".into(), "home.fs-data".into()],
            server: None,
            internal: false,
            policy: None,
            snapshots: 2,
            created_s: 0,
            error: Some("no room".into()),
        };
        let text = list(std::slice::from_ref(&fs));
        assert!(text.contains("unmounted") && text.contains("/run/ashlar/nas/home"), "{text}");
        assert!(describe(&fs).contains("no room"));
        assert!(list(&[]).contains("nas fs create"));
        let mut found = FileSystemCheck {
            problems: vec!["inode 9 is damaged".into()],
            wrong: 31,
            directories: 1,
            files: 2,
            extents: 3,
            used: 4096,
            orphans: 0,
        };
        assert!(describe_check(&found).contains("inode 9 is damaged\n  and 1 more"));
        found.wrong = 0;
        assert!(describe_check(&found).contains("is sound"));
        assert!(snapshot_path("home").is_err() && snapshot_path("@a").is_err() && snapshot_path("home@").is_err());
        assert_eq!(snapshot_path("home@a").ok().as_deref(), Some("/v1/nas/filesystems/home/snapshots/a"));
    }
}
