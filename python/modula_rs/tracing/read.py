"""Reads a model, and makes the table of its parameters."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import jax
import numpy as np

from modula_rs.norm.checks import check_paths, shorten
from modula_rs.tracing.axes import INPUT, whole_array
from modula_rs.tracing.finding import Finding, find, independents
from modula_rs.tracing.layout import Layout, LayoutError
from modula_rs.tracing.lengths import jaxpr_of
from modula_rs.tracing.literals import Literals, find_literals
from modula_rs.tracing.mass import MATRICES, Masses, Member, Places, Weights, weigh
from modula_rs.tracing.models import Model, model
from modula_rs.tracing.paths import paths_of
from modula_rs.tracing.reading import Leaf, Reading, Role
from modula_rs.tracing.rules import Rule, contradiction, layered, parse_rules
from modula_rs.tracing.value import Kind, Value
from modula_rs.tracing.walk import Walk

TESTED = (0, 6), (0, 12)  # the oldest and the newest JAX with which the tests ran


class TraceError(ValueError):
    """Arrays for which the program does not decide what they are, or contradicts the user's rules."""


def read(apply: Any, *arguments: Any, rules: Mapping[str, str] | None = None, masses: Weights | None = None, **keywords: Any) -> Reading:
    """What each parameter of a program is.

    Args:
        apply: a function of (params, *inputs); or a module of Flax nnx or Equinox, a pair (linen's ``module.apply``, variables), a Haiku
            transform.
        arguments: params (any pytree) or a function ``init(key)`` that makes them, left out if the model holds them; then the inputs.
            Shapes suffice (``jax.ShapeDtypeStruct``). Axes of length 1 are read at another length, if the program allows it.
        rules: what arrays are, by their paths; the first match wins: ``{"**/A_log": "scale", "**/qkv": "linear io/3", "old/**":
            "frozen"}``.
            See ``modula_rs.tracing.layout`` for the letters. A rule that ends with ``!`` holds even if the program contradicts it.
        masses: the masses of the places of the network, by name: ``{"blocks": 2, "vectors": 1}``; see ``Masses``.
        keywords: further arguments of the program, such as ``train=False``.

    Returns:
        A row for each array, in the order of ``jax.tree_util.tree_leaves``.

    Raises:
        TraceError: the program does not decide what some arrays are, or a rule matches none or contradicts it. Every such array is listed.
    """
    return read_model(model(apply, arguments, keywords), rules, masses)


def read_model(source: Model, rules: Mapping[str, str] | None = None, masses: Weights | None = None) -> Reading:
    """What each parameter of a model is; see :func:`read`."""
    given, chosen = parse_rules(rules), Masses.of(masses)
    flat, _ = jax.tree_util.tree_flatten_with_path(source.params)
    paths = paths_of(source.params)
    _check_leaves(paths, [leaf for _, leaf in flat])
    shapes = [tuple(np.shape(leaf)) for _, leaf in flat]
    dtypes = [np.dtype(bool) if isinstance(leaf, bool) else _dtype(leaf) for _, leaf in flat]
    matched = [next((rule for rule in given if rule.matches(path)), None) for path in paths]
    unused = [rule for rule in given if not rule.forced and not any(map(rule.matches, paths))]
    fixed = [_fixed(source, path, dtype) for (path, _), dtype in zip(flat, dtypes, strict=True)]
    no_weight = frozenset(i for i, rule in enumerate(matched) if rule is not None and rule.kind in ("Embed", "Bias", "Scale"))
    gains = frozenset(i for i, rule in enumerate(matched) if rule is not None and rule.kind == "Scale")
    program, notes, following = jaxpr_of(source)
    findings = _findings(program, following, shapes, [bool(why) for why in fixed], Walk(paths, no_weight, gains))
    decided = [_decide(*row) for row in zip(paths, shapes, findings, matched, fixed, strict=True)]
    problems = [row for row in decided if isinstance(row, str)] + [
        f"rule {rule}: it matches no array{_close(rule, paths)}" for rule in unused
    ]
    if problems:
        raise TraceError(_message(problems, len(paths)))
    rows = [row for row in decided if not isinstance(row, str)]
    arrays = list(zip(paths, shapes, map(str, dtypes), strict=True))
    leaves = _weighed(arrays, findings, rows, find_literals(program, len(paths)), chosen)
    idle = [f"rule {rule} decides nothing: {_hidden(rule, given, paths)}" for rule in given if rule not in matched]
    return Reading(leaves, tuple(filter(None, [*notes, *idle, _untested()])), chosen)


