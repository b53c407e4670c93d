"""Names, extended attributes and trees that file servers stumble over: hostile.py DIRECTORY [again]."""

import errno
import os
import sys

base = os.fsencode(sys.argv[1]) + b"/hostile"
again = len(sys.argv) > 2

NAMES = [
    b"a" * 255, b"new\nline", b"\xff\xfe\x80", b" ", b"-rf", b"*", b"\\", "ü漢🙂".encode(), b".hidden", b"a b\tc", b"...",
    b"\x01\x02\x7f", b"con", b"A" * 200, b"a",
]  # fmt: skip
DEEP = b"d" * 100
DEPTH = 300
MANY = 20_000


def fails(code, what, *arguments, **keywords):
    """Fails the test unless the call fails with this errno."""
    try:
        what(*arguments, **keywords)
    except OSError as error:
        assert error.errno == code, (error, what, arguments[:1])
        return
    raise AssertionError(f"{what} did not fail")


def content(name):
    return name * 7


if not again:
    os.mkdir(base)
    os.chdir(base)
    for name in NAMES:
        with open(name, "xb") as file:
            file.write(content(name))
    fails(errno.ENAMETOOLONG, os.mkdir, b"a" * 256)
    fails(errno.ENAMETOOLONG, os.rename, b"a", b"b" * 256)
    fails(errno.EEXIST, os.mkdir, b"a")

    # Links that lead nowhere, to themselves, and as long as can be.
    os.symlink(b"loop2", b"loop1")
    os.symlink(b"loop1", b"loop2")
    fails(errno.ELOOP, os.stat, b"loop1")
    os.symlink(b"x" * 4095, b"long")
    fails(errno.ENAMETOOLONG, os.symlink, b"x" * 4096, b"longer")
    os.symlink(b"nowhere", b"dangling")
    fails(errno.ENOENT, os.stat, b"dangling")

    # Extended attributes up to what Linux allows.
    os.setxattr(b"a", b"user.large", b"v" * 65536)
    fails(errno.E2BIG, os.setxattr, b"a", b"user.larger", b"v" * 65537)
    fails(errno.ERANGE, os.setxattr, b"a", b"user." + b"n" * 251, b"")
    fails(errno.ENODATA, os.getxattr, b"a", b"user.none")
    fails(errno.EEXIST, os.setxattr, b"a", b"user.large", b"", os.XATTR_CREATE)
    fails(errno.ENODATA, os.setxattr, b"a", b"user.none", b"", os.XATTR_REPLACE)
    count = 0
    try:
        while True:
            os.setxattr(b"*", b"user.%0240d" % count, b"%d" % count)
            count += 1
    except OSError as error:
        assert error.errno == errno.ENOSPC and count > 200, (error, count)

    # A deep tree, and a directory moved below itself.
    for _ in range(DEPTH):
        os.mkdir(DEEP)
        os.chdir(DEEP)
    with open(b"bottom", "xb") as file:
        file.write(b"here")
    os.chdir(base)
    fails(errno.EINVAL, os.rename, DEEP, DEEP + b"/" + DEEP + b"/below")
    fails(errno.ENOTEMPTY, os.rmdir, DEEP)

    # A large directory, listed while it changes: what stays is there once.
    os.mkdir(b"many")
    for i in range(MANY):
        os.close(os.open(b"many/%d" % i, os.O_CREAT | os.O_EXCL))
    seen = []
    with os.scandir(b"many") as entries:
        for n, entry in enumerate(entries):
            seen.append(entry.name)
            if n % 10 == 0:
                victim = b"many/gone-%d" % n
                os.close(os.open(victim, os.O_CREAT))
                os.unlink(victim)
    stays = [name for name in seen if not name.startswith(b"gone")]
    assert len(stays) == len(set(stays)) == MANY, (len(stays), len(set(stays)))

    # Sparse files as large as can be, and holes.
    with open(b"sparse", "xb") as file:
        os.truncate(file.fileno(), 1 << 60)
        os.pwrite(file.fileno(), b"end", (1 << 60) - 3)
        os.pwrite(file.fileno(), b"middle", 1 << 50)
    fails(errno.EFBIG, os.truncate, b"sparse", (1 << 63) - 1)
    os.sync()

os.chdir(base)
for name in NAMES:
    with open(name, "rb") as file:
        assert file.read() == content(name), name
listed = set(os.listdir(b"."))
assert set(NAMES) | {b"loop1", b"loop2", b"long", b"dangling", DEEP, b"many", b"sparse"} == listed, listed
assert os.readlink(b"long") == b"x" * 4095
assert os.getxattr(b"a", b"user.large") == b"v" * 65536
assert all(os.getxattr(b"*", b"user.%0240d" % i) == b"%d" % i for i in range(len(os.listxattr(b"*"))))
assert len(os.listdir(b"many")) == MANY
for _ in range(DEPTH):
    os.chdir(DEEP)
with open(b"bottom", "rb") as file:
    assert file.read() == b"here"
os.chdir(base)
with open(b"sparse", "rb") as file:
    fd = file.fileno()
    assert os.fstat(fd).st_size == 1 << 60 and os.fstat(fd).st_blocks <= 32, os.fstat(fd)
    assert os.pread(fd, 6, 1 << 50) == b"middle" and os.pread(fd, 8, (1 << 60) - 3) == b"end"
    assert os.pread(fd, 4096, 1 << 40) == bytes(4096)
    assert os.lseek(fd, 0, os.SEEK_DATA) == 1 << 50 and os.lseek(fd, 1 << 50, os.SEEK_HOLE) == (1 << 50) + 4096
if again:
    import shutil

    shutil.rmtree(base)
print("all as it should be")
