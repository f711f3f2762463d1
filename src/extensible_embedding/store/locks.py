"""Who changes what: one writer of a context at a time, while others change other contexts.

In: the folder of a store and the names of contexts. Out: their locks, which go with the process
that has them. Whoever wants locks of contexts has that of the store for the moment of taking and
of giving them, so that a lock's file can go again. Knows nothing of what is changed.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import BusyError, StorageError
from .files import disk_faults
from .names import folder_of, is_folder

LOCK_FILE = "lock"
_POLL_S = 0.05
"""Between two tries to get a lock."""
_GIVING_S = 5.0
"""Most that is waited to remove the files of locks that are given back; else they stay."""


class _Lock:
    """The lock of a file; what the file holds stays."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._give: Callable[[], object] = _nothing

    def take(self) -> bool:
        """Whether nobody else has it: it is taken then. Does not wait.

        Raises:
            StorageError: what is there is a link, or no file.
        """
        if _is_foreign(self.path):
            raise StorageError(
                f"A lock is a file of the store's own, but {str(self.path)!r} is a link, a folder "
                "or no file at all; move it away: nothing of the store is in it."
            )
        if sys.platform == "win32":
            lock = FileLock(self.path)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                return False
            self._give = lock.release
            return True
        import fcntl  # `FileLock` would empty the file, which may be somebody's

        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except BaseException:  # a disk without locks
            os.close(descriptor)
            raise
        self._give = partial(os.close, descriptor)  # and the lock goes
        return True

    def give(self) -> None:
        """Gives it back, if it is taken."""
        give, self._give = self._give, _nothing
        give()

    def remove(self) -> None:
        """Removes its file, of one that is taken, and gives it back."""
        with suppress(OSError):  # on Windows it is open
            if not _is_foreign(self.path) and not self.path.stat().st_size:
                self.path.unlink()
        self.give()


def _is_foreign(path: Path) -> bool:
    """Whether something is there, but no file: a link, a folder. Links are not followed."""
    try:
        return not stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _nothing() -> None:
    """Gives back what was not taken."""


@contextmanager
def locked_store(root: Path, wait_s: float) -> Iterator[None]:
    """Keeps others from beginning a change; changes that go on have their contexts locked.

    Raises:
        BusyError: another process has the store for `wait_s` seconds.
        StorageError: the folder is read-only.
    """
    lock = _Lock(root / LOCK_FILE)
    with disk_faults(str(root)):
        _wait(lock.take, wait_s, "a store", repr(str(root)))
    try:
        yield
    finally:
        lock.give()


@contextmanager
def locked_contexts(root: Path, names: Sequence[str], wait_s: float) -> Iterator[None]:
    """Keeps others from changing contexts, be they there or not.

    Args:
        root: folder of the store.
        names: of the contexts.
        wait_s: seconds to wait for whoever changes one of them.

    Raises:
        BusyError: another process changes one of them for so long.
        StorageError: the folder is read-only.
    """
    keys = sorted({_key(name) for name in names})
    shown = f"{' or '.join(map(repr, names))} in {str(root)!r}"
    locks = [_Lock(root / f"{LOCK_FILE}.{key}") for key in keys]

    def take() -> bool:
        with locked_store(root, wait_s):
            return _take_all(locks)

    with disk_faults(str(root)):
        _wait(take, wait_s, "a context", shown)
    try:
        yield
    finally:
        _give_all(root, locks)


@contextmanager
def locked_if_free(root: Path, key: str) -> Iterator[bool]:
    """Whether nobody changes the context of a folder: it is locked then.

    Args:
        root: folder of the store, of whose lock the caller has hold.
        key: last part of the context's folder.
    """
    lock = _Lock(root / f"{LOCK_FILE}.{key}")
    free = lock.take()
    try:
        yield free
    finally:
        if free:
            lock.remove()


def keys_of_locks(root: Path) -> list[str]:
    """Last parts of the folders whose contexts are, or were, being changed."""
    own = (path for path in root.glob(f"{LOCK_FILE}.*") if not _is_foreign(path))
    names = (path.name.partition(".") for path in own)
    return sorted(key for _, _, key in names if is_folder(key))


def _key(name: str) -> str:
    return folder_of(name).rpartition("/")[2]


def _take_all(locks: Sequence[_Lock]) -> bool:
    with ExitStack() as taken:
        for lock in locks:
            if not lock.take():
                return False
            taken.callback(lock.remove)
        taken.pop_all()
    return True


def _give_all(root: Path, locks: Sequence[_Lock]) -> None:
    """Without the lock of the store another process may just open the files: then they stay."""
    try:
        with suppress(StorageError), locked_store(root, _GIVING_S):
            for lock in locks:
                lock.remove()
    finally:
        for lock in locks:
            lock.give()


def _wait(take: Callable[[], bool], wait_s: float, what: str, which: str) -> None:
    until = time.monotonic() + wait_s
    while not take():
        if time.monotonic() >= until:
            raise BusyError(
                f"One process at a time changes {what}, but another one has been changing {which} "
                f"for {wait_s:g} seconds; try again when it is done."
            )
        time.sleep(_POLL_S)