Decision = tuple[list[tuple[str, Layout]], str]  # the roles, the leading role first, and the reason


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else jax.dtypes.canonicalize_dtype(np.result_type(leaf))


def _check_leaves(paths: Sequence[str], leaves: Sequence[Any]) -> None:
    for path, leaf in zip(paths, leaves, strict=True):
        if not hasattr(leaf, "shape") and not isinstance(leaf, bool | int | float | complex):
            raise TypeError(f"params: {path or 'the tree'} must be an array, got {type(leaf).__name__}; {_advice(leaf)}")
    if not leaves:
        raise ValueError("params have no arrays")
    check_paths(paths)


def _advice(leaf: Any) -> str:
    """What to do with a leaf that is no array."""
    if dataclasses.is_dataclass(leaf):
        return f"register the class as a pytree: jax.tree_util.register_dataclass({type(leaf).__name__})"
    return "leave out of params what is not trained"


def _fixed(source: Model, path: Any, dtype: Any) -> str:
    """The reason why an array is not part of the norm, whatever the program does with it; "" if it may be."""
    if not source.trained(path):
        return "it is in a collection that is not trained"
    if not jax.numpy.issubdtype(dtype, np.inexact):
        return f"it has no gradient, being {dtype}"
    return ""


def _findings(
    closed: Any, following: Mapping[str, str], shapes: Sequence[tuple[int, ...]], fixed: Sequence[bool], walk: Walk
) -> list[Finding]:
    """What the program does with each array. ``following``: the arrays whose shape follows an axis of length 1, with the reason."""
    values = []
    for leaf, (shape, frozen) in enumerate(zip(shapes, fixed, strict=True)):
        view = whole_array(leaf, shape)
        kind = Kind.DATA if frozen else Kind.PARAMETER
        values.append(Value(kind, shape, (view,)))
    inputs = closed.jaxpr.invars[len(shapes) :]
    for var in inputs:
        shape = tuple(getattr(var.aval, "shape", ()))
        values.append(Value(Kind.DATA, shape, (whole_array(INPUT, shape),)))
    try:
        walk.refuse(walk.spread(walk.call(closed, values)), "the program gives it back as it is")
        independent = independents(walk.record, len(shapes))
        found = [find(walk.record, leaf, shape, independent[leaf]) for leaf, shape in enumerate(shapes)]
    except Exception as error:
        if _untested():  # a version of JAX may describe programs in another way
            raise TraceError(f"the program could not be read ({type(error).__name__}: {error}): {_untested()}") from error
        raise
    return [_unless_short(finding, path, following) for finding, path in zip(found, walk.names, strict=True)]


def _unless_short(finding: Finding, path: str, following: Mapping[str, str]) -> Finding:
    """The finding, but a vector whose shape follows the length of an axis may be a table of one row."""
    vectors = finding.roles and all(role.kind in ("Bias", "Scale") and prod(role.layout.shape) > 1 for role in finding.roles)
    return Finding(problem=f"{finding.roles[0].use.why}; {following[path]}") if vectors and path in following else finding


def _decide(path: str, shape: tuple[int, ...], finding: Finding, rule: Rule | None, fixed: str) -> Decision | str:
    """The roles of an array with the reason, or the problem."""
    if rule is not None and rule.kind == "frozen":
        return [], f"rule {rule}"
    if fixed:
        return ([], fixed) if rule is None else f"{path} {shape}: {fixed}, but rule {rule} says otherwise"
    roles = [(role.kind, role.layout) for role in finding.roles]
    if rule is None:
        if finding.problem:
            return f"{path} {shape}: {finding.problem}.{_suggestion(path, shape, finding)}"
        return roles, _why(finding)
    found = next((layout for kind, layout in roles if kind == rule.kind), roles[0][1] if roles else None)
    try:
        layout = rule.layout(shape, found if rule.kind in dict(roles) else None, finding.stack)
    except LayoutError as error:
        return f"{path} {shape}: rule {rule}: {error}"
    if found is not None and roles:
        if not rule.forced and (wrong := contradiction(rule, layout, [kind for kind, _ in roles], found)):
            return f"{path} {shape}: rule {rule}: {wrong}, since {finding.roles[0].use.why}; end the rule with ! to have it so all the same"
        layout = layered(layout, found)
    further = [role for role in roles if role != (rule.kind, found)] if not rule.forced else []
    return [(rule.kind, layout), *further], f"rule {rule}"


