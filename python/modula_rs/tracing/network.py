"""A traced network: it has the maps of a module, on parameters in their own structure, and cannot be composed."""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import jax
import numpy as np

from modula_rs import arrays
from modula_rs.forward import explicit
from modula_rs.norm.checks import shorten
from modula_rs.random import Source
from modula_rs.tracing.check import Report, norm_of, report, start_scale
from modula_rs.tracing.fresh import drawn
from modula_rs.tracing.lengths import jaxpr_of
from modula_rs.tracing.literals import find_literals
from modula_rs.tracing.mass import MATRICES, OUTPUT, Weights
from modula_rs.tracing.models import Model, is_array, model
from modula_rs.tracing.observe import Observer
from modula_rs.tracing.paths import paths_of
from modula_rs.tracing.pytrees import Pytrees
from modula_rs.tracing.read import read_model
from modula_rs.tracing.reading import MALFORMED, Leaf, Reading
from modula_rs.tracing.reading import load as load_reading

#: The arrays that ``rescale`` brings to norm 1.
WHICH = ("output", "all")


def trace(apply: Any, *arguments: Any, rules: Mapping[str, str] | None = None, masses: Weights | None = None, **keywords: Any) -> Network:
    """The norm of an existing network: of any JAX program, which is not changed.

    Args:
        apply: a function of (params, *inputs); or a module of Flax nnx or Equinox, a pair (linen's ``module.apply``, variables), a Haiku
            transform.
        arguments: params (any pytree) or a function ``init(key)`` that makes them, left out if the model holds or makes them; then the
            inputs. Shapes suffice (``jax.ShapeDtypeStruct``).
        rules: what arrays are, by their paths, where the program does not decide; see :func:`modula_rs.tracing.read`.
        masses: the masses of the places of the network, by name: ``{"blocks": 2, "vectors": 1}``; see
            :class:`modula_rs.tracing.Masses`.
        keywords: further arguments of the program, such as ``train=False``.

    Raises:
        TraceError: the program does not decide what some arrays are, or a rule matches none or contradicts the program. Every such array is
            listed.

    >>> import jax, jax.numpy as jnp, modula_rs as mr
    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["in"] + params["bias"]) @ params["out"]
    >>> params = {"in": jnp.ones((64, 32)), "bias": jnp.ones(32), "out": jnp.ones((32, 10))}
    >>> net = mr.trace(apply, params, jax.ShapeDtypeStruct((8, 64), "float32"))
    >>> update = net.dualize(params)
    >>> {name: array.shape for name, array in update.items()}
    {'bias': (32,), 'in': (64, 32), 'out': (32, 10)}
    """
    source = model(apply, arguments, keywords)
    return Network(read_model(source, rules, masses), source)


def load(path: str | PathLike[str]) -> Network:
    """The network whose table :meth:`Network.save` wrote. It has all maps, but no program.

    Raises:
        ValueError: the file is of another format, or was changed so that its fingerprint does not match.
    """
    reading = load_reading(path)
    try:
        return Network(reading)
    except MALFORMED as error:
        raise ValueError(f"{path}: the table does not fit together ({type(error).__name__}: {str(error)[:100]})") from None


