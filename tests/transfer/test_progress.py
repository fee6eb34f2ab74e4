"""Progress of a sweep on terminals of any width, with and without colours, and in files."""

from __future__ import annotations

import io
import re

import pytest
from modula_rs.transfer.progress import Progress

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
CONTROL = re.compile(r"\x1b\[[?0-9;]*[A-Za-z]")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, names: tuple[str, ...] = ("width 64, normed-adam", "width 128, normed-adam")) -> str:
    with Progress(names, [1.0, 2.0], workers=1, stream=stream) as progress:
        for job, name in enumerate(names):
            progress.start(job)
            progress.update(job, 0.5)
            progress.finish(job, f"loss 0.{job + 1}0 of {name}")
    return stream.getvalue()


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def test_a_terminal_has_a_bar_in_colours() -> None:
    text = shown(Terminal())
    assert COLOUR.search(text)
    assert "100%" in text
    assert "loss 0.10" in text


def test_no_color_takes_the_colours_away_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    text = shown(Terminal())
    colours = {code for match in COLOUR.findall(text) for code in match[2:-1].split(";")} - {"", "0", "1", "2"}
    assert not colours
    assert "100%" in text


def test_a_dumb_terminal_gets_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    text = shown(Terminal())
    assert "\x1b" not in text
    assert "\r" not in text
    assert text.count("loss 0.") == 2


@pytest.mark.parametrize("columns", [20, 40])
def test_a_narrow_terminal_is_not_overrun(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = CONTROL.sub("\n", shown(Terminal())).replace("\r", "\n").split("\n")
    assert max(map(len, lines)) <= columns


def test_a_file_gets_one_line_a_job() -> None:
    lines = shown(io.StringIO()).splitlines()
    assert [line.split("]")[0].split(",")[0] for line in lines] == ["[1/2", "[2/2"]
    assert all("loss 0." in line and "\x1b" not in line for line in lines)
