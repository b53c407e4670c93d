#!/usr/bin/env python3
"""Small synchronous writes to several files at once: what the machine allows a mirrored log.

Each round writes one block to every file and waits until it is durable on all of them; then the next round begins. The
kernel does the writes of a round in parallel (Linux AIO with O_DIRECT), one thread submits them. Positions go round the file.

  rawsync.py --dir DIR --files 3 [--bs 4096] [--seconds 5] [--method dsync|fdatasync] [--size 64m]

dsync: one write with RWF_DSYNC a file. fdatasync: a write, then fdatasync, a file. Prints JSON: rounds a second (iops),
their latency in microseconds, bytes of one copy.
"""

import argparse
import ctypes
import errno
import json
import mmap
import os
import platform
import sys
import time
from pathlib import Path

# Numbers of io_setup, io_destroy, io_submit, io_getevents.
SYSCALLS = {"x86_64": (206, 207, 209, 208), "aarch64": (0, 1, 2, 4)}
PWRITE, FDSYNC = 1, 3
RWF_DSYNC = 2

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


class Iocb(ctypes.Structure):
    """struct iocb of <linux/aio_abi.h>, little-endian."""

    _fields_ = [("data", ctypes.c_uint64), ("key", ctypes.c_uint32), ("rw_flags", ctypes.c_int32),
                ("opcode", ctypes.c_uint16), ("priority", ctypes.c_int16), ("fd", ctypes.c_uint32),
                ("buffer", ctypes.c_uint64), ("length", ctypes.c_uint64), ("offset", ctypes.c_int64),
                ("reserved", ctypes.c_uint64), ("flags", ctypes.c_uint32), ("event_fd", ctypes.c_uint32)]


class Event(ctypes.Structure):
    """struct io_event."""

    _fields_ = [("data", ctypes.c_uint64), ("iocb", ctypes.c_uint64), ("result", ctypes.c_int64), ("more", ctypes.c_int64)]


def call(number, *arguments):
    while True:
        result = libc.syscall(ctypes.c_long(number), *arguments)
        if result >= 0:
            return result
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


class Ring:
    """A context of Linux AIO that runs one batch at a time."""

    def __init__(self, files):
        numbers = SYSCALLS.get(platform.machine())
        if not numbers or sys.byteorder != "little":
            raise OSError(errno.ENOSYS, f"no system call numbers known for {platform.machine()}")
        self.setup, self.destroy, self.submit, self.getevents = numbers
        self.context = ctypes.c_ulong(0)
        call(self.setup, ctypes.c_uint(files), ctypes.byref(self.context))
        self.blocks = (Iocb * files)()
        self.pointers = (ctypes.POINTER(Iocb) * files)(*(ctypes.pointer(block) for block in self.blocks))
        self.events = (Event * files)()
        self.files = files

    def batch(self, length):
        """Submits all blocks and waits for all; a write must have written `length` bytes, a sync gives 0."""
        done = 0
        while done < self.files:
            rest = ctypes.cast(ctypes.byref(self.pointers, done * ctypes.sizeof(ctypes.c_void_p)), ctypes.c_void_p)
            done += call(self.submit, self.context, ctypes.c_long(self.files - done), rest)
        done = 0
        while done < self.files:
            least = ctypes.c_long(self.files - done)
            done_now = call(self.getevents, self.context, least, least, self.events, ctypes.c_void_p(0))
            for event in self.events[:done_now]:
                if event.result != length:
                    code = -event.result if event.result < 0 else errno.EIO
                    raise OSError(code, f"a write ended with {event.result}: {os.strerror(code)}")
            done += done_now

    def close(self):
        call(self.destroy, self.context)


def measure(directory, files, block, seconds, method, size):
    """Runs the rounds; the figures as a dictionary. The files are made, written once (so that no allocation is measured)
    and removed."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"rawsync-{i}.img" for i in range(files)]
    memory = mmap.mmap(-1, 1 << 20)
    memory.write(os.urandom(1 << 20))
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    handles, ring = [], None
    try:
        for path in paths:
            handles.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600))
            for at in range(0, size, 1 << 20):
                os.pwrite(handles[-1], memory, at)
            os.fsync(handles[-1])
        ring = Ring(files)
        latencies, begin = [], time.perf_counter()
        now = begin
        while now - begin < seconds:
            offset = len(latencies) * block % size
            for slot, handle in zip(ring.blocks, handles):
                slot.opcode, slot.fd, slot.buffer, slot.length, slot.offset = PWRITE, handle, address, block, offset
                slot.rw_flags = RWF_DSYNC if method == "dsync" else 0
            ring.batch(block)
            if method == "fdatasync":
                for slot, handle in zip(ring.blocks, handles):
                    slot.opcode, slot.fd, slot.buffer, slot.length, slot.offset = FDSYNC, handle, 0, 0, 0
                ring.batch(0)
            before, now = now, time.perf_counter()
            latencies.append(now - before)
        elapsed = now - begin
    finally:
        if ring:
            ring.close()
        for handle in handles:
            os.close(handle)
        for path in paths:
            path.unlink(missing_ok=True)
    latencies.sort()
    rounds = len(latencies)
    at = lambda share: latencies[min(rounds - 1, int(rounds * share))] * 1e6
    return {"iops": rounds / elapsed, "ios": rounds, "bytes": rounds * block, "seconds": elapsed,
            "mb_s": rounds * block / 1e6 / elapsed, "write_p50_us": at(0.5), "write_p99_us": at(0.99),
            "fio_cpu_s": 0.0, "files": files, "method": method}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--files", type=int, default=3)
    parser.add_argument("--bs", type=int, default=4096)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--method", choices=["dsync", "fdatasync"], default="dsync")
    parser.add_argument("--size", type=int, default=64, help="MiB of each file")
    arguments = parser.parse_args()
    if not 1 <= arguments.files <= 64 or arguments.bs % 4096 or not 4096 <= arguments.bs <= 1 << 20 or arguments.size < 1:
        parser.error("1 to 64 files, blocks of 4096 bytes to 1 MiB in steps of 4096, files of at least 1 MiB")
    try:
        figures = measure(arguments.dir, arguments.files, arguments.bs, arguments.seconds, arguments.method,
                          arguments.size << 20)
    except OSError as error:
        sys.exit(f"rawsync: {error.strerror or error}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
