//! NBD metadata contexts that tell which ranges of an export changed since a snapshot: for backup that reads only those.

use std::sync::Arc;

use blockdev::env::BoxFuture;
use blockdev::error::Result;
use blockdev::frontend::BlockDevice;
use blockdev::frontend::nbd::MetaContext;
use blockdev::frontend::nbd::wire::Descriptor;

use super::engine::Engine;

/// Our own namespace, and the one that qemu knows how to ask for.
const NAMESPACES: [&str; 2] = ["ashlar:changed-since:", "qemu:dirty-bitmap:"];
/// Flag of a range that changed, in both.
const CHANGED: u32 = 1;

/// What changed in an export since a snapshot.
struct ChangedSince {
    name: String,
    export: String,
    /// Its name and identity.
    snapshot: (String, u32),
    engine: Arc<dyn Engine>,
}

/// Contexts of an export, for all snapshots of its volume but itself.
pub fn contexts(engine: &Arc<dyn Engine>, export: &str) -> Vec<Arc<dyn MetaContext>> {
    let volume = export.split_once('@').map_or(export, |(volume, _)| volume);
    let mut out: Vec<Arc<dyn MetaContext>> = Vec::new();
    for snapshot in engine.snapshot_names(volume).into_iter().filter(|(name, _)| name != export) {
        let short = snapshot.0.split_once('@').map_or("", |(_, short)| short);
        for namespace in NAMESPACES {
            let (name, export, snapshot) = (format!("{namespace}{short}"), export.to_owned(), snapshot.clone());
            out.push(Arc::new(ChangedSince { name, export, snapshot, engine: engine.clone() }));
        }
    }
    out
}

impl MetaContext for ChangedSince {
    fn name(&self) -> &str {
        &self.name
    }

    fn status(
        &self,
        _: &Arc<dyn BlockDevice>,
        offset: u64,
        len: u32,
        max: usize,
    ) -> BoxFuture<Result<Vec<Descriptor>>> {
        let (engine, export, snapshot) = (self.engine.clone(), self.export.clone(), self.snapshot.clone());
        Box::pin(async move {
            let extents = engine.changed_extents(&export, (&snapshot.0, snapshot.1), offset, len.into(), max).await?;
            let flags = |changed| if changed { CHANGED } else { 0 };
            Ok(extents.into_iter().map(|e| Descriptor { len: e.len as u32, flags: flags(e.mapped) }).collect())
        })
    }
}
