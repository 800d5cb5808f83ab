"""A disk in memory with a page cache, and what a power cut may leave of it.

Two images are kept: what programs see (volatile) and what is on the device (durable).  Between them lie dirty pages
of files and a journal of operations on names.  cut() makes the durable image the only one, after it has taken over
any part of what lies between that a file system may have written on its own:

ext4   names (and modes, times) in the order in which they were made, a prefix of them; a file grows only together
       with its data; flushing any file flushes all names.
any    each operation on names by itself, as long as what it builds on is there; pages absent, zeroed or torn at
       4096; a file's size with or without its data; flushing a file says nothing about its names, except in
       `lenient` directories: nobody but their owner could flush those (maildrop, mode 3733).

A rename is one operation in both: no file system in use loses a file by it.  What is older than WRITEBACK seconds
is on the device in any case, as with the kernel's dirty_expire_centisecs.

See also: mta/fsio/fsio.py, fsync(2), rename(2)
"""

import errno
import heapq
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

PAGE = 4096
WRITEBACK = 30.0  # seconds until the kernel writes by itself
FILE, DIRECTORY = 0o100000, 0o040000
Meta = tuple[int, int, int]  # mode with type, mtime and ctime in ns


def error(number: int, path: str = "") -> OSError:
    """The OSError of a failed call."""
    return OSError(number, os.strerror(number), path) if path else OSError(number, os.strerror(number))


@dataclass(eq=False, slots=True)
class Inode:
    """A file or directory.  names: None for a file.  dirty: (when, offset, data) not flushed; data None = truncated.

    lost: pages whose flush failed: they look clean and are not on the device.
    """

    ino: int
    mode: int
    uid: int
    gid: int
    mtime: int
    ctime: int
    data: bytearray = field(default_factory=bytearray)
    names: "dict[str, Inode] | None" = None
    nlink: int = 0
    opened: int = 0
    lock: object = None
    durable: bytes = b""
    durable_meta: Meta = (0, 0, 0)
    durable_names: "dict[str, Inode]" = field(default_factory=dict)
    durable_links: int = 0
    dirty: list[tuple[float, int, bytes | None]] = field(default_factory=list)
    changed: float = 0.0  # when mode or times last changed without a flush, 0 = they are flushed
    lost: set[int] = field(default_factory=set)

    @property
    def is_directory(self) -> bool:
        return self.names is not None

    @property
    def meta(self) -> Meta:
        """As programs see it."""
        return self.mode, self.mtime, self.ctime


@dataclass(eq=False, slots=True)
class Operation:
    """On names: entries that go and come, as (directory, name, file); with it, or alone, mode and times of a file."""

    when: float
    gone: tuple[tuple[Inode, str, Inode], ...] = ()
    come: tuple[tuple[Inode, str, Inode], ...] = ()
    meta: tuple[Inode, Meta] | None = None

    def touches(self) -> Iterator[object]:
        """What makes two operations depend on each other: entries and files."""
        for directory, name, inode in (*self.gone, *self.come):
            yield directory.ino, name
            yield inode


