//! `ashlar nas export`.

use hyper::Method;

use super::server;
use crate::cli::volume::done;
use crate::cli::{Global, talk};
use crate::client::segment;
use crate::exit::{CommandResult, Exit, Failure};
use crate::output::{Align, Table, pairs, show};
use crate::wire::servers::{Access, ExportRules, Hosts, NasExport, NasExportCreate};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Export a file system, or a directory of it, by NFS
    ///
    /// Clients mount it as ADDRESS:/PATH. Hosts that no list names may do what --access says. The first list that names a host counts: --root,
    /// --rw, --root-ro, --ro, --none, in this order.
    #[command(
        after_help = "Examples:\n  ashlar nas export create files:/home --fs home --access rw\n  ashlar nas export create files:/work --fs home --directory projects --rw 10.0.0.0/8 --root 10.0.0.7\n  mount -t nfs \"$(ashlar nas export show files:/home -o json | jq -r .source)\" /mnt"
    )]
    Create {
        /// SERVER:/PATH
        #[arg(value_name = "SERVER:/PATH")]
        export: String,
        /// The file system
        #[arg(long, value_name = "FILESYSTEM")]
        fs: String,
        /// The directory of it that is exported, from its root; all of it when left out
        #[arg(long, default_value = "")]
        directory: String,
        #[command(flatten)]
        who: Who,
    },
    /// What is exported
    #[command(visible_alias = "ls")]
    List,
    /// One export in full
    Show {
        /// SERVER:/PATH
        #[arg(value_name = "SERVER:/PATH")]
        export: String,
    },
    /// Say anew who may do what in an export: what is not given goes back to its default; clients keep what they have mounted
    Set {
        /// SERVER:/PATH
        #[arg(value_name = "SERVER:/PATH")]
        export: String,
        #[command(flatten)]
        who: Who,
    },
    /// Export something no more; what it holds stays
    #[command(visible_alias = "rm")]
    Delete {
        /// SERVER:/PATH
        #[arg(value_name = "SERVER:/PATH")]
        export: String,
    },
}

/// What hosts may do, in the words of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Word {
    /// Nothing
    None,
    /// Read; root is nobody
    Ro,
    /// Read and write; root is nobody
    Rw,
    /// Read; root is root
    RootRo,
    /// Read and write; root is root
    Root,
}

impl From<Word> for Access {
    fn from(word: Word) -> Self {
        match word {
            Word::None => Self::None,
            Word::Ro => Self::ReadOnly,
            Word::Rw => Self::ReadWrite,
            Word::RootRo => Self::ReadOnlyRoot,
            Word::Root => Self::Root,
        }
    }
}

fn word(access: Access) -> &'static str {
    match access {
        Access::None => "none",
        Access::ReadOnly => "ro",
        Access::ReadWrite => "rw",
        Access::ReadOnlyRoot => "root-ro",
        Access::Root => "root",
    }
}

/// Who may do what.
#[derive(Debug, clap::Args)]
pub struct Who {
    /// What hosts may do that no list names
    #[arg(long, value_enum, default_value = "none")]
    access: Word,
    /// Hosts that may read and write, whose root is root: addresses, networks, names, names with * or ?
    #[arg(long, value_name = "HOSTS", value_delimiter = ',')]
    root: Vec<String>,
    /// Hosts that may read and write
    #[arg(long, value_name = "HOSTS", value_delimiter = ',')]
    rw: Vec<String>,
    /// Hosts that may read, whose root is root
    #[arg(long, value_name = "HOSTS", value_delimiter = ',')]
    root_ro: Vec<String>,
    /// Hosts that may read
    #[arg(long, value_name = "HOSTS", value_delimiter = ',')]
    ro: Vec<String>,
    /// Hosts that may do nothing
    #[arg(long, value_name = "HOSTS", value_delimiter = ',')]
    none: Vec<String>,
    /// Who root is where it is nobody
    #[arg(long, value_name = "UID", default_value_t = crate::wire::servers::nobody())]
    anonymous_uid: u32,
    /// Its group
    #[arg(long, value_name = "GID", default_value_t = crate::wire::servers::nobody())]
    anonymous_gid: u32,
}

impl Who {
    fn rules(self, file_system: String, directory: String) -> ExportRules {
        let lists = [
            (self.root, Access::Root),
            (self.rw, Access::ReadWrite),
            (self.root_ro, Access::ReadOnlyRoot),
            (self.ro, Access::ReadOnly),
            (self.none, Access::None),
        ];
        let named = lists.into_iter().filter(|(hosts, _)| !hosts.is_empty());
        ExportRules {
            file_system,
            directory,
            default_access: self.access.into(),
            hosts: named.map(|(hosts, access)| Hosts { hosts, access }).collect(),
            anonymous_uid: self.anonymous_uid,
            anonymous_gid: self.anonymous_gid,
        }
    }
}

/// The parts of SERVER:/PATH.
fn parts(export: &str) -> CommandResult<(&str, &str)> {
    match export.split_once(':') {
        Some((server, path)) if !server.is_empty() && path.len() > 1 && path.starts_with('/') => Ok((server, path)),
        _ => Err(Failure::usage(format!("'{export}' is no export: SERVER:/PATH is expected"))),
    }
}

