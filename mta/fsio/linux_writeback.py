"""sync_file_range(2), and what a file system with a journal promises: fewer commits for the same safety.

start_writing() has the kernel begin to write a file and waits for nothing.  It makes nothing durable and nothing
depends on it: files that are then flushed together have all got their place on the disk, so the first one's journal
commit holds them all.  An error of this write is the flush's to report.

Journals is for a file and its new name, which need one commit instead of two.  The plain way is: flush the file, give
it its name, flush the directory.  On xfs, and on ext4 with a journal, the name is in a transaction that a flush of the
file waits for, so giving the name first would do; but then somebody else's commit may make the name durable before the
text, and a power cut leaves a torn message.  sync_file_range(2) closes that gap: it has the text written and its size
and place put into the running transaction, or an earlier one, without a commit.  The name comes after it, so it is
never durable without them.  That call alone makes nothing durable; the flush of the file does, after it.

State: what is known of each device.

See also: mta/fsio/fsio.py, sync_file_range(2), tests/powercut (scenario "mailboxes")
"""

import ctypes
import os

_WAIT_BEFORE, _WRITE, _WAIT_AFTER = 1, 2, 4  # SYNC_FILE_RANGE_*
_WRITE_AND_WAIT = _WAIT_BEFORE | _WRITE | _WAIT_AFTER
_EXT4, _XFS = 0xEF53, 0x58465342  # statfs(2)
_sync_file_range = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None)  # not in every C library
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def start_writing(fd: int) -> None:
    """Begin to write what is in memory of a file; a hint, so whatever goes wrong is left to the flush."""
    if _sync_file_range is not None:
        _sync_file_range(fd, 0, 0, _WRITE)


class Journals:
    """Owned by one process; by number of the device."""

    def __init__(self) -> None:
        self._known: dict[int, bool] = {}

    def written_out(self, fd: int) -> bool:
        """Write a file's text to the device and return True when it may get its name before it is flushed.

        False: this file system makes no such promise.  OSError: the text could not be written.
        """
        device = os.fstat(fd).st_dev
        if device not in self._known:
            self._known[device] = _sync_file_range is not None and names_follow_files(fd)
        if not self._known[device] or _sync_file_range is None:
            return False
        if _sync_file_range(fd, 0, 0, _WRITE_AND_WAIT):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return True


def names_follow_files(fd: int) -> bool:
    """Is a rename durable when the renamed file is flushed after it?  fd: of the directory; False when in doubt.

    On xfs, and on ext4 with a journal, the rename is part of a transaction that fsync of the file waits for
    (tests/powercut).  ext4 without a journal, and ext2, have the same number and promise nothing.
    """
    found = ctypes.create_string_buffer(256)  # struct statfs begins with f_type
    if ctypes.CDLL(None).fstatfs(fd, found):
        return False
    kind = ctypes.c_long.from_buffer(found).value
    if kind == _EXT4:
        device = os.fstat(fd).st_dev
        name = os.path.basename(os.path.realpath(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"))
        try:
            with open(f"/sys/fs/ext4/{name}/journal_task") as file:
                return file.read().strip().isdigit()
        except OSError:
            return False
    return kind == _XFS
