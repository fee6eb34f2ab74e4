"""Prints the changelog's section of a version, such as v0.2.0; fails unless the tag is the version of Cargo.toml and the section is there.

It needs nothing but Python, so that the release starts with it.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def notes(tag: str, root: Path = ROOT) -> str:
    """The text of the section; SystemExit with the reason if something does not agree."""
    version = tomllib.loads((root / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    if tag != f"v{version}":
        raise SystemExit(f"the tag is {tag}, but Cargo.toml has version {version}")
    parts = re.split(r"^## (.+)$", (root / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    sections = {title.strip("[] ").split("]")[0].split(" ")[0]: text.strip() for title, text in zip(parts[1::2], parts[2::2], strict=True)}
    if not sections.get(version):
        raise SystemExit(f"CHANGELOG.md has no section {version}, or an empty one; it has {', '.join(sections)}")
    return sections[version]


if __name__ == "__main__":
    print(notes(*sys.argv[1:2]))
