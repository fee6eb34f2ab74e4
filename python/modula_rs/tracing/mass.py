"""The mass of each array by its place in the program: before the first mixing, between, last.

The places are found by dataflow, never by name or by size: an array is of the *input* if the data that it meets has met no matrix yet, of the
*output* if no matrix meets what it makes. What lies between is *blocks* where it repeats, as a stack under a scan or as numbered modules of one
structure, and *layers* where it does not. Only the numbering is read from the paths.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from modula_rs.tracing import record as uses
from modula_rs.tracing.finding import Finding

INPUT, BLOCKS, LAYERS, OUTPUT = "input", "blocks", "layers", "output"
MATRICES = ("Linear", "Conv2D", "Embed")


@dataclass(frozen=True)
class Masses:
    """How much the places of a network weigh.

    ``input``, ``blocks``, ``output``: all matrices there together, whatever their number (Large et al. 2024, section 4: the depth of the blocks
    does not change their mass). ``layers``: each matrix between that belongs to no block. ``vectors``: a gain or bias, as a share of a matrix at
    its place.
    """

    input: float = 1.0
    blocks: float = 5.0
    output: float = 1.0
    layers: float = 1.0
    vectors: float = 0.1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"the mass of {field.name} must be finite and not negative, got {value}")


@dataclass(frozen=True)
class Member:
    """What masses depend on: ``matrices`` counts the layers and the parts of an array. ``use_places``: of further uses."""

    place: str
    matrix: bool
    matrices: int


def places(findings: Sequence[Finding], kinds: Sequence[str], paths: Sequence[str]) -> list[tuple[str, ...]]:
    """The place of each use of each array; () for arrays that have no part in the norm.

    ``kinds``: what each array is in the end, after the user's rules.
    """
    count = len(findings)
    mixing, added = 0, 0
    for leaf, (finding, kind) in enumerate(zip(findings, kinds, strict=True)):
        if kind in MATRICES:
            if finding.roles and all(role.use.kind == uses.PLACES for role in finding.roles):
                added |= 1 << leaf
            else:
                mixing |= 1 << leaf
    inputs, needed = 0, 0
    for leaf in range(count):
        for role in findings[leaf].roles:
            if mixing >> leaf & 1:
                needed |= role.use.seen & ~(1 << leaf)
        first = findings[leaf].roles[:1]
        if mixing >> leaf & 1 and first and not first[0].use.seen & mixing & ~(1 << leaf):
            inputs |= 1 << leaf
    blocks = _in_blocks(findings, kinds, paths, mixing & ~inputs)
    made = []
    for leaf, (finding, kind) in enumerate(zip(findings, kinds, strict=True)):
        roles = finding.roles or ((None,) if kind != "frozen" else ())
        made.append(tuple(_place(leaf, role, mixing, inputs, needed, blocks, findings) for role in roles) if kind != "frozen" else ())
    return made


def _place(leaf: int, role: object, mixing: int, inputs: int, needed: int, blocks: set[int], findings: Sequence[Finding]) -> str:
    use = getattr(role, "use", None)
    between = BLOCKS if leaf in blocks else LAYERS
    if use is None:
        return between
    others = use.seen & mixing & ~(1 << leaf)
    if mixing >> leaf & 1:
        if role is not findings[leaf].roles[0]:  # a further use, such as a tied table as the last matrix
            later = any(r.use.seen & use.seen == use.seen for k, f in enumerate(findings) if k != leaf and mixing >> k & 1 for r in f.roles)
            return between if later else OUTPUT
        if leaf in blocks:
            return BLOCKS
        if not needed >> leaf & 1 and use.kind != uses.EMBED:
            return OUTPUT
        return INPUT if inputs >> leaf & 1 else LAYERS
    if leaf in blocks:
        return BLOCKS
    if not others & ~inputs and needed >> leaf & 1:
        return INPUT
    return OUTPUT if not needed >> leaf & 1 else LAYERS


_NUMBER = re.compile(r"\d+")


def _in_blocks(findings: Sequence[Finding], kinds: Sequence[str], paths: Sequence[str], between: int) -> set[int]:
    """The arrays of repeated blocks: layers of a stack, and members of a numbered container that hold several matrices or modules."""
    made = {leaf for leaf, finding in enumerate(findings) if finding.roles and finding.roles[0].layout.copies > 1}
    families: dict[tuple[str, str], dict[str, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
    for leaf, path in enumerate(paths):
        segments = path.split("/")
        for at, segment in enumerate(segments[:-1]):
            number = _NUMBER.search(segment)
            if number is not None:
                family = "/".join(segments[:at]), segment[: number.start()] + "#" + segment[number.end() :]
                families[family][number[0]].append((leaf, len(segments) - at - 1))
    for members in families.values():
        repeated = [member for member in members.values() if any(between >> leaf & 1 for leaf, _ in member)]
        if len(repeated) > 1 and any(_is_block(member, between) for member in repeated):
            edges = {leaf for member in repeated for leaf, _ in member if kinds[leaf] in MATRICES and not between >> leaf & 1}
            made |= {leaf for member in repeated for leaf, _ in member} - {leaf for leaf in edges if not _added(findings[leaf])}
    return made


def _added(finding: Finding) -> bool:
    return bool(finding.roles) and finding.roles[0].use.kind == uses.PLACES


def _is_block(member: Sequence[tuple[int, int]], between: int) -> bool:
    matrices = [depth for leaf, depth in member if between >> leaf & 1]
    return len(matrices) > 1 or any(depth > 1 for depth in matrices)


def weigh(members: Sequence[Member], masses: Masses) -> list[float]:
    """The mass of each array, of all its layers and parts together."""
    total = {INPUT: masses.input, BLOCKS: masses.blocks, OUTPUT: masses.output}
    number: dict[str, int] = defaultdict(int)
    for member in members:
        number[member.place] += member.matrices if member.matrix else 0
    made = []
    for member in members:
        each = total[member.place] / max(number[member.place], 1) if member.place in total else masses.layers
        made.append(each * member.matrices * (1.0 if member.matrix else masses.vectors))
    return made


def check(masses: Mapping[str, float]) -> Masses:
    """The masses, with the user's in place of the defaults."""
    known = [field.name for field in fields(Masses)]
    if wrong := sorted(set(masses) - set(known)):
        raise ValueError(f"masses are those of {', '.join(known)}, got {', '.join(wrong)}")
    return Masses(**masses)
