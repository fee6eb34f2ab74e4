"""The snippets of the pages in docs/ run, in order, and print what the pages show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.slow
@pytest.mark.parametrize("page", ["certificate.md", "constraints.md"])
def test_the_snippets_of_a_page_run(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    scope: dict[str, object] = {"__name__": "page"}
    snippets = re.findall(r"```python\n(.*?)```(?:\n\nprints\n\n```\n(.*?)```)?", text, re.DOTALL)
    assert snippets
    for code, shown in snippets:
        exec(compile(code, f"docs/{page}", "exec"), scope)
        if shown:
            assert capsys.readouterr().out == shown
