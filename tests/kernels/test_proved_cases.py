"""Which cases the proofs of a family have: every kernel and branch that a plan may choose, on each card."""

from __future__ import annotations

from itertools import product

import cases
import numpy as np
import pytest
from cards import A100, CARDS
from modula_rs.kernels import choose, maps, proofs, verdicts
from modula_rs.kernels.device import H200
from modula_rs.kernels.launches import Operand

KERNELS = [name for name in verdicts.FAMILIES if name not in ("graph", "jax")]

#: Parameters by which kernels branch, and counts by which they branch only between one and several.
BRANCHES = ("task", "dtype", "tall", "mode", "fold", "phase", "factor_power", "team", "steps", "restart")
SEVERAL = ("tiles", "teams", "stripes")
#: Addresses that may be null.
OPTIONAL = ("parts", "partial", "squares", "c", "d", "factor", "dots", "total", "work", "norms", "more")


def choices(plan):
    """Each kernel of a plan, with each value by which it branches, and whether scales are on the device."""
    scales = {int(entry) for _, table in plan.constants for entry in table["float_scale"]}
    for item in plan.launches:
        yield from ((item.kernel, "float_scale", value) for value in scales if "entries" in item.params.dtype.names)
        for name in item.params.dtype.names:
            value = item.params[name]
            if (name in BRANCHES and "tiles_m" not in item.params.dtype.names) or name in ("dtype", "tall", "factor_power"):
                yield item.kernel, name, int(value)
            elif name in SEVERAL:
                yield item.kernel, name, min(int(value), 2)
            elif name in OPTIONAL and item.module != "upload":
                yield item.kernel, name, bool(np.any(value))


SHAPES = [
    (1, 1), (1, 9), (9, 1), (31, 40), (40, 31), (33, 500), (60, 900), (60, 3200), (90, 2000), (100, 65), (65, 100), (120, 1500), (129, 192),
    (192, 129), (250, 256), (256, 250), (300, 131), (131, 300), (768, 1500), (1500, 768), (5, 9001), (3, 9001), (64, 1100), (700, 33),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("card", ["A100", "RTX 4090", "H200", "B200"])
def test_what_the_planner_may_choose_is_proved(card, monkeypatch):
    """A family's verdict holds for every kernel and every branch that a plan may choose on the card, whatever the shapes of the model."""
    monkeypatch.setattr(choose, "WIDE_TILES", 4)
    monkeypatch.setenv("MODULA_RS_GPU_EXTRA", "resident product_wide")
    device = CARDS[card]._replace(allowed=verdicts.allowed(verdicts.FAMILIES))
    shown = {choice for family in KERNELS for case in proofs.cases(family, CARDS[card]) for choice in choices(case.plan(CARDS[card]))}
    unproved = {}
    for (rows, cols), count, dtype in product(SHAPES, (1, 200), cases.DTYPES):
        if count * rows * cols > 10**8:
            continue
        operand = Operand("spectral", count, rows, cols, dtype, scales_on_device=count == 1)
        plans = [build([operand], device) for build in (maps.dualize, maps.normalize, maps.norms, maps.dual_norms)]
        plans += [maps.dualize([operand], device, precision="float32"), maps.normalize([operand._replace(warm=True)], device)]
        plans += [maps.dualize([operand], device, accuracy=accuracy) for accuracy in ("fast", "coarse")]
        unproved |= {choice: operand for plan in plans for choice in choices(plan) if choice not in shown}
    for geometry, cols, dtype, placed in product(("row_rms", "rms", "max_abs"), (1, 7, 1024, 1025, 5000), cases.DTYPES, (False, True)):
        operand = Operand(geometry, 2, 5 if geometry == "row_rms" else 1, cols, dtype, placed)
        plans = [build([operand], device) for build in (maps.dualize, maps.normalize, maps.norms, maps.dual_norms)]
        unproved |= {choice: operand for plan in plans for choice in choices(plan) if choice not in shown}
    assert unproved == {}


@pytest.mark.parametrize("card", CARDS)
def test_every_family_of_a_card_has_cases_there(card):
    """On a card with little shared memory, the matrices that it cannot take are left out of the proof, and the others are proved."""
    hopper = CARDS[card].capability == (9, 0)
    having = {family for family in KERNELS if any(proofs.cases(family, CARDS[card]))}
    assert having == {*KERNELS} - (set() if hopper else {"product_wgmma", "product_wide", "resident"})
    edges = {
        item.kernel for case in proofs.cases("small", CARDS[card]) for item in case.plan(CARDS[card]).launches if item.module == "small"
    }
    assert edges == {
        f"small_{edge}_{planes}" for planes, known in choose.EDGES.items() for edge in known
        if choose.small_shape(edge, planes)[1] <= CARDS[card].shared
    }  # fmt: skip


@pytest.mark.parametrize("family", KERNELS)
def test_a_family_allows_what_its_proof_launches(family):
    """Nothing is allowed that is not proved, and no kind of case vanishes because the family may not run what it takes."""
    device = A100 if family == "product_mma" else H200
    found = list(proofs.cases(family, device))
    launched = {item.module for case in found for item in case.plan(device).launches}
    assert {*verdicts.FAMILIES[family].allows} <= launched | {"upload"}  # which brings the arguments of all
    kinds = [[(case.map, case.options, case.operands[0].dtype) for case in part] for part in (found, proofs._cases(family))]
    assert kinds[0] == kinds[1]
