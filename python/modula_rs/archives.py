"""Reads arrays from an untrusted ``.npz`` file: no code in the file runs, and reading takes no more memory than the file declares."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modula_rs.files import expect_file

#: Data of more bytes than ``_SMALL`` may not be compressed by more than a factor of ``_TIGHTEST``: such a file is made to fill the memory.
_SMALL, _TIGHTEST = 1 << 26, 500


class ArchiveError(ValueError):
    """A file that is no archive of arrays. The message is one line."""


def names(path: Path) -> list[str]:
    """The names of the arrays in a file.

    Raises:
        ArchiveError: the file is no archive, or declares far more data than it can hold.
        OSError: the file cannot be opened.
    """
    expect_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except OSError:
        raise
    except Exception as error:  # the readers of zip files and of arrays raise many kinds
        raise _refusal(error) from None
    for member in members:
        if member.file_size > max(_SMALL, _TIGHTEST * member.compress_size):
            raise ArchiveError(f"{member.filename} claims {member.file_size} bytes, packed into {member.compress_size}")
    found = [member.filename.removesuffix(".npy") for member in members]
    if len(set(found)) < len(found):
        raise ArchiveError("holds two arrays of one name")
    return found


def read(path: Path, wanted: Iterable[str]) -> dict[str, NDArray[Any]]:
    """The arrays with the wanted names; ArchiveError if one of them is damaged or holds Python objects."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {name: archive[name] for name in wanted}
    except Exception as error:
        raise _refusal(error) from None
    for name, array in found.items():
        if not isinstance(array, np.ndarray):
            raise ArchiveError(f"{name} is no array")
    return found


def _refusal(error: Exception) -> ArchiveError:
    said = " ".join(str(error).split())
    return ArchiveError(f"is no archive of arrays: {said or type(error).__name__}")
