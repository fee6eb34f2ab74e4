"""The Python examples of the README and of the pages in docs/ run, the blocks of a page one after the other; every link leads somewhere."""

import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
#: The examples of many-devices.md need eight devices: tests/devices/eight_page.py runs them.
WITH_CODE = [page for page in PAGES if "```python" in page.read_text() and page.name != "many-devices.md"]
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)(?:#[^)\s]*)?\)")


def named(page):
    return str(page.relative_to(ROOT))


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=named)
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images, labels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8), np.zeros(8, np.int32)  # a file that a reader has
    np.savez("cifar10.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    scope: dict[str, object] = {"__name__": "example"}
    text = page.read_text()
    for block in list(BLOCK.finditer(text))[page.name == "README.md" and page.parent == ROOT :]:  # its first one has a test below
        line = text.count("\n", 0, block.start()) + 1  # errors then name the line of the page
        exec(compile("\n" * line + block[1], str(page), "exec"), scope)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_to_files(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    broken = [target for target in LINK.findall(text) if not (page.parent / target).exists()]
    assert not broken


@pytest.mark.slow
def test_the_first_example_trains(capsys):
    scope: dict[str, object] = {}
    exec(compile(BLOCK.search((ROOT / "README.md").read_text())[1], "README.md", "exec"), scope)
    losses = [float(line.rsplit(" ", 1)[1]) for line in capsys.readouterr().out.splitlines()]
    assert losses[-1] < 0.05 * losses[0]