class Network(Pytrees):
    """The norm of a traced network; see :func:`trace`. Maps take and return pytrees with the structure of the parameters."""

    def __init__(self, reading: Reading, source: Model | None = None) -> None:
        super().__init__(reading)
        self._source = source

    def initialize(self, key: Any = 0, params: Any = None) -> Any:
        """Fresh parameters, every array at norm 1 of its kind: semi-orthogonal matrices, table rows of RMS 1, gains of one, biases of zero.

        Args:
            key: an int or ``numpy.random.Generator`` gives NumPy arrays, a JAX key JAX arrays.
            params: where frozen arrays have their values from, and the structure. By default these are the parameters that were traced, or
                what the network's own initialisation makes from the same key.

        Raises:
            ValueError: arrays are frozen, and neither ``params`` nor the trace has their values.

        >>> import jax, jax.numpy as jnp, modula_rs as mr
        >>> params = {"weight": jnp.ones((4, 3)), "steps": jnp.array(7)}
        >>> net = mr.trace(lambda p, x: x @ p["weight"], params, jnp.ones((2, 4)), rules={"steps": "frozen"})
        >>> {name: array.tolist() for name, array in net.initialize(0).items() if name == "steps"}
        {'steps': 7}
        """
        source = Source(key, None)
        if params is None:
            if self._source is None:
                raise ValueError("a table that was loaded has no structure to put arrays into: give params")
            params = self._source.params
            if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params)) and self._frozen and self._source.init:
                params = self.own_parameters(key)
        given, structured = self._open(params, "params", shapes=True)
        unknown = [self._paths[number] for number in sorted(self._frozen) if isinstance(given[number], jax.ShapeDtypeStruct)]
        if unknown:
            raise ValueError(f"the values of frozen arrays are needed ({shorten(unknown)}): initialize(key, params=...)")
        made = []
        for leaf, view, array in zip(self.reading.leaves, self._views, given, strict=True):
            made.append(drawn(source, leaf, view.shapes, view.rows_first) if leaf.roles else _in_library(array, source.library))
        return structured(made)

    @property
    def has_own_parameters(self) -> bool:
        """Whether :meth:`own_parameters` knows them."""
        source = self._source
        if source is None or source.init is not None:
            return source is not None
        return not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(source.params))

    def own_parameters(self, key: Any = 0) -> Any:
        """The parameters with which the network itself would start.

        They are what its ``init`` makes from ``key`` (an int, or a JAX key), if the network was traced with a function that makes
        parameters, and the parameters that were traced otherwise.

        Raises:
            ValueError: only the shapes of the parameters are known.
        """
        source = self._source
        if source is not None and source.init is not None:
            return source.init(key if arrays.library(key) == "jax" else jax.random.key(_seed(key)))
        if source is None or not self.has_own_parameters:
            raise ValueError("only the shapes of the parameters are known: trace with their values, or with a function init(key)")
        return source.params

    def check(self, params: Any = None, *inputs: Any) -> Report:
        """What stands in the way of one learning rate for every size: a list of findings, which prints as a table.

        The start: arrays whose initial norm is far from 1. Logits of attention that are divided by the square root of the features, or not
        at all. Residual branches without a factor of one over their number. Inputs whose RMS is far from 1.

        Args:
            params: initial parameters, by default those that were traced. If only their shapes are known, the start is not checked.
            inputs: inputs of the program, by default those that were traced, likewise.

        Raises:
            ValueError: ``params`` do not fit the table.

        >>> import jax, jax.numpy as jnp, modula_rs as mr
        >>> def apply(params, x):
        ...     for w in params["blocks"]:
        ...         x = x + jax.nn.relu(x @ w)
        ...     return x
        >>> params = {"blocks": [jnp.eye(8)] * 4}
        >>> for finding in mr.trace(apply, params, 100 * jnp.ones((2, 8))).check():
        ...     print(finding.what, finding.path, finding.measured)
        branch blocks/0 1.0
        branch blocks/1 1.0
        branch blocks/2 1.0
        branch blocks/3 1.0
        input input 0 100.0
        """
        source, leaves = self._source, self.reading.leaves
        norms: list[float | None] = [None] * len(leaves)
        given = self.own_parameters() if params is None and self.has_own_parameters else params
        if given is not None:
            flat, _ = self._open(given, "weight")
            for at, (leaf, view, array) in enumerate(zip(leaves, self._views, flat, strict=True)):
                if leaf.roles and arrays.library(array) is not None:
                    norms[at] = norm_of(leaf, view.own, view.open(arrays.to_numpy(array)))
        if source is None:
            return report(leaves, norms, None, _named_inputs(inputs))
        program, *_ = jaxpr_of(source)
        return report(leaves, norms, find_literals(program, len(leaves)), _named_inputs(inputs or source.inputs[source.held :]))

    def rescale(self, params: Any, which: str = "output") -> Any:
        """Parameters at which training starts alike at every size: arrays brought to norm 1 of their kind, with their directions kept.

        In the standard parametrisation the norm of the last matrices grows as the square root of the width, and the rows of tables shrink
        as its inverse. Call this once, on fresh parameters; it would undo what trained parameters have learned.

        Args:
            params: a pytree of arrays like the traced parameters. Arrays that are zero, vectors and frozen arrays are returned unchanged.
            which: ``"output"`` for the last matrices and the tables, ``"all"`` for every matrix and table.

        Returns:
            A pytree like ``params``. A table that is also the last matrix is small enough for both of its uses.

        Raises:
            ValueError: ``which`` is neither, or ``params`` do not fit the table.

        >>> import jax, jax.numpy as jnp, numpy as np, modula_rs as mr
        >>> def apply(params, x):
        ...     return jax.nn.relu(x @ params["in"]) @ params["out"]
        >>> rng = np.random.default_rng(0)
        >>> params = {"in": rng.normal(0, 8 ** -0.5, (8, 256)), "out": rng.normal(0, 256 ** -0.5, (256, 4))}
        >>> net = mr.trace(apply, params, jax.ShapeDtypeStruct((3, 8), "float64"))
        >>> scaled = net.rescale(params)
        >>> bool(scaled["in"] is params["in"]), round(float(np.linalg.norm(scaled["out"], 2)), 2)
        (True, 0.12)
        """
        if which not in WHICH:
            raise ValueError(f"which must be one of {', '.join(map(repr, WHICH))}, got {which!r}")
        given, structured = self._open(params, "weight")
        made, leaves = list(given), self.reading.leaves
        chosen = [at for at, leaf in enumerate(leaves) if leaf.kind in MATRICES and (which == "all" or _scales(leaf))]
        for at, array in zip(chosen, self.part(chosen).radius([given[at] for at in chosen]), strict=True):
            made[at] = array if start_scale(leaves[at]) == 1 else array / start_scale(leaves[at])
        return structured(made)

    def __call__(self, x: Any, w: Any) -> Any:
        """The output of the program for the input ``x`` (a tuple for several) and parameters ``w``."""
        return self.forward(x, w)

    def forward(self, x: Any, w: Any) -> Any:
        """The output of the program for the input ``x`` (a tuple for several) and parameters ``w``.

        Inputs that are left out, and keywords, are those of the trace. Of a result (output, state), as of BatchNorm, this is the output.
        """
        source = self._program()
        weights, _ = self._open(w, "weight")
        inputs = source.complete(x if isinstance(x, tuple) else (x,))
        program, given = source.opened(inputs)
        self._check_together(("weight", weights), ("the input", jax.tree.leaves(given)))
        if self._jitted is not None:  # a program is compiled once for each set of flags among its inputs
            leaves, structure = jax.tree.flatten(inputs)
            key = f"forward {structure} {[None if is_array(leaf) else leaf for leaf in leaves]}"
            program = self._jitted.setdefault(key, jax.jit(program))
        if explicit.mesh_of(given, w) is not None:
            return explicit.run(lambda given, w: source.output(program(w, given)), given, w)
        return source.output(program(w, given))

    def output_shape(self, x: Any) -> Any:
        """The shapes and dtypes of the output for an input ``x``, of which the shape suffices."""
        return self._program().shapes(x if isinstance(x, tuple) else (x,))

    def jaxpr(self) -> Any:
        """The program as a closed jaxpr of (parameters, inputs), for the inputs of the trace."""
        source = self._program()
        program, given = source.opened(source.inputs)
        return jax.make_jaxpr(program)(source.params, given)

    def observer(self, x: Any, w: Any) -> Observer:
        """What runs the program on the input ``x`` and parameters like ``w``, and shows where each array meets data."""
        source = self._program()
        program, given = source.opened(source.complete(x if isinstance(x, tuple) else (x,)))
        closed = jax.make_jaxpr(lambda w, given: source.output(program(w, given)))(w, given)
        numbers = self.match(paths_of(w))
        paths, frozen = [self._paths[n] for n in numbers], [n in self._frozen for n in numbers]
        return Observer(closed, jax.tree.leaves(given), paths, frozen)

    def _program(self) -> Model:
        if self._source is None:
            raise ValueError("a table that was loaded has no program: trace the network to call it")
        return self._source

    def __getstate__(self) -> Any:
        """The reading, the program and whether it is compiled, for pickle; the program must be one that pickle knows."""
        return self.reading, self._source, self._jitted is not None

    def __setstate__(self, state: Any) -> None:
        reading, source, compiles = state
        Network.__init__(self, reading, source)  # the table is made again
        self._jitted = {} if compiles else None

    def __deepcopy__(self, memo: Any) -> Network:
        return copy.copy(self)  # readings and programs are immutable

    def __repr__(self) -> str:
        return f"<network of {len(self._paths)} arrays: mass {self.mass:g}>"


def _named_inputs(inputs: Sequence[Any]) -> list[tuple[str, Any]]:
    """The arrays among the inputs of a program, with their places."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tuple(inputs))
    return [(f"input {jax.tree_util.keystr(path, simple=True, separator='/')}", array) for path, array in flat]


def _scales(leaf: Leaf) -> bool:
    """Whether the norm of an array depends on the width in the standard parametrisation: a table, or a last matrix."""
    return leaf.kind == "Embed" or any(role.place == OUTPUT and role.kind in MATRICES for role in leaf.roles)


def _seed(key: Any) -> int:
    """A seed for the network's own initialisation."""
    return int(key.integers(2**31)) if isinstance(key, np.random.Generator) else operator.index(key)


def _in_library(array: Any, library: str) -> Any:
    """A frozen array in the library of the fresh ones; JAX keys stay as they are."""
    if arrays.library(array) == library or arrays.is_key(array):
        return array
    return arrays.namespace(library).asarray(array)
