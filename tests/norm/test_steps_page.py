"""The examples of docs/steps.md run, and every name that the page gives exists."""

import re
from pathlib import Path

import modula_rs as mr
import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "steps.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[-1][:40])
def test_examples_run(block):
    exec(compile(block, "docs/steps.md", "exec"), {})


def test_names_exist():
    for place, name in re.findall(r"\bmr\.(optax|optim)\.(\w+)", PAGE):
        assert hasattr(getattr(mr, place), name)
    assert set(re.findall(r"\bmr\.optax\.(\w+)", PAGE)) >= set(mr.optax.__all__) - {
        "METHODS", "NONFINITE", "AutomaticState", "ModularNormState", "RadiusState", "RowMomentsState"
    }  # fmt: skip
