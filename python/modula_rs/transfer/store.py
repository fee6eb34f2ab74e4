"""The folder in which a sweep keeps its finished points. A later run skips them, and a run beside it can add its own."""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from modula_rs.checks import shown
from modula_rs.files import expect_file, locked, make_folder, write_whole
from modula_rs.transfer.table import Row, Size, header_of_points, line_of_point, parse

#: The format that the settings declare. The number changes when their content does.
FORMAT = "modula-rs sweep 2"

#: Settings with one entry for each network or optimizer, to which a run may add entries.
_GROWING = {"networks": "another network at", "optimizers": "another optimizer under the name"}

#: The identity of a point: optimizer, size, rate and seed.
Key = tuple[str, Size, float, int]


class StoreError(ValueError):
    """A folder whose points belong to another sweep or are damaged."""


class Store:
    """A folder with ``points.csv``, to which every finished run is added at once, and ``settings.json``, which describes the runs.

    Several processes may use one folder at once; a point that two of them compute is kept once. Without a folder, points are kept in memory
    only.

    Raises:
        StoreError: the folder holds points made with other settings, or damaged files.
    """

    def __init__(self, folder: str | Path | None, settings: Mapping[str, Any]) -> None:
        self._rows: dict[Key, Row] = {}
        self._lock = threading.Lock()
        self._points = None if folder is None else Path(folder) / "points.csv"
        if self._points is not None:
            self._open(self._points, json.loads(json.dumps(settings)))

    @property
    def rows(self) -> list[Row]:
        """All points, each once."""
        return list(self._rows.values())

    @property
    def keys(self) -> set[Key]:
        """The identities of all points."""
        return set(self._rows)

    def refresh(self) -> None:
        """Reads the points that other processes have added."""
        if self._points is not None:
            with self._lock, _alone_with(self._points) as file:
                self._read(file)

    def add(self, rows: Iterable[Row]) -> None:
        """Adds rows, which are on disk on return. A point that exists already is not replaced."""
        with self._lock:
            new = {_key(row): row for row in rows}
            if self._points is not None:
                with _alone_with(self._points) as file:
                    self._read(file)
                    _append(file, map(line_of_point, [row for key, row in new.items() if key not in self._rows]))
            self._rows = new | self._rows

    def _open(self, points: Path, settings: dict[str, Any]) -> None:
        make_folder(points.parent)
        described = points.with_name("settings.json")
        expect_file(points)
        expect_file(described)
        with _alone_with(points) as file:
            self._read(file)
            if self._rows or described.exists():
                settings = _merged(points.parent, _known(described), settings)
            # Settings are written before points, so that points never lack settings, even if a run is killed.
            write_whole(described, (json.dumps({**settings, "checksum": _checksum(settings)}, indent=1) + "\n").encode())
            _append(file, [])

    def _read(self, file: IO[bytes]) -> None:
        """Reads all points of the file, and cuts off the incomplete last line that a killed process left."""
        file.seek(0)
        content = file.read()
        whole = content.rfind(b"\n") + 1
        file.truncate(whole)
        file.seek(whole)
        found: dict[Key, Row] = {}
        for row in parse(file.name, content) if whole else []:
            found.setdefault(_key(row), row)
        self._rows = found | self._rows


def _key(row: Row) -> Key:
    return row.optimizer, row.size, row.rate, row.seed


@contextmanager
def _alone_with(points: Path) -> Iterator[IO[bytes]]:
    """The file of points, created if needed, and locked against all other threads and processes."""
    with open(points, "r+b", opener=lambda path, flags: os.open(path, flags | os.O_CREAT, 0o666)) as file, locked(file):
        yield file


def _append(file: IO[bytes], lines: Iterable[str]) -> None:
    """Adds lines, in an empty file after the names of the columns; they are on disk on return."""
    start = [header_of_points()] if file.tell() == 0 else []
    file.write("".join([*start, *lines]).encode())
    file.flush()
    os.fsync(file.fileno())


def _known(described: Path) -> dict[str, Any]:
    """The settings of a folder; StoreError, naming the file, if they are no settings of this version."""
    try:
        known = json.loads(described.read_bytes())
    except FileNotFoundError:
        raise StoreError(f"{described} is missing: without it nobody knows what the points beside it are of") from None
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{described} is damaged: {error}") from None
    if not isinstance(known, dict):
        raise StoreError(f"{described} is damaged: it holds {type(known).__name__}, not settings")
    if "format" not in known and "loss" in known:
        raise StoreError(
            f"{described} was written by version 0.1, which did not tell losses, optimizers and strides apart: choose another folder"
        )
    if known.get("format") != FORMAT:
        raise StoreError(f"{described} is damaged, or of another version: its format is {shown(known.get('format'))}, not {FORMAT!r}")
    checksum = known.pop("checksum", None)
    if checksum != _checksum(known) or not all(isinstance(known.get(name), dict) for name in _GROWING):
        raise StoreError(f"{described} is damaged: its checksum does not fit what it holds")
    return known


def _checksum(settings: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(settings, sort_keys=True).encode()):08x}"


def _merged(folder: Path, known: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """The settings with the networks and optimizers of both; StoreError with the first difference if other settings differ."""
    for name, value in wanted.items():
        before = known.get(name)
        if name not in _GROWING and before != value:
            raise StoreError(f"{folder} holds points with {name} {shown(before)}, not {shown(value)}: choose another folder")
    for name, what in _GROWING.items():
        changed = [entry for entry, value in wanted[name].items() if known[name].get(entry, value) != value]
        if changed:
            raise StoreError(f"{folder} holds points of {what} {changed[0]}: choose another folder")
    return {**wanted, **{name: {**known[name], **wanted[name]} for name in _GROWING}}