/// An export, as a path of the API.
fn path(export: &str) -> CommandResult<String> {
    let (server, path) = parts(export)?;
    let segments: Vec<String> = path[1..].split('/').map(segment).collect();
    Ok(format!("{}/exports/{}", server::path(server), segments.join("/")))
}

fn all(global: &Global) -> CommandResult<Vec<NasExport>> {
    talk(global.client().get("/v1/nas/exports"))
}

fn one(global: &Global, export: &str) -> CommandResult<NasExport> {
    let (server, path) = parts(export)?;
    let found = all(global)?.into_iter().find(|e| e.server == server && e.path == path);
    found.ok_or_else(|| Failure::not_found(format!("there is no export '{export}' (ashlar nas export list)")))
}

pub fn run(command: Command, global: &Global) -> CommandResult<Exit> {
    let (client, format) = (global.client(), global.output);
    match command {
        Command::Create { export, fs, directory, who } => {
            let (server, path) = parts(&export)?;
            let request = NasExportCreate { path: path.to_owned(), rules: who.rules(fs, directory) };
            let to = format!("{}/exports", server::path(server));
            let made: NasExport = talk(client.call(Method::POST, &to, Some(&request)))?;
            show(format, &made, |made| {
                format!("exported; clients mount it with: mount -t nfs {} DIRECTORY", made.source)
            })?;
        }
        Command::List => show(format, &all(global)?, |all| list(all))?,
        Command::Show { export } => show(format, &one(global, &export)?, describe)?,
        Command::Set { export, who } => {
            let now = one(global, &export)?.rules;
            let rules = who.rules(now.file_system, now.directory);
            let changed: NasExport = talk(client.call(Method::PUT, &path(&export)?, Some(&rules)))?;
            show(format, &changed, describe)?;
        }
        Command::Delete { export } => {
            talk(client.send::<()>(Method::DELETE, &path(&export)?))?;
            done(format, "export", &export, "deleted")?;
        }
    }
    Ok(Exit::Ok)
}

fn list(all: &[NasExport]) -> String {
    if all.is_empty() {
        return "no exports; make one with `ashlar nas export create SERVER:/PATH --fs FILESYSTEM --access rw`".into();
    }
    let mut table = Table::new(&[
        ("EXPORT", Align::Left),
        ("SOURCE", Align::Left),
        ("FILE SYSTEM", Align::Left),
        ("SERVED", Align::Left),
        ("OTHERS", Align::Left),
        ("HOSTS", Align::Left),
    ]);
    for export in all {
        table.row([
            format!("{}:{}", export.server, export.path),
            export.source.clone(),
            what(&export.rules),
            if export.served { "yes".into() } else { "no".into() },
            word(export.rules.default_access).into(),
            hosts(&export.rules),
        ]);
    }
    table.render(0)
}

fn what(rules: &ExportRules) -> String {
    if rules.directory.is_empty() {
        rules.file_system.clone()
    } else {
        format!("{}/{}", rules.file_system, rules.directory)
    }
}

fn hosts(rules: &ExportRules) -> String {
    let each = |group: &Hosts| format!("{}={}", word(group.access), group.hosts.join(","));
    if rules.hosts.is_empty() { "-".into() } else { rules.hosts.iter().map(each).collect::<Vec<_>>().join(" ") }
}

fn describe(export: &NasExport) -> String {
    let rules = &export.rules;
    pairs(
        &[
            ("export", format!("{}:{}", export.server, export.path)),
            ("mount", format!("mount -t nfs {} DIRECTORY", export.source)),
            ("file system", what(rules)),
            ("served", if export.served { "yes".into() } else { "no: its file system is not mounted".into() }),
            ("others", word(rules.default_access).into()),
            ("hosts", hosts(rules)),
            ("anonymous", format!("user {}, group {}", rules.anonymous_uid, rules.anonymous_gid)),
        ],
        0,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_are_named_and_shown() {
        assert!(parts("home").is_err() && parts(":/home").is_err() && parts("files:home").is_err());
        assert!(parts("files:/").is_err());
        assert_eq!(path("files:/a/b").ok().as_deref(), Some("/v1/nas/servers/files/exports/a/b"));
        let rules = ExportRules {
            file_system: "home".into(),
            directory: "team".into(),
            default_access: Access::None,
            hosts: vec![Hosts { hosts: vec!["10.0.0.7".into(), "*.example.com".into()], access: Access::Root }],
            anonymous_uid: 65534,
            anonymous_gid: 65534,
        };
        let export = NasExport {
            server: "files".into(),
            path: "/home".into(),
            source: "10.0.0.5:/home".into(),
            served: false,
            rules,
        };
        let text = list(std::slice::from_ref(&export));
        assert!(text.contains("home/team") && text.contains("root=10.0.0.7,*.example.com"), "{text}");
        assert!(describe(&export).contains("its file system is not mounted"));
        assert!(list(&[]).contains("nas export create"));
    }
}
