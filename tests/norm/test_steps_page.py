"""Every name that docs/steps.md gives exists, and the page has every transformation. tests/package runs its examples."""

import re
from pathlib import Path

import modula_rs as mr

PAGE = (Path(__file__).parents[2] / "docs" / "steps.md").read_text()


def test_names_exist():
    found = re.findall(r"\bmr\.(optax|optim)\.(\w+)", PAGE)
    assert len(found) > 10
    for place, name in found:
        assert hasattr(getattr(mr, place), name)


def test_every_transformation_is_there():
    functions = {name for name in mr.optax.__all__ if name.islower()}
    assert set(re.findall(r"\b(\w+)\(", PAGE)) | set(re.findall(r"`(\w+)`", PAGE)) >= functions