def _why(finding: Finding) -> str:
    layout = finding.roles[0].layout
    whys = list(dict.fromkeys(role.use.why for role in finding.roles))
    if layout.copies > 1:
        whys.append(f"a loop or an index runs over its {layout.copies} layers")
    if layout.parts > 1:
        whys.append(f"it is cut into {layout.parts} parts that are used apart")
    return "; ".join([*whys, *dict.fromkeys(finding.notes)])


def _suggestion(path: str, shape: tuple[int, ...], finding: Finding) -> str:
    letters = "linear " + "." * (len(shape) - 2) + "io"
    first = "frozen" if finding.unused else "scale" if len(shape) < 2 else letters
    others = [kind for kind in ("scale", "bias", "embed", "frozen") if kind != first and (kind != "embed" or len(shape) > 1)]
    return f' Say what it is: rules={{"{path}": "{first}"}}, or {", ".join(others)}'


def _weighed(
    arrays: Sequence[tuple[str, tuple[int, ...], str]],
    findings: Sequence[Finding],
    rows: Sequence[Decision],
    literals: Literals,
    masses: Masses,
) -> tuple[Leaf, ...]:
    """The rows of the table, with the place and the mass of each use. ``arrays`` holds path, shape and dtype of each array."""
    members: list[Member | None] = []
    for (path, _, _), finding, (roles, _) in zip(arrays, findings, rows, strict=True):
        found = tuple(role.use for role in finding.roles)
        members.append(Member(path, roles[0][0], roles[0][1].copies, found) if roles else None)
    places = Places(members)
    uses = [(leaf, kind, layout, places.of(leaf, at)) for leaf, (roles, _) in enumerate(rows) for at, (kind, layout) in enumerate(roles)]
    based = [any(role.use.based for role in finding.roles) for finding in findings]
    matrices = [layout.copies * layout.parts if kind in MATRICES else 0 for _, kind, layout, _ in uses]
    vectors = [0 if kind in MATRICES else layout.copies for _, kind, layout, _ in uses]
    weights = weigh([place for *_, place in uses], matrices, vectors, masses)
    made: list[list[Role]] = [[] for _ in rows]
    gains = literals.gains(len(rows))
    for (leaf, kind, layout, place), weight in zip(uses, weights, strict=True):
        scale = literals.scales.get(leaf, 1.0) * (literals.rows.get(leaf, 1.0) if kind == "Embed" else 1.0)
        gain = scale * gains[leaf] ** masses.branches
        made[leaf].append(Role(kind, layout, place, weight, based[leaf], _rounded(scale), _rounded(gain)))
    total = sum(role.mass for roles in made for role in roles)
    targets = [roles[0].mass / (roles[0].number * total * roles[0].gain) if roles and total else 0.0 for roles in made]
    columns = zip(arrays, made, rows, targets, strict=True)
    return tuple(Leaf(*array, tuple(roles), why + _told(roles), target) for array, roles, (_, why), target in columns)


def _rounded(number: float) -> float:
    """A literal to six digits, to which it is the same in every version of JAX."""
    return float(f"{number:.6g}")


def _told(roles: Sequence[Role]) -> str:
    """What the table says about literals that multiply what an array makes."""
    gains = dict.fromkeys(role.gain for role in roles if role.gain != 1)
    return "".join(f"; the program multiplies what it makes by {gain:.3g}" for gain in gains)


def _message(problems: Sequence[str], count: int) -> str:
    head = f"cannot tell what {len(problems)} of {count} arrays are" if len(problems) > 1 else "cannot tell what an array is"
    return "\n  ".join([head + ":", *problems, *filter(None, [_untested()])])


def _close(rule: Rule, paths: Sequence[str]) -> str:
    """A path that the pattern of a rule may have been meant for."""
    ends = {path.rpartition("/")[2]: path for path in reversed(paths)}
    near = difflib.get_close_matches(rule.pattern.rpartition("/")[2], ends, 1)
    return f"; there is {ends[near[0]]}" if near else f"; the first paths are {shorten(paths[:3])}"


def _hidden(rule: Rule, rules: Sequence[Rule], paths: Sequence[str]) -> str:
    hidden = [path for path in paths if rule.matches(path)]
    return f"{next(other for other in rules if other.matches(hidden[0]))} comes before it" if hidden else "it matches no array"


def _untested() -> str:
    version = tuple(int(part) for part in jax.__version__.split(".")[:2])
    if TESTED[0] <= version <= TESTED[1]:
        return ""
    newest = ".".join(map(str, TESTED[1]))
    return f"JAX {jax.__version__} is not among the versions with which the trace was tested: {'.'.join(map(str, TESTED[0]))} to {newest}"
