"""The code of docs/many-devices.md, and the example, run unchanged on eight devices."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "many-devices.md").read_text(), re.DOTALL)


def test_the_page() -> None:
    scope: dict[str, Any] = {}
    for block in BLOCKS:
        exec(compile(block, "docs/many-devices.md", "exec"), scope)
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize(("weights", "method"), [("sharded", "normalize"), ("both", "dualize")])
def test_the_example_learns(weights: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    example = importlib.import_module("many_devices")
    losses = example.main(["--weights", weights, "--method", method, "--steps", "12", "--width", "32", "--plan"])
    assert losses[-1] < 0.9 * losses[0]
