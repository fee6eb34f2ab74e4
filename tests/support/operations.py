"""The operations of a backend, under the names of the maps that use them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modula_rs.backend import Backend, Batch


class Operations:
    """``normalize``, ``dualize`` and ``project`` on batches, along with the backend's own ``norms`` and ``dual_norms``."""

    def __init__(self, backend: Backend) -> None:
        self.apply, self.norms, self.dual_norms = backend.apply, backend.norms, backend.dual_norms

    def normalize(
        self, batches: Sequence[Batch], arrays: Sequence[Any], scales: Sequence[Any], vectors: Sequence[Any] | None = None
    ) -> tuple[list[Any], list[Any]]:
        return self.apply("unit", batches, arrays, scales, vectors=vectors)

    def dualize(self, batches: Sequence[Batch], arrays: Sequence[Any], scales: Sequence[Any], accuracy: str = "standard") -> list[Any]:
        return self.apply("direction", batches, arrays, scales, accuracy=accuracy)[0]

    def project(self, batches: Sequence[Batch], arrays: Sequence[Any], scales: Sequence[Any]) -> list[Any]:
        return self.apply("exact", batches, arrays, scales)[0]
