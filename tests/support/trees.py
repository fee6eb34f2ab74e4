"""Random well-typed modules, described without the library, so that tests can infer their properties independently."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import modula_rs as mr
import numpy as np
from hypothesis import strategies as st

TOKENS = 5  # number of rows of every table
LENGTH = 3  # number of tokens of a sequence
SIDE = 4  # height and width of an image

#: Bonds that keep the shape of any array, each as its constructor and arguments.
ELEMENTWISE = [("Identity",), ("Abs",), ("ReLU",), ("Tanh",), ("GELU",), ("GELU", 1.2), ("ReLU", 0.7), ("ScaledReLU",), ("ScaledGELU",)]
STATISTICS = [("MeanSubtract", -1), ("RMSDivide", -1), ("LayerNorm", -1)]
OVER_IMAGES = [("MeanSubtract", (-3, -2, -1)), ("RMSDivide", (-3, -2, -1)), ("LayerNorm", (-3, -2, -1))]


@dataclass(frozen=True)
class Expr:
    """An expression: a constructor or operator, and the parts to which it is applied."""

    op: str
    args: tuple[Any, ...] = ()
    parts: tuple[Expr, ...] = ()

    def build(self) -> mr.Module:
        """The module that the expression stands for."""
        parts = [part.build() for part in self.parts]
        match self.op, self.args:
            case "atom", (kind, sizes, mass, share):
                return getattr(mr, kind)(*sizes, mass=mass, share=share)
            case "bond", (("ReLU" | "GELU") as name, s):
                return getattr(mr, name)(sensitivity=s)
            case "bond", (name, *arguments):
                return getattr(mr, name)(*arguments)
            case "compose", ():
                return parts[0] @ parts[1]
            case "tuple", ():
                return mr.Identity() @ tuple(parts)
            case "add", ():
                return parts[0] + parts[1]
            case "sub", ():
                return parts[0] - parts[1]
            case "neg", ():
                return -parts[0]
            case "left", (a,):
                return a * parts[0]
            case "right", (a,):
                return parts[0] * a
            case "divide", (a,):
                return parts[0] / a
            case "power", (times,):
                return parts[0] ** times
            case "tare", (absolute, relative):
                return parts[0].tare(absolute) if relative is None else parts[0].tare(relative=relative)
            case "named", (name,):
                return parts[0].named(name)
        raise ValueError(f"no operation {self.op}{self.args}")

    @property
    def mass(self) -> float:
        """The mass before a tare further up rescales it."""
        match self.op, self.args:
            case "atom", (_, _, mass, _):
                return mass
            case "power", (times,):
                return times * self.parts[0].mass
            case "tare", (absolute, relative):
                return absolute if relative is None else relative * self.parts[0].mass
        return sum(part.mass for part in self.parts)

    def uses(self, *names: str) -> bool:
        """Whether the expression contains an atom or a bond with one of these names."""
        if (self.op, self.args) == ("power", (0,)):
            return False
        here = self.op in ("atom", "bond") and self.args[0] in names
        return here or any(part.uses(*names) for part in self.parts)

    def __repr__(self) -> str:
        parts = ", ".join(map(repr, self.parts))
        return f"{self.op}{list(self.args)}" + (f"({parts})" if parts else "")


def atom(kind: str, *sizes: Any, mass: float = 1.0, share: str | None = None) -> Expr:
    return Expr("atom", (kind, sizes, mass, share))


def bond(name: str, *arguments: Any) -> Expr:
    return Expr("bond", (name, *arguments))


def compose(*outermost_first: Expr) -> Expr:
    first, *rest = outermost_first
    return Expr("compose", (), (first, compose(*rest))) if rest else first


# ---- strategies ----------------------------------------------------------------------------------------------------------------

sizes = st.sampled_from([1, 2, 3, 4])
masses = st.sampled_from([1.0, 1.0, 1.0, 0.5, 2.5, 0.0])
scalars = st.sampled_from([-2.0, -0.5, 0.3, 1.0, 1.5])


@st.composite
def atoms(draw: st.DrawFn, into: int, out: int, images: bool) -> Expr:
    """An atom from ``into`` to ``out`` features."""
    kinds = ["Linear"] + ["Conv2D"] * images + ["Bias", "Scale"] * (into == out)
    kind = draw(st.sampled_from(kinds))
    kernel, padding = draw(st.sampled_from([(3, 1), (1, 0), ((1, 3), (0, 1))]))
    arguments = {"Linear": (out, into), "Conv2D": (out, into, kernel, 1, padding)}.get(kind, (into,))
    share = f"{kind}{arguments}" if draw(st.integers(0, 3)) == 0 else None
    return atom(kind, *arguments, mass=draw(masses), share=share)


@st.composite
def bonds(draw: st.DrawFn, images: bool) -> Expr:
    return bond(*draw(st.sampled_from(ELEMENTWISE + STATISTICS + OVER_IMAGES * images + [("Softmax", 0.5)])))


@st.composite
def attention(draw: st.DrawFn, into: int, out: int) -> Expr:
    """Attention between the positions of a sequence, with heads or with plain scores."""
    if draw(st.booleans()):
        scores = compose(bond("CausalMask"), atom("Linear", LENGTH, into))
        return compose(atom("Linear", out, LENGTH), bond("Softmax", 0.5), scores)
    heads = 2 if out % 2 == 0 else 1
    d_query = 2
    split = bond("SplitIntoHeads", heads)
    turn = bond("Rope", d_query) if draw(st.booleans()) else bond("Identity")
    q, k = (compose(turn, split, atom("Linear", heads * d_query, into)) for _ in range(2))
    v = compose(split, atom("Linear", out, into))
    return compose(bond("MergeHeads"), bond("FunctionalAttention", draw(st.booleans())), Expr("tuple", (), (q, k, v)))


@st.composite
def preserving(draw: st.DrawFn, into: int, out: int, depth: int, images: bool = False) -> Expr:
    """A module from ``into`` to ``out`` features that keeps all other axes."""
    choices = ["atom", "atom"] + ["bond", "bond"] * (into == out)
    if depth > 0:
        choices += ["compose"] * 4 + ["add", "sub", "sum", "neg", "left", "right", "divide", "tare", "named"]
        choices += ["power"] * 3 * (into == out) + ["attention"] * (not images)
    choice = draw(st.sampled_from(choices))

    def inner(a: int = into, b: int = out) -> Expr:
        return draw(preserving(a, b, depth - 1, images))

    match choice:
        case "atom":
            return draw(atoms(into, out, images))
        case "bond":
            return draw(bonds(images))
        case "compose":
            middle = draw(sizes)
            return Expr(choice, (), (inner(middle, out), inner(into, middle)))
        case "add" | "sub":
            return Expr(choice, (), (inner(), inner()))
        case "sum":
            members = tuple(inner() for _ in range(draw(st.integers(1, 3))))
            scaled = Expr("left", (draw(scalars),), (Expr("tuple", (), members),))
            return compose(bond("Add"), scaled)
        case "neg":
            return Expr(choice, (), (inner(),))
        case "left" | "right" | "divide":
            return Expr(choice, (draw(scalars),), (inner(),))
        case "tare":
            part = inner()
            relative = draw(st.sampled_from([None, 0.5, 3.0]))
            return Expr(choice, (draw(st.sampled_from([1.0, 4.0])), relative), (part,)) if part.mass > 0 else part
        case "power":
            return Expr(choice, (draw(st.integers(0, 3)),), (inner(),))
        case "attention":
            return draw(attention(into, out))
    return Expr("named", (draw(st.sampled_from(["a", "b"])),), (inner(),))


@dataclass(frozen=True)
class Case:
    """An expression and the shape of its input, which holds integers below ``tokens`` if ``tokens`` is not None."""

    expr: Expr
    shape: tuple[int, ...]
    tokens: int | None = None

    def input(self, rng: np.random.Generator, dtype: Any = np.float64) -> np.ndarray[Any, Any]:
        if self.tokens is not None:
            return rng.integers(0, self.tokens, self.shape)
        return rng.standard_normal(self.shape).astype(dtype)


@st.composite
def cases(draw: st.DrawFn, depth: int = 3) -> Case:
    """A network on vectors, on images or on tokens."""
    into, middle, out = draw(sizes), draw(sizes), draw(sizes)
    kind = draw(st.sampled_from(["vectors", "images", "tokens"]))
    if kind == "images":
        body = draw(preserving(into, middle, depth, images=True))
        head = draw(
            st.sampled_from(
                [
                    bond("Identity"),
                    compose(atom("Linear", out, middle), bond("AvgPool")),
                    compose(atom("Linear", out, SIDE * SIDE * middle), bond("Flatten")),
                    compose(bond("Mean", (-3, -2)), atom("Conv2D", out, middle, 3, 2, 1)),
                    atom("Conv2D", out, middle, (2, 3), (2, 1), (0, 1)),
                ]
            )
        )
        return Case(compose(head, body), (2, SIDE, SIDE, into))
    body = draw(preserving(middle, out, depth))
    if kind == "vectors":
        head = draw(st.sampled_from([bond("Identity"), bond("Mean", -2), compose(bond("Mean", -1), bond("Abs")), bond("Flatten")]))
        return Case(compose(head, body, draw(atoms(into, middle, False))), (2, LENGTH, into))
    table = atom("Embed", middle, TOKENS, mass=draw(masses), share=draw(st.sampled_from([None, "table"])))
    positions = compose(atom("Embed", middle, LENGTH), bond("Enumerate"))
    stem = draw(st.sampled_from([table, Expr("add", (), (Expr("left", (0.5,), (table,)), Expr("left", (0.5,), (positions,))))]))
    head = draw(st.sampled_from([bond("Identity"), compose(atom("Linear", TOKENS, middle, share="table"), atom("Linear", middle, out))]))
    return Case(compose(head, body, stem), (2, LENGTH), TOKENS)
