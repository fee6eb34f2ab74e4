"""Checkpoints: weights, optimizer state and data order in one safetensors file, from which a run goes on to the same bits.

>>> import numpy as np, tempfile, modula_rs as mr
>>> m = mr.MLP(1, 2, width=8, depth=2)
>>> w, rng = m.initialize(0), np.random.default_rng(0)
>>> state = mr.optim.adam_init(w)
>>> with tempfile.TemporaryDirectory() as folder:
...     mr.checkpoint.save(f"{folder}/run.safetensors", m, w, (state, rng), step=7)
...     saved = mr.checkpoint.load(f"{folder}/run.safetensors", m, w, (state, rng))
>>> saved.step, bool((saved.weights[0] == w[0]).all())
(7, True)
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from modula_rs import arrays
from modula_rs.network.module import Module
from modula_rs.norm.checks import check_weights

#: What the file says it is. The number changes when a file of before could no longer be read.
FORMAT = "modula-rs checkpoint 1"

#: Numbers and words that go into the header as they are.
PLAIN = (bool, int, float, str, type(None))

DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32", "U64": "uint64",
    "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "C64": "complex64",
}  # fmt: skip


class Checkpoint(NamedTuple):
    """What :func:`load` gives: weights and state in the libraries of the examples it was given, and the step."""

    weights: list[Any]
    state: Any
    step: int


def save(path: str | os.PathLike[str], m: Module, weights: Sequence[Any], state: Any = None, *, step: int = 0) -> None:
    """Writes a run to a file; if that fails, or the machine does, the file that was there before is still whole.

    Args:
        path: the file. It is written beside itself first, brought to the disk, and then renamed.
        m: the module; its tree is kept with the weights.
        weights: one array for each of ``m.leaves``, saved under ``weights/`` and the leaf's path.
        state: whatever else the run needs to go on: nested tuples, named tuples, lists and dicts of arrays, JAX keys, NumPy generators,
            numbers and strings. The state of any optax optimizer is of that kind.
        step: how many steps were taken.

    Raises:
        TypeError: for a state that holds something else.
        ValueError: for weights that do not fit ``m``.
    """
    safetensors = _safetensors()
    check_weights(m.leaves, weights, "weight")
    names = [leaf.path for leaf in m.leaves]
    tensors: dict[str, Any] = {}
    header: dict[str, Any] = {}
    for name, value in [*_named("weights", list(weights), names), *_named("state", state, names)]:
        kind, stored = _stored(name, value)
        (header if kind else tensors)[name] = [kind, stored] if kind else stored
    description = {"step": step, "tree": str(m), "leaves": [list(leaf) for leaf in m.leaves], "values": header}
    metadata = {"format": FORMAT, "run": json.dumps(description)}
    _write_whole(Path(path), safetensors.numpy.save(tensors, metadata))


def load(path: str | os.PathLike[str], m: Module, weights: Sequence[Any], state: Any = None) -> Checkpoint:
    """Reads a run from a file, exactly as it was saved.

    Args:
        path: the file.
        m: the module; it must be the one that was saved, bonds and masses included.
        weights: an example of the weights, such as fresh ones: what comes back is in its library and on its devices.
        state: an example of the state, such as the one before the first step. NumPy generators come back as new ones.

    Raises:
        ValueError: if the file is no whole checkpoint, or the trees, names, shapes or dtypes differ; the message says how.
    """
    tensors, description = _read(Path(path))
    _same_tree(Path(path), m, description)
    check_weights(m.leaves, weights, "weight")
    names = [leaf.path for leaf in m.leaves]
    found = {**tensors, **{name: tuple(pair) for name, pair in description["values"].items()}}
    examples = dict([*_named("weights", list(weights), names), *_named("state", state, names)])
    differences = [line for name in {**examples, **found} for line in _difference(name, examples, found)]
    if differences:
        raise ValueError(f"{path} does not fit:\n  " + "\n  ".join(differences[:20] + ["..."] * (len(differences) > 20)))
    restored = {name: _restored(found[name], example) for name, example in examples.items()}
    return Checkpoint(
        _filled("weights", list(weights), names, restored), _filled("state", state, names, restored), int(description["step"])
    )


# ---- names for everything in a nested state --------------------------------------------------------------------------------


def _members(node: Any, leaves: list[str]) -> list[tuple[str, Any]] | None:
    """The parts of a container with their names; None for anything else. A list as long as the weights has the names of the leaves."""
    if isinstance(node, dict):
        return [(str(key), member) for key, member in node.items()]
    if not isinstance(node, tuple | list):
        return None
    if hasattr(node, "_fields"):
        return list(zip(node._fields, node, strict=True))
    return list(zip(leaves if len(node) == len(leaves) else map(str, range(len(node))), node, strict=True))


def _named(name: str, node: Any, leaves: list[str]) -> Iterator[tuple[str, Any]]:
    members = _members(node, leaves)
    if members is None:
        yield name, node
        return
    for key, member in members:
        yield from _named(f"{name}/{key}", member, leaves)


def _filled(name: str, node: Any, leaves: list[str], values: dict[str, Any]) -> Any:
    members = _members(node, leaves)
    if members is None:
        return values[name]
    parts = [_filled(f"{name}/{key}", member, leaves, values) for key, member in members]
    if isinstance(node, dict):
        return type(node)(zip(node, parts, strict=True))
    return type(node)(*parts) if hasattr(node, "_fields") else type(node)(parts)


# ---- single values ---------------------------------------------------------------------------------------------------------


def _is_key(value: Any) -> bool:
    if arrays.library(value) != "jax":
        return False
    import jax

    return bool(jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key))


def _stored(name: str, value: Any) -> tuple[str, Any]:
    """How a value is kept: as a tensor (kind ""), or in the header as its kind and something JSON can hold."""
    if isinstance(value, np.random.Generator):
        return "generator", json.loads(json.dumps(value.bit_generator.state, default=np.ndarray.tolist))
    if _is_key(value):
        import jax

        return "key", [str(jax.random.key_impl(value)), np.asarray(jax.random.key_data(value)).tolist()]
    library = arrays.library(value)
    if library is not None:
        on_host = value.get() if library == "cupy" else np.asarray(value)
        native = np.array(on_host, dtype=on_host.dtype.newbyteorder("="), order="C")
        if native.dtype.name not in DTYPES.values():
            raise TypeError(f"{name}: a checkpoint cannot hold {native.dtype.name}")
        return "", native
    if isinstance(value, PLAIN):
        return type(value).__name__, value
    raise TypeError(f"{name}: a checkpoint holds arrays, keys, generators, numbers and strings, not {type(value).__name__}")


def _restored(found: Any, example: Any) -> Any:
    """A value as it was, in the library of the example."""
    if isinstance(found, tuple):
        kind, stored = found
        if kind == "generator":
            generator = np.random.Generator(type(example.bit_generator)())
            generator.bit_generator.state = stored
            return generator
        if kind == "key":
            import jax

            return jax.random.wrap_key_data(jax.numpy.asarray(stored[1], np.uint32), impl=stored[0])
        return stored
    library = arrays.library(example)
    if library == "jax":
        import jax

        return jax.device_put(found, example.sharding)
    return found if library == "numpy" else arrays.namespace("cupy").asarray(found)


def _signature(value: Any) -> str:
    """What must be equal in the file and in the example."""
    if isinstance(value, np.random.Generator):
        return f"a {type(value.bit_generator).__name__} generator"
    if _is_key(value):
        return "a JAX key"
    if arrays.library(value) is not None:
        return f"{value.dtype.name} of shape {tuple(value.shape)}"
    return f"{type(value).__name__}"


def _found_signature(found: Any) -> str:
    if not isinstance(found, tuple):
        return _signature(found)
    kind, stored = found
    if kind == "generator":
        return f"a {stored['bit_generator']} generator"
    return "a JAX key" if kind == "key" else str(kind)


# ---- comparison, reading and writing -----------------------------------------------------------------------------------------


def _difference(name: str, examples: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    here = _signature(examples[name]) if name in examples else "nothing"
    there = _found_signature(found[name]) if name in found else "nothing"
    if here != there:
        yield f"{name}: the file has {there}, expected {here}"


def _same_tree(path: Path, m: Module, description: dict[str, Any]) -> None:
    saved, here = description["tree"].splitlines(), str(m).splitlines()
    leaves = json.loads(json.dumps([list(leaf) for leaf in m.leaves]))
    if saved == here and description["leaves"] == leaves:
        return
    before, after = ([" ".join(map(str, leaf)) for leaf in each] for each in (description["leaves"], leaves))
    lines = list(difflib.unified_diff(saved, here, lineterm="", n=0)) or list(difflib.unified_diff(before, after, lineterm="", n=0))
    changed = [line for line in lines if not line.startswith(("---", "+++", "@@"))]
    shown = "\n  ".join(changed[:20] + ["..."] * (len(changed) > 20))
    raise ValueError(f"{path} holds another tree (- in the file, + expected):\n  {shown}")


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
        tensors = {
            name: np.frombuffer(view["data"], _dtype(view["dtype"])).reshape(view["shape"]).copy()
            for name, view in safetensors.deserialize(path.read_bytes())
        }
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is no {FORMAT}: its format is {metadata.get('format')!r}")
    return tensors, json.loads(metadata["run"])


def _dtype(code: str) -> Any:
    if code == "BF16":
        import ml_dtypes  # gives NumPy the dtype; comes with JAX

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(DTYPES[code])


def _write_whole(path: Path, data: bytes) -> None:
    """Writes beside the file, brings it to the disk, and renames: at every moment the file is the old one or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    if os.name == "posix":  # the renaming itself is on the disk once the folder is
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("checkpoints need safetensors: pip install safetensors") from error
    return safetensors
