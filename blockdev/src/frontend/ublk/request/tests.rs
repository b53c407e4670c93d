use std::sync::Arc;

use bytes::Bytes;
use libublk::sys;
use parking_lot::Mutex;

use super::*;
use crate::env::BoxFuture;
use crate::frontend::Extent;
use crate::frontend::memory::MemoryDevice;

const MIB: u64 = 1 << 20;

fn geometry() -> Geometry {
    Geometry { size: 8 * MIB, block_size: 4096, optimal_io: 128 << 10, read_only: false }
}

fn described(op_flags: u32, start_sector: u64, nr_sectors: u32) -> sys::ublksrv_io_desc {
    sys::ublksrv_io_desc { op_flags, start_sector, nr_sectors, ..Default::default() }
}

#[test]
fn descriptors_become_requests() {
    let decode = |op, start, count| Request::decode(&described(op, start, count), &geometry(), 1 << 20);
    let write = decode(sys::UBLK_IO_OP_WRITE | sys::UBLK_IO_F_FUA, 8, 16).unwrap();
    assert_eq!(write, Request { operation: Operation::Write, offset: 4096, len: 8192, fua: true });
    assert_eq!(write.cost(), 8192);
    // A flush says nothing of place and length, whatever is there.
    let flush = decode(sys::UBLK_IO_OP_FLUSH, u64::MAX, 7).unwrap();
    assert_eq!((flush.operation, flush.len), (Operation::Flush, 0));
    let whole = decode(sys::UBLK_IO_OP_DISCARD, 0, (8 * MIB / 512) as u32).unwrap();
    assert_eq!((whole.operation, whole.len, whole.cost()), (Operation::Discard, 8 * MIB, 0));
    let zeroes = decode(sys::UBLK_IO_OP_WRITE_ZEROES | sys::UBLK_IO_F_NOUNMAP, 1, 1).unwrap();
    assert_eq!((zeroes.operation, zeroes.offset, zeroes.len), (Operation::WriteZeroes, 512, 512));
}

#[test]
fn what_the_driver_should_not_send_is_refused() {
    let kind =
        |op, start, count| Request::decode(&described(op, start, count), &geometry(), 1 << 20).map_err(|e| e.kind());
    let end = 8 * MIB / 512;
    assert_eq!(kind(sys::UBLK_IO_OP_READ, end, 1), Err(ErrorKind::InvalidArgument));
    assert_eq!(kind(sys::UBLK_IO_OP_READ, u64::MAX, 8), Err(ErrorKind::InvalidArgument));
    assert_eq!(kind(sys::UBLK_IO_OP_WRITE, u64::MAX / 512, 8), Err(ErrorKind::InvalidArgument));
    assert_eq!(kind(sys::UBLK_IO_OP_WRITE, 0, 2049), Err(ErrorKind::InvalidArgument));
    assert!(kind(sys::UBLK_IO_OP_WRITE, 0, 2048).is_ok());
    assert_eq!(kind(sys::UBLK_IO_OP_WRITE_SAME, 0, 8), Err(ErrorKind::Unsupported));
    assert_eq!(kind(sys::UBLK_IO_OP_ZONE_RESET, 0, 8), Err(ErrorKind::Unsupported));
    let read_only = Geometry { read_only: true, ..geometry() };
    let refused = Request::decode(&described(sys::UBLK_IO_OP_DISCARD, 0, 8), &read_only, 1 << 20);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::ReadOnly);
    assert!(Request::decode(&described(sys::UBLK_IO_OP_READ, 0, 8), &read_only, 1 << 20).is_ok());
}

/// Data that the host wrote, or was given.
#[derive(Default)]
struct Host {
    writes: Bytes,
    given: Mutex<Vec<u8>>,
}

impl Transfer for Host {
    fn take(&self, len: usize) -> Result<Bytes> {
        assert_eq!(self.writes.len(), len);
        Ok(self.writes.clone())
    }

    fn give(&self, data: &[u8]) -> Result<()> {
        self.given.lock().extend_from_slice(data);
        Ok(())
    }
}

#[tokio::test]
async fn requests_do_what_they_say() {
    let device: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new(8 * MIB));
    let run = |operation, offset, len, host: Host| {
        let device = Arc::clone(&device);
        async move {
            Request { operation, offset, len, fua: false }.run(&device, false, &host).await.unwrap();
            host.given.into_inner()
        }
    };
    let write = |byte: u8, len: usize| Host { writes: vec![byte; len].into(), ..Host::default() };
    run(Operation::Write, 4096, 8192, write(7, 8192)).await;
    assert_eq!(run(Operation::Read, 4096, 8192, Host::default()).await, vec![7; 8192]);
    run(Operation::WriteZeroes, 4096, 512, Host::default()).await;
    let read = run(Operation::Read, 4096, 1024, Host::default()).await;
    assert!(read[..512].iter().all(|b| *b == 0) && read[512..].iter().all(|b| *b == 7));
    run(Operation::Discard, 8192, 4096, Host::default()).await;
    assert_eq!(run(Operation::Read, 8192, 4096, Host::default()).await, vec![0; 4096]);
    run(Operation::Flush, 0, 0, Host::default()).await;
}

/// Notes with what writes and zeroes come.
struct Noting(MemoryDevice, Mutex<Vec<bool>>);

impl BlockDevice for Noting {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn read(&self, offset: u64, len: usize) -> BoxFuture<Result<Bytes>> {
        self.0.read(offset, len)
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> BoxFuture<Result<()>> {
        self.1.lock().push(fua);
        self.0.write(offset, data, fua)
    }

    fn flush(&self) -> BoxFuture<Result<()>> {
        self.0.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> BoxFuture<Result<()>> {
        self.0.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, fua: bool) -> BoxFuture<Result<()>> {
        self.1.lock().push(fua);
        self.0.write_zeroes(offset, len, fua)
    }

    fn compare_and_write(&self, offset: u64, expected: Bytes, new: Bytes) -> BoxFuture<Result<bool>> {
        self.0.compare_and_write(offset, expected, new)
    }

    fn block_status(&self, offset: u64, len: u64, max: usize) -> BoxFuture<Result<Vec<Extent>>> {
        self.0.block_status(offset, len, max)
    }

    fn watch_size(&self) -> tokio::sync::watch::Receiver<u64> {
        self.0.watch_size()
    }
}

#[tokio::test]
async fn only_what_the_host_or_the_device_wants_waits_for_the_drives() {
    for (through, fua) in [(false, false), (false, true), (true, false), (true, true)] {
        let noting = Arc::new(Noting(MemoryDevice::new(8 * MIB), Mutex::default()));
        let device: Arc<dyn BlockDevice> = noting.clone();
        for operation in [Operation::Write, Operation::WriteZeroes] {
            let host = Host { writes: vec![1; 4096].into(), ..Host::default() };
            Request { operation, offset: 0, len: 4096, fua }.run(&device, through, &host).await.unwrap();
        }
        assert_eq!(*noting.1.lock(), [through || fua; 2]);
    }
}
