"""Files that are whole at every moment: written beside themselves and renamed, whoever else writes, whenever a process is killed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows, where a file that another process holds open cannot be removed or renamed anyway
    fcntl = None  # type: ignore[assignment]


def write_whole(path: Path, data: bytes) -> None:
    """Replaces a file at once: at every moment it is the old one or the new one, also for another process that writes it.

    A link at the path is followed. OSError if the file cannot be written; then the old one is left as it was.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_whole(Path(folder) / "numbers.txt", b"1 2 3")
    ...     [file.name for file in Path(folder).iterdir()]
    ['numbers.txt']
    """
    path = Path(os.path.realpath(path))
    sweep_out(path)
    with _beside(path) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        if fcntl is None:
            file.close()
        Path(file.name).replace(path)
    if os.name == "posix":  # the renaming itself is on the disk once the folder is
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def sweep_out(path: Path) -> None:
    """Removes what killed processes left of their attempts to write this file.

    A writer locks its temporary file as long as it lives, so a file that can be locked has no writer.
    """
    path = Path(os.path.realpath(path))
    if fcntl is None:
        return
    for left in path.parent.glob(f".{_mark(path)}-*.tmp"):
        with contextlib.suppress(OSError), left.open("rb") as file:  # a folder that we may only read keeps what is in it
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


@contextlib.contextmanager
def locked(file: IO[bytes]) -> Iterator[None]:
    """Nobody else who asks has this open file meanwhile: no other thread, no other process."""
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
    """The file at ``path`` is there, and this process's alone, as long as this lasts; :class:`Busy` if it is another's.

    A killed process leaves the file, but not its claim to it.
    """
    while True:
        with path.open("ab") as file:
            if fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise Busy(path) from None
                if os.fstat(file.fileno()).st_nlink == 0:  # the one before us removed it between our two steps
                    continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[IO[bytes]]:
    """A temporary file in the folder of ``path``, of a name that no other writer has; it is gone at the end."""
    while True:
        # The name's hash stands for the name: together with a random part the name itself might be too long for the file system.
        temporary = path.with_name(f".{_mark(path)}-{secrets.token_hex(8)}.tmp")
        with temporary.open("xb") as file:
            try:
                if not _taken(file):
                    yield file
                    return
            finally:
                temporary.unlink(missing_ok=True)


def _taken(file: IO[bytes]) -> bool:
    """Locks a new file; True if another process swept it out before it was locked."""
    if fcntl is None:
        return False
    with contextlib.suppress(OSError):  # a file system without locks: then nobody sweeps either
        fcntl.flock(file, fcntl.LOCK_EX)
    return os.fstat(file.fileno()).st_nlink == 0


def _mark(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]
