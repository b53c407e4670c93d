//! What NAS servers export by NFS.

use std::collections::BTreeMap;

use blockdev::error::{Error, ErrorKind, Result};
use blockdev::format::volume::Setting;
use blockdev::pool::Managed;
use nas::server::exports::{Export, check_directory, check_hosts, check_path};
use nas::server::network::Address;

use super::servers::{self, Servers};
use super::{StoredState, stored};
use crate::daemon::engine::Engine;
use crate::daemon::fronts::blocking;
use crate::daemon::state::Appliance;
use crate::wire::servers::{ExportRules, NasExport, NasExportCreate};

/// What settings of exports are called, before the server's name and the path.
const PREFIX: &str = "nas-export/";

/// All exports, by server and path.
fn all(engine: &dyn Engine) -> BTreeMap<(String, String), Export> {
    let named = super::settings::<Export>(engine, PREFIX).into_iter();
    let split = |name: String| name.find('/').map(|at| (name[..at].to_owned(), name[at..].to_owned()));
    named.filter_map(|(name, export)| Some((split(name)?, export))).collect()
}

/// The exports of a server, by path.
pub(super) fn of_server(engine: &dyn Engine, server: &str) -> BTreeMap<String, Export> {
    all(engine).into_iter().filter(|((of, _), _)| of == server).map(|((_, path), export)| (path, export)).collect()
}

/// An export of a file system, as SERVER:PATH.
pub(super) fn of_file_system(engine: &dyn Engine, fs: &str) -> Option<String> {
    let found = all(engine).into_iter().find(|(_, export)| export.file_system == fs);
    found.map(|((server, path), _)| format!("{server}:{path}"))
}

fn name_of(server: &str, path: &str) -> String {
    format!("{PREFIX}{server}{path}")
}

fn missing(server: &str, path: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no export '{server}:{path}' (ashlar nas export list)"))
}

impl Servers {
    /// All exports, of one server or of all.
    pub fn exports(&self, app: &Appliance, server: Option<&str>) -> Result<Vec<NasExport>> {
        if let Some(server) = server {
            self.ready(app, server)?;
        }
        let addresses = self.all(app).into_iter().map(|server| (server.name, server.address)).collect();
        let all = all(&*app.engine).into_iter().filter(|((of, _), _)| server.is_none_or(|server| of == server));
        Ok(all.map(|((server, path), export)| describe(app, &addresses, server, path, export)).collect())
    }

    /// One export.
    pub fn export(&self, app: &Appliance, server: &str, path: &str) -> Result<NasExport> {
        self.exports(app, Some(server))?.into_iter().find(|e| e.path == path).ok_or_else(|| missing(server, path))
    }

    /// Makes an export.
    pub async fn create_export(&self, app: &Appliance, server: &str, wanted: NasExportCreate) -> Result<()> {
        let _turn = self.hold().await;
        self.ready(app, server)?;
        check_path(&wanted.path)?;
        let all = of_server(&*app.engine, server);
        for other in all.keys() {
            if *other == wanted.path {
                return Err(Error::new(ErrorKind::AlreadyExists, format!("export '{server}:{other}' exists already")));
            }
            let within = |inner: &str, outer: &str| inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'));
            if within(other, &wanted.path) || within(&wanted.path, other) {
                let text = format!("'{}' and the export '{server}:{other}' cannot lie in each other", wanted.path);
                return Err(Error::new(ErrorKind::AlreadyExists, text));
            }
        }
        let known = self.ready(app, server)?;
        let names = known.has_names();
        let (id, known) = known.number(&all.values().map(|export| export.id).collect())?;
        let export = checked(app, server, id, wanted.rules, names).await?;
        let export = super::setting(&name_of(server, &wanted.path), &export)?;
        app.engine.manage(vec![export, servers::put(server, &known)?]).await?;
        self.apply(app, server).await;
        Ok(())
    }

    /// Changes what an export is, and to whom.
    pub async fn change_export(&self, app: &Appliance, server: &str, path: &str, rules: ExportRules) -> Result<()> {
        let _turn = self.hold().await;
        let known = self.ready(app, server)?;
        let old = of_server(&*app.engine, server).remove(path).ok_or_else(|| missing(server, path))?;
        if old.file_system != rules.file_system || old.directory != rules.directory {
            let text = format!(
                "'{server}:{path}' exports what clients have handles of: delete it and make another to export something else"
            );
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        let export = checked(app, server, old.id, rules, known.has_names()).await?;
        app.engine.manage(vec![super::setting(&name_of(server, path), &export)?]).await?;
        self.apply(app, server).await;
        Ok(())
    }

    /// Exports something no more.
    pub async fn delete_export(&self, app: &Appliance, server: &str, path: &str) -> Result<()> {
        let _turn = self.hold().await;
        if !servers::stored(&*app.engine).contains_key(server) {
            return Err(servers::missing(server));
        }
        if of_server(&*app.engine, server).remove(path).is_none() {
            return Err(missing(server, path));
        }
        app.engine.manage(vec![Managed::Setting(Setting { name: name_of(server, path), value: Vec::new() })]).await?;
        self.apply(app, server).await;
        Ok(())
    }
}

/// An export, if it can be.
async fn checked(app: &Appliance, server: &str, id: u16, rules: ExportRules, names: bool) -> Result<Export> {
    let ExportRules { file_system, directory, default_access, mut hosts, anonymous_uid, anonymous_gid } = rules;
    check_directory(&directory)?;
    check_hosts(&mut hosts, names)?;
    let known = stored(&*app.engine).remove(&file_system).filter(|fs| !fs.internal);
    let known = known.ok_or_else(|| super::missing(&file_system))?;
    if known.server.as_deref() != Some(server) {
        let text = format!(
            "file system '{file_system}' does not belong to NAS server '{server}' (ashlar nas fs assign {file_system} --server {server})"
        );
        return Err(Error::new(ErrorKind::Busy, text));
    }
    let root = app.nas.path(&file_system).filter(|_| known.state == StoredState::Ready);
    let root =
        root.ok_or_else(|| Error::new(ErrorKind::Unavailable, format!("file system '{file_system}' is not mounted")))?;
    // Without a slash at its end.
    let path = if directory.is_empty() { root } else { root.join(&directory) };
    // A link may lead anywhere, also out of the file system.
    let (wanted, real) = blocking(move || Ok((path.clone(), path.canonicalize()))).await?;
    let what = format!("'{directory}' of file system '{file_system}'");
    let real = real.map_err(|e| Error::new(ErrorKind::NotFound, format!("{what}: {e}")))?;
    if real != wanted || !blocking(move || Ok(real.is_dir())).await? {
        return Err(Error::invalid(format!("{what} is no directory, or behind a link")));
    }
    Ok(Export { id, file_system, directory, default_access, hosts, anonymous_uid, anonymous_gid })
}

fn describe(
    app: &Appliance,
    addresses: &BTreeMap<String, String>,
    server: String,
    path: String,
    export: Export,
) -> NasExport {
    let Export { id: _, file_system, directory, default_access, hosts, anonymous_uid, anonymous_gid } = export;
    let address = addresses.get(&server).and_then(|address| address.parse::<Address>().ok());
    let source = match address.map(|address| address.ip) {
        Some(ip) if ip.is_ipv6() => format!("[{ip}]:{path}"),
        Some(ip) => format!("{ip}:{path}"),
        None => path.clone(),
    };
    let served = app.nas.path(&file_system).is_some();
    let rules = ExportRules { file_system, directory, default_access, hosts, anonymous_uid, anonymous_gid };
    NasExport { server, path, source, served, rules }
}
