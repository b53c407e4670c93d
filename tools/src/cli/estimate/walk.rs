//! Which files there are.

use std::collections::HashSet;
use std::fs::Metadata;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::exit::{CommandResult, Exit, Failure};

/// What is named on the command line, each checked to be something that can be read.
#[derive(Clone, Debug)]
pub struct Roots {
    paths: Vec<PathBuf>,
    /// Directories on other file systems are walked, too.
    across: bool,
}

impl Roots {
    /// Checks what is named: that it is there, of a kind that holds data, and named once.
    pub fn new(paths: &[PathBuf], across: bool) -> CommandResult<Self> {
        let mut seen: Vec<(PathBuf, Metadata)> = Vec::new();
        for path in paths {
            let failed = |e: io::Error| cannot_read(path, &e);
            let metadata = std::fs::metadata(path).map_err(failed)?;
            let kind = metadata.file_type();
            if kind.is_dir() {
                std::fs::read_dir(path).map_err(failed)?;
            } else if kind.is_file() || kind.is_block_device() {
                super::source::Source::open(path).map_err(failed)?;
            } else {
                let what = if kind.is_fifo() {
                    "a named pipe"
                } else if kind.is_socket() {
                    "a socket"
                } else {
                    "a character device"
                };
                return Err(Failure::usage(format!(
                    "{} is {what}: name block devices, regular files or directories",
                    path.display()
                )));
            }
            let place = std::fs::canonicalize(path).map_err(failed)?;
            for (other, about) in &seen {
                let within = |inner: &Path, outer: &Path| inner.starts_with(outer);
                if (within(&place, other) || within(other, &place)) && (across || about.dev() == metadata.dev()) {
                    let (place, other) = (place.display(), other.display());
                    return Err(Failure::usage(format!("{place} and {other} hold the same: name one of them")));
                }
            }
            seen.push((place, metadata));
        }
        Ok(Self { paths: paths.to_vec(), across })
    }

    /// Calls `each` with every regular file and named device, in an order that only depends on their names, or with what cannot be read. Symbolic links are
    /// not followed below what is named; a file with several names comes once.
    pub fn walk(&self, mut each: impl FnMut(Result<&Path, Failure>) -> ControlFlow<()>) -> ControlFlow<()> {
        let mut linked = HashSet::new();
        for root in &self.paths {
            let metadata = match std::fs::metadata(root) {
                Ok(metadata) => metadata,
                Err(e) => {
                    each(Err(cannot_read(root, &e)))?;
                    continue;
                }
            };
            if !metadata.is_dir() {
                if is_first(&metadata, &mut linked) {
                    each(Ok(root))?;
                }
                continue;
            }
            let mut left = vec![root.clone()];
            while let Some(path) = left.pop() {
                let found = match std::fs::symlink_metadata(&path) {
                    _ if path == *root => Ok(metadata.clone()),
                    found => found,
                };
                match found {
                    Ok(found) if found.is_dir() && (self.across || found.dev() == metadata.dev()) => {
                        match entries(&path) {
                            Ok(entries) => left.extend(entries.into_iter().rev()),
                            Err(e) => each(Err(cannot_read(&path, &e)))?,
                        }
                    }
                    Ok(found) if found.is_file() && is_first(&found, &mut linked) => each(Ok(&path))?,
                    Ok(_) => {}
                    Err(e) => each(Err(cannot_read(&path, &e)))?,
                }
            }
        }
        ControlFlow::Continue(())
    }
}

/// Whether no other name of the same file came before.
fn is_first(metadata: &Metadata, linked: &mut HashSet<(u64, u64)>) -> bool {
    metadata.nlink() < 2 || metadata.file_type().is_block_device() || linked.insert((metadata.dev(), metadata.ino()))
}

/// What a directory holds, sorted.
fn entries(path: &Path) -> io::Result<Vec<PathBuf>> {
    let entries: io::Result<Vec<PathBuf>> = std::fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect();
    let mut entries = entries?;
    entries.sort();
    Ok(entries)
}

/// Says which, why, and what to do.
pub fn cannot_read(path: &Path, error: &io::Error) -> Failure {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::NotFound => Failure::not_found(format!("there is no {path}")),
        io::ErrorKind::PermissionDenied => {
            Failure::other(format!("{path} may not be read by this user: run as root, or as its owner"))
        }
        _ => Failure { exit: Exit::Failure, kind: "io".into(), message: format!("{path} cannot be read: {error}") },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(roots: &Roots) -> Vec<String> {
        let mut found = Vec::new();
        let _ = roots.walk(|path| {
            found.push(path.map_or_else(|e| e.message, |p| p.display().to_string()));
            ControlFlow::Continue(())
        });
        found
    }

    #[test]
    fn files_come_once_in_order_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("tree/b/c")).unwrap();
        for name in ["tree/z", "tree/a", "tree/b/c/deep", "outside"] {
            std::fs::write(at(name), name).unwrap();
        }
        std::fs::hard_link(at("tree/a"), at("tree/b/again")).unwrap();
        std::os::unix::fs::symlink(at("outside"), at("tree/link")).unwrap();
        std::os::unix::fs::symlink(at("tree"), at("tree/loop")).unwrap();
        std::os::unix::net::UnixListener::bind(at("tree/socket")).unwrap();
        let roots = Roots::new(&[at("tree"), at("outside")], false).unwrap();
        let expected = ["tree/a", "tree/b/c/deep", "tree/z", "outside"].map(|name| at(name).display().to_string());
        assert_eq!(found(&roots), expected);
        // A link that is named is followed.
        let roots = Roots::new(&[at("tree/link")], false).unwrap();
        assert_eq!(found(&roots), [at("tree/link").display().to_string()]);
        let mut count = 0;
        let stopped = Roots::new(&[at("tree")], false).unwrap().walk(|_| {
            count += 1;
            ControlFlow::Break(())
        });
        assert_eq!((stopped, count), (ControlFlow::Break(()), 1));
    }

    #[test]
    fn what_holds_no_data_or_is_named_twice_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("tree")).unwrap();
        std::fs::write(at("tree/a"), "a").unwrap();
        std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let refused = |paths: &[&str]| {
            let paths: Vec<PathBuf> = paths.iter().map(|name| at(name)).collect();
            let failure = Roots::new(&paths, false).expect_err("it was accepted");
            (failure.exit, failure.message)
        };
        assert_eq!(refused(&["gone"]).0, Exit::NotFound);
        assert!(refused(&["socket"]).1.contains("is a socket"));
        for twice in [["tree", "tree/a"], ["tree/a", "tree"], ["tree/a", "tree/../tree/a"]] {
            let (exit, message) = refused(&twice);
            assert!(exit == Exit::Usage && message.contains("hold the same"), "{message}");
        }
        let refused = Roots::new(&["/dev/null".into()], false).expect_err("it was accepted");
        assert!(refused.message.contains("a character device"));
    }
}
