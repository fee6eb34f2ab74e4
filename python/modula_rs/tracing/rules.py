"""The user's rules, which say by their paths what arrays are where the program does not decide."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modula_rs.tracing.layout import Layout, LayoutError, make_layout, parse_layout

KINDS = {"linear": "Linear", "conv": "Conv2D", "embed": "Embed", "scale": "Scale", "bias": "Bias", "frozen": "frozen"}


@dataclass(frozen=True)
class Rule:
    """A rule: arrays whose paths match ``pattern`` have the kind and the layout in ``text``. A forced rule overrides the program."""

    pattern: str
    kind: str
    text: str
    forced: bool

    def matches(self, path: str) -> bool:
        """Whether the rule is about the array at this path."""
        return path == self.pattern or _matches(self.pattern, path)

    def __str__(self) -> str:
        return f"{self.pattern!r}: {' '.join(filter(None, [self.kind.lower(), self.text, '!' if self.forced else '']))!r}"

    def layout(self, shape: Sequence[int], found: Layout | None, stack: Layout | None = None) -> Layout:
        """The layout that the rule gives an array; ``found`` is the program's layout, which is kept if the rule names only a kind.

        ``stack``: where the program does not decide the kind, a layout in which the axes over which it loops are layers.

        Raises:
            LayoutError: the rule does not fit the shape, or does not say which axes are contracted.
        """
        if self.text:
            return parse_layout(self.text, shape)
        if found is not None:
            return found
        digits = [_layers(stack.axis(axis)) if stack is not None else [("o", n)] for axis, n in enumerate(shape)]
        if self.kind in ("Scale", "Bias"):
            return make_layout(shape, digits)
        if self.kind == "Embed" and len(shape):
            rows = [[("i" if letter == "o" else letter, n) for letter, n in axis] for axis in digits[:-1]]
            return make_layout(shape, [*rows, digits[-1]])
        raise LayoutError(f"say which axes are contracted and which produced, as in '{self.kind.lower()} {'k' * (len(shape) - 2)}io'")


def _layers(items: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """The digits of an axis of a vector, of which only layers and independent digits are told from features."""
    return [(letter if letter in "l." else "o", n) for letter, n in items]


def parse_rules(rules: Mapping[str, str] | None) -> list[Rule]:
    """The rules of a mapping from patterns to kinds and layouts, in their order.

    A pattern is matched with the whole path: ``*`` stands for any text within one segment, ``**/`` for any number of segments, ``{a,b}``
    for one of several. A rule that ends with ``!`` holds even if the program contradicts it.

    Raises:
        TypeError: the rules are no mapping from texts to texts.
        ValueError: a rule names no kind.

    >>> parse_rules({"**/qkv": "linear io/3"})[0].matches("blocks/0/qkv")
    True
    """
    if rules is not None and not isinstance(rules, Mapping):
        raise TypeError(f"rules must be a dict like {{'**/A_log': 'scale'}}, got {type(rules).__name__}")
    made = []
    for pattern, text in (rules or {}).items():
        if not isinstance(pattern, str):
            raise TypeError(f"the patterns of rules must be strings, got {type(pattern).__name__}")
        if not isinstance(text, str):
            raise TypeError(f"rules[{pattern!r}] must be a string like 'linear io', got {type(text).__name__}")
        body = text.strip()
        kind, _, axes = body.removesuffix("!").strip().partition(" ")
        if kind not in KINDS:
            raise ValueError(f"rules[{pattern!r}] = {text!r}: the kind must be one of {', '.join(KINDS)}, got {kind!r}")
        made.append(Rule(pattern, KINDS[kind], axes.strip(), body.endswith("!")))
    return made


def _matches(pattern: str, path: str) -> bool:
    """Whether a pattern matches the whole path, token by token: a regular expression could take exponential time.

    ``reached`` are the places of the path up to which the tokens so far match.
    """
    reached = {0}
    for token in re.split(r"(\*\*/|/\*\*$|\*\*|\*|\?|\{[^}]*\})", pattern):
        if not reached:
            return False
        first = min(reached)
        match token:
            case "**/":
                reached |= {at + 1 for at in range(first, len(path)) if path[at] == "/"}
            case "/**":
                slash = min((at for at in reached if path[at : at + 1] == "/"), default=len(path))
                reached = set(range(slash + 1, len(path) + 1))
            case "**":
                reached = set(range(first, len(path) + 1))
            case "*":
                for at in range(first, len(path)):
                    if at in reached and path[at] != "/":
                        reached.add(at + 1)
            case "?":
                reached = {at + 1 for at in reached if path[at : at + 1] not in ("", "/")}
            case _:
                words = token[1:-1].split(",") if token.startswith("{") and token.endswith("}") else [token]
                reached = {at + len(word) for at in reached for word in words if path.startswith(word, at)}
    return len(path) in reached


def contradiction(rule: Rule, layout: Layout, kinds: Sequence[str], found: Layout) -> str:
    """How a rule contradicts the program, or "". A rule may cut an axis further, but not contract an axis that the program produces."""
    if rule.kind not in kinds:
        return f"the program uses it as {' and '.join(kinds)}"
    if rule.kind in ("Scale", "Bias"):
        return ""
    for axis in range(len(layout.shape)):
        for mine, theirs in _pairs(layout.axis(axis), found.axis(axis)):
            if {mine, theirs} == {"i", "o"} or ("k" in (mine, theirs) and mine != theirs):
                return f"the program has the layout {found}"
    return ""


def _pairs(one: Sequence[tuple[str, int]], other: Sequence[tuple[str, int]]) -> set[tuple[str, str]]:
    """The pairs of letters that two descriptions of an axis give to the same indices, digit by digit."""
    made = set()
    for mine, low, high in _strides(one):
        for theirs, below, above in _strides(other):
            if low < above and below < high:
                made.add((mine, theirs))
    return made


def _strides(items: Sequence[tuple[str, int]]) -> list[tuple[str, int, int]]:
    made, stride = [], 1
    for letter, size in reversed(items):
        made.append((letter, stride, stride * size))
        stride *= size
    return made


def layered(layout: Layout, found: Layout) -> Layout:
    """The layout with counting axes marked as layers where the program says so."""
    digits = []
    for axis in range(len(layout.shape)):
        items, theirs = layout.axis(axis), found.axis(axis)
        same = len(items) == len(theirs) == 1 and items[0][0] == "." and theirs[0][0] == "l"
        digits.append(theirs if same else items)
    if layout.sections:
        return layout
    return make_layout(layout.shape, digits)
