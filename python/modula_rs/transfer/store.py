"""Where a sweep keeps its finished points, so that the next run can skip them."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from modula_rs.transfer.table import Row, Table, write_rows


class StoreError(ValueError):
    """A folder whose points belong to another sweep."""


class Store:
    """A folder with ``points.csv``, to which every finished run is added at once, and ``settings.json``, which says what they are runs of.

    Without a folder the points are kept in memory only.

    Raises StoreError if the folder holds points made with other settings.
    """

    def __init__(self, folder: str | Path | None, settings: Mapping[str, Any]) -> None:
        self.rows: list[Row] = []
        self._lock = threading.Lock()
        self._points = None if folder is None else Path(folder) / "points.csv"
        if folder is not None and self._points is not None:
            self._open(Path(folder), self._points, json.loads(json.dumps(settings)))

    def add(self, rows: Iterable[Row]) -> None:
        """Keeps these rows; on return they are on disk."""
        with self._lock:
            rows = list(rows)
            self.rows += rows
            if self._points is not None:
                with self._points.open("a", encoding="utf-8", newline="") as file:
                    write_rows(file, rows)
                    file.flush()
                    os.fsync(file.fileno())

    def _open(self, folder: Path, points: Path, settings: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        described = folder / "settings.json"
        if points.exists():
            known = json.loads(described.read_text(encoding="utf-8")) if described.exists() else {}
            _compare(folder, known, settings)
            settings = {**settings, "networks": {**known.get("networks", {}), **settings.get("networks", {})}}
            self.rows = Table.read_csv(points).rows
        # Settings before points: whatever moment a run is killed at, points never lack theirs.
        _replace(described, json.dumps(settings, indent=1) + "\n")
        temporary = points.with_suffix(".tmp")
        Table(self.rows).to_csv(temporary)  # without a last line that was cut off
        temporary.replace(points)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _compare(folder: Path, known: dict[str, Any], wanted: dict[str, Any]) -> None:
    """StoreError for the first setting that differs; of the networks, those that both have."""
    for name, value in wanted.items():
        before = known.get(name)
        if name == "networks":
            changed = [size for size in value if before and size in before and before[size] != value[size]]
            if changed:
                raise StoreError(f"{folder} holds points of another network at {changed[0]}: choose another folder")
        elif before != value:
            raise StoreError(f"{folder} holds points with {name} {before}, not {value}: choose another folder, or the same {name}")
