"""File handles, as file servers give them to their clients: handles.py get|open|stale DIRECTORY FILE.

`get` prints the handle of FILE, `open` reads a handle and prints what is in the file it leads to, `stale` reads one that must lead nowhere."""

import ctypes
import errno
import os
import sys

libc = ctypes.CDLL(None, use_errno=True)
verb, directory, name = sys.argv[1:]
AT_FDCWD = -100


class Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("handle", ctypes.c_char * 128)]


if verb == "get":
    handle, mount = Handle(bytes=128), ctypes.c_int()
    path = os.fsencode(os.path.join(directory, name))
    if libc.name_to_handle_at(AT_FDCWD, path, ctypes.byref(handle), ctypes.byref(mount), 0) != 0:
        raise OSError(ctypes.get_errno(), "name_to_handle_at")
    print(bytes(handle)[: 8 + handle.bytes].hex())
    sys.exit()

handle = Handle.from_buffer_copy(bytes.fromhex(name).ljust(ctypes.sizeof(Handle), b"\0"))
mount = os.open(directory, os.O_RDONLY)
file = libc.open_by_handle_at(mount, ctypes.byref(handle), os.O_RDONLY)
if verb == "stale":
    assert file < 0 and ctypes.get_errno() == errno.ESTALE, (file, ctypes.get_errno())
elif file < 0:
    raise OSError(ctypes.get_errno(), "open_by_handle_at")
else:
    print(os.read(file, 1000).decode(), end="")
