//! The two system calls by which a drive is asked: an NVMe admin command, and a SCSI command (which carries ATA commands too).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `NVME_IOCTL_ADMIN_CMD`, `_IOWR('N', 0x41, struct nvme_admin_cmd)` of linux/nvme_ioctl.h.
const NVME_IOCTL_ADMIN_CMD: libc::c_ulong = 0xc048_4e41;
/// `SG_IO` of scsi/sg.h.
const SG_IO: libc::c_ulong = 0x2285;
/// `SG_DXFER_NONE` and `SG_DXFER_FROM_DEV` of scsi/sg.h.
const SG_DXFER_NONE: i32 = -1;
const SG_DXFER_FROM_DEV: i32 = -3;

/// Milliseconds a drive has for one command before the kernel gives it up.
const COMMAND_MS: u32 = 5_000;
/// Bytes of sense data that are kept.
const SENSE_MAX: usize = 64;

/// `struct nvme_passthru_cmd` of linux/nvme_ioctl.h.
#[repr(C)]
#[derive(Default)]
struct NvmePassthru {
    opcode: u8,
    flags: u8,
    reserved: u16,
    nsid: u32,
    cdw2: u32,
    cdw3: u32,
    metadata: u64,
    addr: u64,
    metadata_len: u32,
    data_len: u32,
    cdw10: u32,
    cdw11: u32,
    cdw12: u32,
    cdw13: u32,
    cdw14: u32,
    cdw15: u32,
    timeout_ms: u32,
    result: u32,
}

const _: () = assert!(size_of::<NvmePassthru>() == 72);

/// `struct sg_io_hdr` of scsi/sg.h.
#[repr(C)]
struct SgIo {
    interface_id: i32,
    dxfer_direction: i32,
    cmd_len: u8,
    mx_sb_len: u8,
    iovec_count: u16,
    dxfer_len: u32,
    dxferp: *mut libc::c_void,
    cmdp: *const u8,
    sbp: *mut u8,
    timeout: u32,
    flags: u32,
    pack_id: i32,
    usr_ptr: *mut libc::c_void,
    status: u8,
    masked_status: u8,
    msg_status: u8,
    sb_len_wr: u8,
    host_status: u16,
    driver_status: u16,
    resid: i32,
    duration: u32,
    info: u32,
}

#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<SgIo>() == 88);

/// A drive that can be asked.
pub trait Channel {
    /// An NVMe admin command that reads into `data`.
    fn nvme(&self, opcode: u8, namespace: u32, dword_10: u32, data: &mut [u8]) -> io::Result<()>;
    /// A SCSI command that reads into `data`, or nothing when that is empty.
    fn scsi(&self, command: &[u8], data: &mut [u8]) -> io::Result<Answer>;
}

/// What a SCSI command gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Bytes read.
    pub len: usize,
    /// SCSI status; 0 is good.
    pub status: u8,
    /// Sense data; empty when there is none.
    pub sense: Vec<u8>,
}

impl Channel for File {
    fn nvme(&self, opcode: u8, namespace: u32, dword_10: u32, data: &mut [u8]) -> io::Result<()> {
        let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let mut command = NvmePassthru {
            opcode,
            nsid: namespace,
            addr: data.as_mut_ptr() as u64,
            data_len: data.len().try_into().map_err(too_long)?,
            cdw10: dword_10,
            timeout_ms: COMMAND_MS,
            ..NvmePassthru::default()
        };
        // SAFETY: the structure is the kernel's, and `addr` and `data_len` describe `data`, which is borrowed until the call returns.
        match unsafe { libc::ioctl(self.as_raw_fd(), NVME_IOCTL_ADMIN_CMD as _, &raw mut command) } {
            0 => Ok(()),
            status if status > 0 => {
                Err(io::Error::other(format!("the drive refuses the command (status {status:#x})")))
            }
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn scsi(&self, command: &[u8], data: &mut [u8]) -> io::Result<Answer> {
        let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let mut sense = [0; SENSE_MAX];
        let mut request = SgIo {
            interface_id: i32::from(b'S'),
            dxfer_direction: if data.is_empty() { SG_DXFER_NONE } else { SG_DXFER_FROM_DEV },
            cmd_len: command.len().try_into().map_err(too_long)?,
            mx_sb_len: SENSE_MAX as u8,
            iovec_count: 0,
            dxfer_len: data.len().try_into().map_err(too_long)?,
            dxferp: data.as_mut_ptr().cast(),
            cmdp: command.as_ptr(),
            sbp: sense.as_mut_ptr(),
            timeout: COMMAND_MS,
            flags: 0,
            pack_id: 0,
            usr_ptr: std::ptr::null_mut(),
            status: 0,
            masked_status: 0,
            msg_status: 0,
            sb_len_wr: 0,
            host_status: 0,
            driver_status: 0,
            resid: 0,
            duration: 0,
            info: 0,
        };
        // SAFETY: the structure is the kernel's; its pointers and lengths describe `command`, `data` and `sense`, which outlive the call. The
        // kernel reads the first and writes no further than the lengths of the others.
        if unsafe { libc::ioctl(self.as_raw_fd(), SG_IO as _, &raw mut request) } != 0 {
            return Err(io::Error::last_os_error());
        }
        if request.host_status != 0 {
            return Err(io::Error::other(format!(
                "the drive does not answer (host status {:#x})",
                request.host_status
            )));
        }
        let missing = usize::try_from(request.resid).unwrap_or(0);
        let told = usize::from(request.sb_len_wr).min(SENSE_MAX);
        Ok(Answer {
            len: data.len().saturating_sub(missing),
            status: request.status,
            sense: sense.get(..told).unwrap_or_default().to_vec(),
        })
    }
}
