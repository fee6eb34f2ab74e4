"""The file of a checkpoint: tensors and one JSON header in safetensors, with a checksum of both."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modula_rs.checks import shown
from modula_rs.files import write_whole

#: The format that a file declares. The number changes when the content of files does.
FORMAT = "modula-rs checkpoint 2"
#: The format of version 0.1, without a checksum or a fingerprint.
_FIRST = "modula-rs checkpoint 1"
#: The longest header that safetensors reads, in bytes.
_LONGEST_HEADER = 100_000_000

DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32", "U64": "uint64",
    "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "C64": "complex64",
}  # fmt: skip

#: Valid numbers of steps, which JSON readers in every language can hold.
STEPS = range(2**63)

Tensors = dict[str, NDArray[Any]]


class Run(NamedTuple):
    """The content of a file besides tensors: the step, the network, and by name the values of the state that are no tensors.

    The network is its tree as a table, its leaves, and the first lines of the description that its fingerprint is a hash of. Files of
    version 0.1 have no fingerprint.
    """

    step: int
    tree: str
    leaves: list[list[Any]]
    values: dict[str, list[Any]]
    fingerprint: str | None = None
    network: tuple[str, ...] = ()


def write(path: Path, tensors: Tensors, run: Run) -> None:
    """Replaces a file at once; ValueError for content that could not be read again."""
    text = json.dumps(run._asdict())
    metadata = {"format": FORMAT, "run": text, "checksum": _checksum(text, tensors)}
    data = library().numpy.save(tensors, metadata)
    if int.from_bytes(data[:8], "little") > _LONGEST_HEADER:
        raise ValueError(f"{path}: names and values that are no arrays take more than {_LONGEST_HEADER} bytes")
    write_whole(path, data)


def read(path: Path) -> tuple[Tensors, Run]:
    """The content of one version of a file; ValueError, with the file's name, if the file is not whole."""
    with _refused(f"{path} is no whole safetensors file"):
        data = _content(path)
        metadata = _metadata(data)
        tensors = {name: _tensor(**view) for name, view in library().deserialize(data)}
    with _refused(f"{path} is no whole checkpoint"):
        known = metadata.get("format")
        if known not in (FORMAT, _FIRST):
            raise ValueError(f"its format is {shown(known)}, not {FORMAT!r}")
        run = _run(metadata.get("run"))
        if (known == FORMAT or "checksum" in metadata) and metadata.get("checksum") != _checksum(metadata["run"], tensors):
            raise ValueError("its checksum does not fit what it holds")
        if (known == FORMAT) != (run.fingerprint is not None):
            raise ValueError("it lacks the fingerprint of its network")
    return tensors, run


@contextlib.contextmanager
def _refused(what: str) -> Iterator[None]:
    """Puts the file's name before the message of an error."""
    try:
        yield
    except (ValueError, RecursionError, library().SafetensorError) as error:
        raise ValueError(f"{what}: {error}") from error


def library() -> Any:
    """The package safetensors; ImportError with the command to install it."""
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("checkpoints need safetensors: pip install safetensors") from error
    return safetensors


def _checksum(run: str, tensors: Tensors) -> str:
    """A hash of the content, whatever the order and spacing in the file."""
    content = hashlib.sha256(run.encode())
    for name, array in sorted(tensors.items()):
        content.update(f"\n{name} {array.dtype.name} {array.shape}\n".encode())
        content.update(array.reshape(-1).view(np.uint8).data)
    return content.hexdigest()


def _content(path: Path) -> bytes:
    """All bytes of the file. They are read from one open file, so they belong to one version even if another process replaces the file."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is no regular file")
    with path.open("rb") as file:
        start = file.read(8)
        header = int.from_bytes(start, "little")
        if len(start) < 8 or header > min(_LONGEST_HEADER, os.fstat(file.fileno()).st_size - 8):
            raise ValueError("it is no safetensors file, or one that was cut off")
        return start + file.read()


def _metadata(data: bytes) -> dict[str, str]:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict):
        raise ValueError("its header has no metadata")
    return metadata


def _tensor(dtype: str, shape: list[int], data: bytes) -> NDArray[Any]:
    if dtype not in DTYPES:
        raise ValueError(f"it holds {dtype} numbers")
    if dtype == "BF16":
        import ml_dtypes  # registers bfloat16 with NumPy; installed with JAX

        kind = np.dtype(ml_dtypes.bfloat16)
    else:
        kind = np.dtype(DTYPES[dtype])
    return np.frombuffer(bytearray(data), kind).reshape(shape)


def _run(text: Any) -> Run:
    """The run that a header describes; ValueError if the header has another form than :class:`Run`."""
    found = json.loads(text) if isinstance(text, str) else None
    if not isinstance(found, dict):
        raise ValueError("its header has no description of a run")
    expected = {"step": int, "tree": str, "leaves": list, "values": dict}
    for name, kind in expected.items():
        if type(found.get(name)) is not kind:
            raise ValueError(f"its header has no {name}, or one that is no {kind.__name__}")
    if found["step"] not in STEPS:
        raise ValueError(f"its step is not from 0 to {STEPS[-1]}")
    if not all(isinstance(leaf, list) and len(leaf) == 5 for leaf in found["leaves"]):
        raise ValueError("its header has leaves of another form")
    if not all(isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) for value in found["values"].values()):
        raise ValueError("its header has values of another form")
    fingerprint, network = found.get("fingerprint"), found.get("network", [])
    if not isinstance(fingerprint, str | None) or not isinstance(network, list) or not all(isinstance(line, str) for line in network):
        raise ValueError("its header has a network of another form")
    return Run(found["step"], found["tree"], found["leaves"], found["values"], fingerprint, tuple(network))
