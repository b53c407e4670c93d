//! A drive in the place of another: the new one is added, then the old one is emptied and let go. Each step is on record in the pool, so that
//! the same command goes on after an interruption.

use std::path::Path;

use blockdev::report::{DiskInfo, DiskState};
use hyper::Method;
use serde::Serialize;

use super::{add, pick, until_gone};
use crate::client::Client;
use crate::daemon::engine::identity;
use crate::exit::{CommandResult, Exit, Failure};
use crate::output::state_word;

/// What was done.
#[derive(Debug, Serialize)]
pub struct Replaced {
    /// The drive that leaves.
    old: DiskInfo,
    /// The drive in its place.
    new: DiskInfo,
    /// Whether the old one is gone; otherwise it is being emptied.
    done: bool,
}

/// Whether the drive is the one that is at `path`. One that is missing was seen last where another one may be now.
fn is_at(disk: &DiskInfo, path: &Path) -> bool {
    let other = Path::new(&disk.path);
    !(disk.state == DiskState::Missing || disk.state == DiskState::Rebuilding)
        && (other == path || identity(path).is_some_and(|i| identity(other) == Some(i)))
}

/// Finds the old drive, and the new one if it was added before. Refuses what cannot be meant before anything is changed.
fn plan<'a>(disks: &'a [DiskInfo], old: &str, new: &Path) -> CommandResult<(&'a DiskInfo, Option<&'a DiskInfo>)> {
    let there = disks.iter().find(|d| is_at(d, new));
    let path = new.display();
    let old = match (pick(disks, old), there) {
        (Ok(old), _) => old,
        (Err(e), Some(new)) if e.exit == Exit::NotFound => {
            return Err(Failure {
                message: format!(
                    "{}. {path} is disk {} of the pool: it may have been replaced already",
                    e.message, new.id
                ),
                ..e
            });
        }
        (Err(e), _) => return Err(e),
    };
    let Some(new) = there else { return Ok((old, None)) };
    if new.id == old.id {
        return Err(Failure::usage(format!("{path} is disk {} itself: name another drive to replace it", old.id)));
    }
    match new.state {
        DiskState::Online | DiskState::Degraded | DiskState::Stale => Ok((old, Some(new))),
        state => Err(Failure::conflict(format!(
            "{path} is disk {} of the pool already, and is {}: it cannot take the place of disk {}",
            new.id,
            state_word(state),
            old.id
        ))),
    }
}

/// Puts the drive at `new`, an absolute path, in the place of `old`.
pub async fn replace(client: &Client, old: &str, new: &Path, force: bool, no_wait: bool) -> CommandResult<Replaced> {
    let disks: Vec<DiskInfo> = client.get("/v1/disks").await?;
    let (old, added) = plan(&disks, old, new)?;
    let new = match added {
        Some(disk) => disk.clone(),
        None => add(client, new, force, Some(old.id)).await.map_err(|e| e.context("nothing was changed"))?,
    };
    let path = format!("/v1/disks/{}", old.id);
    let removed = async {
        if old.state.is_absent() {
            // What it held is rebuilt from now on, even if there is no room for all of it.
            let _: DiskInfo = client.send(Method::POST, &format!("{path}/fail")).await?;
        }
        client.send::<DiskInfo>(Method::DELETE, &path).await
    };
    let old = removed.await.map_err(|e| Failure {
        message: format!(
            "{} is disk {} of the pool now, but disk {} could not be removed: {}. Once that has changed, the same command goes on; \
             `ashlar disk remove {}` takes the new one out again",
            new.path, new.id, old.id, e.message, new.id
        ),
        ..e
    })?;
    if !no_wait {
        until_gone(client, &old).await.map_err(|e| {
            e.context(format!("{} is disk {} of the pool now, and disk {} is being removed", new.path, new.id, old.id))
        })?;
    }
    Ok(Replaced { old, new, done: !no_wait })
}

/// For people.
pub fn describe(replaced: &Replaced) -> String {
    let Replaced { old, new, done } = replaced;
    let what = if *done { "was replaced by" } else { "is being replaced by" };
    format!("disk {} ({}) {what} disk {} ({})", old.id, old.path, new.id, new.path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(id: u16, path: &str, state: DiskState) -> DiskInfo {
        DiskInfo { id, path: path.into(), state, ..DiskInfo::default() }
    }

    #[test]
    fn what_is_to_be_done_shows_in_the_list_of_disks() {
        let all = [
            disk(0, "/d/a", DiskState::Online),
            disk(1, "/d/b", DiskState::Missing),
            disk(2, "/d/c", DiskState::Removing),
            disk(3, "/d/d", DiskState::Failed),
            disk(4, "/d/e", DiskState::Stale),
        ];
        let plan = |old, new: &str| plan(&all, old, Path::new(new)).map(|(old, added)| (old.id, added.map(|d| d.id)));
        assert_eq!(plan("a", "/d/new").unwrap(), (0, None));
        assert_eq!(plan("1", "/d/new").unwrap(), (1, None));
        // A new drive in the place of the one that is gone.
        assert_eq!(plan("1", "/d/b").unwrap(), (1, None));
        // Begun before: in the middle of adding, and of removing.
        assert_eq!(plan("1", "/d/a").unwrap(), (1, Some(0)));
        assert_eq!(plan("2", "/d/e").unwrap(), (2, Some(4)));
        for (old, new, exit, why) in [
            ("0", "/d/a", Exit::Usage, "itself"),
            ("0", "/d/c", Exit::Conflict, "is removing"),
            ("0", "/d/d", Exit::Conflict, "is failed"),
            ("9", "/d/new", Exit::NotFound, "no disk '9'"),
            ("9", "/d/a", Exit::NotFound, "replaced already"),
        ] {
            let refused = plan(old, new).unwrap_err();
            assert_eq!(refused.exit, exit, "{old} {new}: {}", refused.message);
            assert!(refused.message.contains(why), "{old} {new}: {}", refused.message);
        }
    }

    #[test]
    fn a_drive_by_another_name_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let disk = disk(0, &file.display().to_string(), DiskState::Online);
        assert!(is_at(&disk, &link) && is_at(&disk, &file));
        assert!(!is_at(&disk, &dir.path().join("other")));
    }
}
