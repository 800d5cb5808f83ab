"""What a file system with a journal promises, so that a file and its new name need one commit instead of two.

The plain way is: flush the file, give it its name, flush the directory.  On xfs, and on ext4 with a journal, the name
is in a transaction that a flush of the file waits for, so giving the name first would do; but then somebody else's
commit may make the name durable before the text, and a power cut leaves a torn message.  sync_file_range(2) closes
that gap: it has the text written and its size and place put into the running transaction, or an earlier one, without
a commit.  The name comes after it, so it is never durable without them.  That call alone makes nothing durable; the
flush of the file does, after it.

State: what is known of each device.

See also: mta/fsio.py names_follow_files, sync_file_range(2), tests/powercut (scenario "mailboxes")
"""

import ctypes
import os

from mta.fsio import names_follow_files

_WRITE_AND_WAIT = 1 | 2 | 4  # SYNC_FILE_RANGE_WAIT_BEFORE, _WRITE, _WAIT_AFTER


class Journals:
    """Owned by one process; by number of the device."""

    def __init__(self) -> None:
        self._known: dict[int, bool] = {}
        self._call = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None)
        if self._call is not None:
            self._call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)

    def written_out(self, fd: int) -> bool:
        """Write a file's text to the device and return True when it may get its name before it is flushed.

        False: this file system makes no such promise.  OSError: the text could not be written.
        """
        device = os.fstat(fd).st_dev
        if device not in self._known:
            self._known[device] = self._call is not None and names_follow_files(fd)
        if not self._known[device] or self._call is None:
            return False
        if self._call(fd, 0, 0, _WRITE_AND_WAIT):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return True