class Disk:
    """One file system.  now: seconds for stamps; monotonic: seconds for the age of what is dirty."""

    def __init__(
        self, rng: random.Random, now: Callable[[], float], monotonic: Callable[[], float], *, ordered: bool,
        capacity: int = 1 << 20, device: int = 1,
    ) -> None:  # fmt: skip
        """capacity: in pages."""
        self.rng, self.now, self.monotonic, self.ordered = rng, now, monotonic, ordered
        self.capacity, self.device = capacity, device
        self.used = 0
        self.journal: list[Operation] = []
        self._free: list[int] = []
        self._next = 2
        self.dirty: dict[Inode, None] = {}
        self.root = self._inode(DIRECTORY | 0o755, 0, 0)
        self.root.nlink = self.root.durable_links = 1
        self.flushed: Callable[[Inode], None] = lambda _: None  # told of each file that was made durable
        self.locks: dict[Inode, None] = {}
        self.lenient: set[Inode] = set()

    # -- inodes -----------------------------------------------------------------------------------

    def _inode(self, mode: int, uid: int, gid: int) -> Inode:
        if self._free:
            number = heapq.heappop(self._free)
        else:
            number, self._next = self._next, self._next + 1
        stamp = self.stamp()
        made = Inode(number, mode, uid, gid, stamp, stamp, durable_meta=(mode, stamp, stamp))
        if mode & DIRECTORY:
            made.names = {}
        return made

    def stamp(self) -> int:
        """Now in ns, in the steps of a kernel's clock (4 ms)."""
        return int(self.now() * 250) * 4_000_000

    def forget(self, inode: Inode) -> None:
        """Free the room of what has neither name nor descriptor; its content stays: a cut may bring it back."""
        if inode.nlink == 0 and inode.opened == 0:
            self.used -= pages(len(inode.data))
            if self.ordered or inode.durable_links == 0:
                heapq.heappush(self._free, inode.ino)

    def find(self, path: str) -> Inode:
        """The inode of a path; OSError."""
        at = self.root
        for part in path.split("/"):
            if not part:
                continue
            if at.names is None:
                raise error(errno.ENOTDIR, path)
            found = at.names.get(part)
            if found is None:
                raise error(errno.ENOENT, path)
            at = found
        return at

    def exists(self, path: str) -> bool:
        """Is there something of this name?"""
        try:
            self.find(path)
        except OSError:
            return False
        return True

    def parent(self, path: str) -> tuple[Inode, str]:
        """(directory, last name); OSError."""
        folder, _, name = path.rstrip("/").rpartition("/")
        found = self.find(folder)
        if found.names is None:
            raise error(errno.ENOTDIR, path)
        return found, name

    # -- names ------------------------------------------------------------------------------------

    def _log(self, operation: Operation) -> None:
        self.journal.append(operation)

    def create(self, path: str, mode: int, uid: int, gid: int, *, directory: bool = False) -> Inode:
        """A new file or directory that must not exist."""
        folder, name = self.parent(path)
        assert folder.names is not None
        if name in folder.names:
            raise error(errno.EEXIST, path)
        if self.used >= self.capacity:
            raise error(errno.ENOSPC, path)
        made = self._inode((DIRECTORY if directory else FILE) | mode, uid, gid)
        self._enter(folder, name, made)
        return made

    def _enter(self, folder: Inode, name: str, inode: Inode) -> None:
        assert folder.names is not None
        folder.names[name] = inode
        inode.nlink += 1
        self._log(Operation(self.monotonic(), come=((folder, name, inode),)))

    def anonymous(self, mode: int, uid: int, gid: int) -> Inode:
        """A file without a name (O_TMPFILE)."""
        return self._inode(FILE | mode, uid, gid)

    def link(self, inode: Inode, path: str) -> None:
        """A further name."""
        folder, name = self.parent(path)
        assert folder.names is not None
        if name in folder.names:
            raise error(errno.EEXIST, path)
        inode.ctime = self.stamp()
        self._enter(folder, name, inode)
        self._meta_changed(inode)

    def unlink(self, path: str) -> None:
        """Take a name away."""
        folder, name = self.parent(path)
        assert folder.names is not None
        found = folder.names.get(name)
        if found is None:
            raise error(errno.ENOENT, path)
        if found.is_directory:
            raise error(errno.EISDIR, path)
        del folder.names[name]
        found.nlink -= 1
        self._log(Operation(self.monotonic(), gone=((folder, name, found),)))
        self.forget(found)

    def rename(self, source: str, target: str) -> None:
        """One name for another, over what is there."""
        folder, name = self.parent(source)
        to, new = self.parent(target)
        assert folder.names is not None and to.names is not None
        found = folder.names.get(name)
        if found is None:
            raise error(errno.ENOENT, source)
        victim = to.names.get(new)
        if victim is found:
            return
        del folder.names[name]
        to.names[new] = found
        found.ctime = self.stamp()
        gone = ((folder, name, found), *(((to, new, victim),) if victim else ()))
        self._log(Operation(self.monotonic(), gone=gone, come=((to, new, found),)))
        self._meta_changed(found)
        if victim:
            victim.nlink -= 1
            self.forget(victim)

    def set_meta(self, inode: Inode, *, mode: int | None = None, mtime: int | None = None) -> None:
        """chmod(2), utime(2)."""
        if mode is not None:
            inode.mode = inode.mode & ~0o7777 | mode
        if mtime is not None:
            inode.mtime = mtime
        inode.ctime = self.stamp()
        self._meta_changed(inode)

    def _meta_changed(self, inode: Inode) -> None:
        self.dirty[inode] = None
        if self.ordered:
            self._log(Operation(self.monotonic(), meta=(inode, inode.meta)))
        elif not inode.changed:
            inode.changed = self.monotonic()

    # -- content ----------------------------------------------------------------------------------

    def write(self, inode: Inode, data: bytes, offset: int) -> int:
        """Write what there is room for; ENOSPC when that is nothing."""
        end = offset + len(data)
        grown = pages(end) - pages(len(inode.data))
        if grown > 0 and self.used + grown > self.capacity:
            room = (self.capacity - self.used + pages(len(inode.data))) * PAGE - offset
            if room <= 0:
                raise error(errno.ENOSPC)
            data = data[:room]
            end = offset + len(data)
            grown = pages(end) - pages(len(inode.data))
        if grown > 0:
            self.used += grown
        if offset > len(inode.data):
            inode.data.extend(bytes(offset - len(inode.data)))
        inode.data[offset:end] = data
        inode.mtime = inode.ctime = self.stamp()
        inode.dirty.append((self.monotonic(), offset, bytes(data)))
        inode.lost.difference_update(range(offset // PAGE, pages(end)))
        self.dirty[inode] = None
        return len(data)

    def truncate(self, inode: Inode, size: int) -> None:
        """Cut off, or extend with zeros."""
        self.used += pages(size) - pages(len(inode.data))
        if size <= len(inode.data):
            del inode.data[size:]
        else:
            inode.data.extend(bytes(size - len(inode.data)))
        inode.dirty.append((self.monotonic(), size, None))
        self.dirty[inode] = None

    # -- flushing ---------------------------------------------------------------------------------

    def fsync(self, inode: Inode, *, data_only: bool = False) -> None:
        """Make a file or directory durable."""
        if inode.is_directory:
            self._flush_names(None if self.ordered else inode)
            return
        grew = len(inode.data) != len(inode.durable)
        self._flush_data(inode)
        if self.ordered and (grew or not data_only):
            self._flush_names(None)
        elif self.lenient:
            self._flush_own_name(inode)
        if not data_only:
            inode.durable_meta, inode.changed = inode.meta, 0.0
        if not inode.changed:
            self.dirty.pop(inode, None)
        self.flushed(inode)

    def _flush_data(self, inode: Inode) -> None:
        if not inode.lost:
            inode.durable = bytes(inode.data)
        else:
            kept = bytearray(inode.data)
            for page in inode.lost:
                old = inode.durable[page * PAGE : (page + 1) * PAGE]
                here = kept[page * PAGE : (page + 1) * PAGE]
                kept[page * PAGE : page * PAGE + len(here)] = old[: len(here)].ljust(len(here), b"\0")
            inode.durable = bytes(kept)
        inode.dirty.clear()

    def sync(self) -> None:
        """Make everything durable."""
        self._flush_names(None)
        for inode in list(self.dirty):
            self.fsync(inode)

    def fail_flush(self, inode: Inode) -> None:
        """A flush that ends in EIO: the kernel gives the dirty pages up and calls them clean."""
        if inode.is_directory:
            return
        for _, offset, data in inode.dirty:
            if data is not None:
                inode.lost.update(range(offset // PAGE, pages(offset + len(data))))
        inode.dirty.clear()

    def _flush_names(self, directory: Inode | None) -> None:
        """All names (None), or those of one directory with whatever they build on."""
        if directory is None:
            for operation in self.journal:
                self._apply(operation)
            self.journal.clear()
            return
        needed: set[object] = {directory}
        chosen, left = [], []
        for operation in reversed(self.journal):
            touched = list(operation.touches())
            here = any(d is directory for d, _, _ in (*operation.gone, *operation.come))
            if here or not needed.isdisjoint(touched):
                needed.update(touched)
                needed.update(d for d, _, _ in (*operation.gone, *operation.come))  # and whoever made those
                chosen.append(operation)
            else:
                left.append(operation)
        for operation in reversed(chosen):
            self._apply(operation)
        self.journal = left[::-1]

    def _flush_own_name(self, inode: Inode) -> None:
        """The names of one file, if they are all in lenient directories."""
        own = [o for o in self.journal if any(i is inode for _, _, i in (*o.gone, *o.come))]
        if all(d in self.lenient for o in own for d, _, _ in (*o.gone, *o.come)):
            for operation in own:
                self._apply(operation)
            self.journal = [operation for operation in self.journal if operation not in own]

    def _apply(self, operation: Operation) -> None:
        """On the device, if what it builds on is there."""
        if operation.meta is not None:
            inode, operation_meta = operation.meta
            inode.durable_meta = operation_meta
            return
        for directory, name, inode in operation.gone:
            if directory.durable_names.get(name) is not inode:
                if operation.come and inode is not operation.come[0][2]:
                    continue  # what a rename would have replaced has not got its name yet, or lost it
                return
        for directory, name, _ in operation.come:
            if not operation.gone and name in directory.durable_names:
                return
        for directory, name, inode in operation.gone:
            if directory.durable_names.get(name) is inode:
                del directory.durable_names[name]
                inode.durable_links -= 1
        for directory, name, inode in operation.come:
            before = directory.durable_names.get(name)
            if before is not None:
                before.durable_links -= 1
            directory.durable_names[name] = inode
            inode.durable_links += 1

    # -- the cut ----------------------------------------------------------------------------------

    def cut(self) -> None:
        """The power fails: keep what is durable, and any legal part of the rest; nobody has anything open."""
        old = self.monotonic() - WRITEBACK
        self._cut_names(old)
        for inode in list(self.dirty):
            self._cut_data(inode, old)
            if inode.changed and (inode.changed <= old or self.rng.random() < 0.5):
                inode.durable_meta = inode.meta
        self._remount()

    def _cut_names(self, old: float) -> None:
        if self.ordered:
            least = sum(1 for operation in self.journal if operation.when <= old)
            keep = self.rng.randint(least, len(self.journal))
            chosen = self.journal[:keep]
        else:
            share = self.rng.choice((0.0, 0.5, 0.9, 1.0))
            chosen = [o for o in self.journal if o.when <= old or self.rng.random() < share]
        for operation in chosen:
            self._apply(operation)
        self.journal.clear()

    def _cut_data(self, inode: Inode, old: float) -> None:
        if not inode.dirty:
            return
        least = sum(1 for when, _, _ in inode.dirty if when <= old)
        kept = bytearray(inode.durable)
        if any(data is None for _, _, data in inode.dirty):
            self._in_order(kept, inode, self.rng.randint(least, len(inode.dirty)))
        else:
            self._page_by_page(kept, inode, least)
        inode.durable = bytes(kept)

    def _in_order(self, kept: bytearray, inode: Inode, count: int) -> None:
        for _, offset, data in inode.dirty[:count]:
            if data is None:
                del kept[offset:]
                kept.extend(bytes(offset - len(kept)))
            else:
                _place(kept, offset, data)

    def _page_by_page(self, kept: bytearray, inode: Inode, least: int) -> None:
        rng, size = self.rng, len(inode.durable)
        versions: dict[int, int] = {}  # page -> how many of the writes have reached it
        count = len(inode.dirty)
        whole = rng.random()
        for _, offset, data in inode.dirty:
            for page in range(offset // PAGE, pages(offset + len(data or b""))):
                if page not in versions:
                    versions[page] = rng.randint(least, count) if whole < 0.5 else count if whole < 0.75 else least
        grown = len(inode.data)
        for page in sorted(versions):
            reached, start = versions[page], page * PAGE
            stop = min(start + PAGE, grown)
            if self.ordered and reached < count and stop > size:  # growth ends where the data does
                end = max((offset + len(data or b"") for _, offset, data in inode.dirty[:reached]), default=0)
                grown = stop = min(stop, max(size, start, end))
            self._take_page(kept, inode, range(start, stop), reached, zeros=reached > least and start >= size)
            if stop == grown:
                break
        if len(kept) > grown:
            del kept[grown:]
        if not self.ordered and rng.random() < 0.5 and len(kept) < len(inode.data):
            kept.extend(bytes(len(inode.data) - len(kept)))  # the size arrived, the data did not

    def _take_page(self, kept: bytearray, inode: Inode, place: range, reached: int, *, zeros: bool) -> None:
        """One page as the first `reached` writes made it."""
        image = bytearray(inode.durable[place.start : place.stop])
        for _, offset, data in inode.dirty[:reached]:
            low, high = max(place.start, offset), min(place.stop, offset + len(data or b""))
            if data and low < high:
                _place(image, low - place.start, data[low - offset : high - offset])
        if zeros and not self.ordered and self.rng.random() < 0.2:
            image = bytearray(len(image))
        if image:
            _place(kept, place.start, bytes(image))

    def _remount(self) -> None:
        """The durable image is the only one."""
        self.used, self.journal, self.dirty, self.locks = 0, [], {}, {}
        seen: dict[Inode, int] = {}
        waiting = [self.root]
        while waiting:
            directory = waiting.pop()
            directory.names = dict(directory.durable_names)
            for inode in directory.names.values():
                seen[inode] = seen.get(inode, 0) + 1
                if inode.is_directory:
                    waiting.append(inode)
        for inode, links in seen.items():
            inode.nlink = inode.durable_links = links
            inode.opened, inode.lock, inode.changed = 0, None, 0.0
            inode.data = bytearray(inode.durable)
            inode.mode, inode.mtime, inode.ctime = inode.durable_meta
            inode.dirty.clear()
            inode.lost.clear()
            self.used += pages(len(inode.data))
        taken = {inode.ino for inode in seen} | {self.root.ino}
        self._free = [number for number in range(2, self._next) if number not in taken]

    # -- for whoever looks from outside -------------------------------------------------------------

    def walk(self, path: str) -> Iterator[tuple[str, Inode]]:
        """Every file below a directory as (path, inode)."""
        if not self.exists(path):
            return
        at = self.find(path)
        for name, inode in list((at.names or {}).items()):
            if inode.is_directory:
                yield from self.walk(f"{path}/{name}")
            else:
                yield f"{path}/{name}", inode


def pages(size: int) -> int:
    """How many pages hold so many bytes."""
    return -(-size // PAGE)


def _place(image: bytearray, offset: int, data: bytes) -> None:
    if offset > len(image):
        image.extend(bytes(offset - len(image)))
    image[offset : offset + len(data)] = data
