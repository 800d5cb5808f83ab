"""Journaled file systems in image files, and the moment their power fails.

A cut is FS_IOC_SHUTDOWN: the kernel stops the file system at once, and what it had not written is gone when it
is mounted again (which replays the journal).  What had reached the block device counts as durable, so this shows
missing fsyncs and wrong orders, not a disk that lies about its cache.  Needs root and a mount namespace of its own.

See also: ioctl_xfs_goingdown(2), fs/ext4/ioctl.c ext4_force_shutdown
"""

import ctypes
import enum
import fcntl
import os
import struct
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_FS_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
_BUSY_LIMIT = 30.0  # seconds for the last process to let go of a mount


class Cut(enum.IntEnum):
    """What is still written when the power fails."""

    SYNC = 0  # everything: like kill -9
    LOGFLUSH = 1  # the journal, and what data=ordered writes before it: names without their data elsewhere
    NOLOGFLUSH = 2  # nothing


@dataclass(frozen=True, slots=True)
class Kind:
    """A file system: how it is made and mounted; size in MiB of the (sparse) image."""

    mkfs: Sequence[str]
    options: str
    size: int


_EXT4 = ("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0")
_XFS = ("mkfs.xfs", "-q", "-f")
KINDS = {
    "ext4": Kind(_EXT4, "loop,data=ordered", 64),
    "ext4-writeback": Kind(_EXT4, "loop,data=writeback", 64),
    "xfs": Kind(_XFS, "loop", 320),
}


def unusable(kind: str) -> str:
    """Why this machine cannot have such a disk, "" when it can."""
    name = kind.partition("-")[0]
    known = {line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()}
    if name not in known and subprocess.run(["modprobe", name], capture_output=True, check=False).returncode:
        return f"the kernel has no {name}"
    program = KINDS[kind].mkfs[0]
    found = any(os.access(f"{place}/{program}", os.X_OK) for place in ("/usr/sbin", "/sbin", "/usr/bin"))
    return "" if found else f"no {program} (apt-get install {name}progs)".replace("ext4progs", "e2fsprogs")


class Disk:
    """An image file and where it is mounted."""

    def __init__(self, kind: str, image: Path, mountpoint: Path) -> None:
        self.kind, self.image, self.mountpoint = kind, image, mountpoint
        mountpoint.mkdir(parents=True, exist_ok=True)

    def make(self) -> None:
        """A new file system, mounted."""
        kind = KINDS[self.kind]
        with self.image.open("wb") as file:
            file.truncate(kind.size << 20)
        subprocess.run([*kind.mkfs, self.image], check=True, timeout=60)
        self.mount()

    def mount(self) -> None:
        """Mount it; after a cut this replays the journal."""
        command = ["mount", "-o", KINDS[self.kind].options, str(self.image), str(self.mountpoint)]
        subprocess.run(command, check=True, timeout=60)

    def sync(self) -> None:
        """syncfs(2): all that was done is on the device."""
        fd = os.open(self.mountpoint, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if ctypes.CDLL(None, use_errno=True).syncfs(fd):
                raise OSError(ctypes.get_errno(), "syncfs")
        finally:
            os.close(fd)

    def cut(self, how: Cut) -> None:
        """The power fails: from now on every write is EIO."""
        fd = os.open(self.mountpoint, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _FS_IOC_SHUTDOWN, struct.pack("=I", how))
        finally:
            os.close(fd)

    def umount(self) -> None:
        """Unmount, dropping what is in memory; waits a little for descriptors of processes that were killed."""
        deadline = time.monotonic() + _BUSY_LIMIT
        while True:
            done = subprocess.run(["umount", self.mountpoint], capture_output=True, text=True, check=False, timeout=60)
            if done.returncode == 0:
                return
            if time.monotonic() > deadline:
                raise RuntimeError(done.stderr.strip())
            time.sleep(0.01)

    def power_on(self) -> None:
        """What a boot does."""
        self.umount()
        self.mount()
