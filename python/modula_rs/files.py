"""Files that are whole at every moment: written beside the target and renamed, even if others write too or a process is killed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows has no fcntl; there, a file that another process holds open cannot be removed or renamed anyway
    fcntl = None  # type: ignore[assignment]


def write_whole(path: Path, data: bytes) -> None:
    """Replaces a file at once: at every moment the path holds the old file or the new one, also if another process writes it too.

    A link at the path is followed. OSError if the file cannot be written; the old file is then unchanged.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_whole(Path(folder) / "numbers.txt", b"1 2 3")
    ...     [file.name for file in Path(folder).iterdir()]
    ['numbers.txt']
    """
    path = Path(os.path.realpath(path))
    expect_file(path)
    sweep_out(path)
    with _beside(path) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        if fcntl is None:
            file.close()
        Path(file.name).replace(path)
    if os.name == "posix":  # the renaming is on the disk once the folder is
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def make_folder(path: Path) -> None:
    """Makes a folder, and those around it, unless it is there. OSError or ValueError, which name it, if no file can be made in it.

    >>> make_folder(Path(os.devnull))
    Traceback (most recent call last):
    NotADirectoryError: [Errno 20] Not a directory: '/dev/null'
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:  # as any other file, such as a device, is called
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from None
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def expect_file(path: Path) -> None:
    """OSError if the path is taken by anything but a file: reading a device or a pipe might never end, and writing would replace it.

    >>> expect_file(Path(os.devnull))
    Traceback (most recent call last):
    OSError: [Errno 22] is no regular file: '/dev/null'
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is no regular file", str(path))


def sweep_out(path: Path) -> None:
    """Removes temporary files that killed processes left when they were writing this file.

    A writer locks its temporary file as long as it lives, so a file that can be locked has no writer.
    """
    path = Path(os.path.realpath(path))
    if fcntl is None:
        return
    for left in path.parent.glob(f".{_mark(path)}-*.tmp"):
        with contextlib.suppress(OSError), left.open("rb") as file:  # nothing is removed from a read-only folder
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


@contextlib.contextmanager
def locked(file: IO[bytes]) -> Iterator[None]:
    """Holds a lock on this open file, against all threads and processes that ask for it."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_UN)


class Busy(Exception):
    """A file that another process has claimed."""


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Makes the file at ``path`` if needed, and claims it for this process; :class:`Busy` if another process has claimed it.

    When a process is killed, its file stays, but its claim ends.
    """
    while True:
        with path.open("ab") as file:
            if fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise Busy(path) from None
                if os.fstat(file.fileno()).st_nlink == 0:  # the previous owner removed the file after we opened it
                    continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[IO[bytes]]:
    """A temporary file in the folder of ``path``, with a name that no other writer has; it is removed at the end."""
    while True:
        # The hash of the name is used, because the name with a random part might be too long for the file system.
        temporary = path.with_name(f".{_mark(path)}-{secrets.token_hex(8)}.tmp")
        with temporary.open("xb") as file:
            try:
                if not _taken(file):
                    yield file
                    return
            finally:
                temporary.unlink(missing_ok=True)


def _taken(file: IO[bytes]) -> bool:
    """Locks a new file; True if another process removed it before it was locked."""
    if fcntl is None:
        return False
    with contextlib.suppress(OSError):  # on a file system without locks nobody removes temporary files either
        fcntl.flock(file, fcntl.LOCK_EX)
    return os.fstat(file.fileno()).st_nlink == 0


def _mark(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]
