//! What the tests of this module share.

use std::sync::Arc;

use super::{CreateOptions, Pool, PoolConfig};
use crate::disk::{Disk, MemoryDisk};
use crate::env::Env;
use crate::report::Tolerance;

/// An empty pool on three disks in memory, which survives the failure of one.
pub async fn empty_pool(env: Arc<dyn Env>) -> Pool {
    let disks: Vec<Arc<dyn Disk>> =
        (0..3).map(|i| Arc::new(MemoryDisk::new(format!("d{i}"), 64 << 20)) as Arc<dyn Disk>).collect();
    let options = CreateOptions {
        name: "tank".into(),
        tolerance: Tolerance::Single,
        chunk_size: None,
        strip_size: Some(16 << 10),
        force: false,
    };
    Pool::create(env.clone(), disks.clone(), options).await.unwrap();
    Pool::open(env, disks, PoolConfig { memory: 32 << 20, ..PoolConfig::default() }).await.unwrap()
}
