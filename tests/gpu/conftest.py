"""Marks: ``gpu`` needs a CUDA device; everything else here runs anywhere."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


def missing_gpu() -> str | None:
    """Why there is no GPU to test on, or None."""
    try:
        import cupy

        return None if cupy.cuda.runtime.getDeviceCount() else "no CUDA device"
    except ImportError:
        return "CuPy is not installed"
    except Exception as error:
        return f"no CUDA device: {error}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    wanted = [item for item in items if item.get_closest_marker("gpu")]
    reason = missing_gpu() if wanted else None
    if reason:
        for item in wanted:
            item.add_marker(pytest.mark.skip(reason=reason))
