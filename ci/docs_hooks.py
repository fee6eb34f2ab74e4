"""A hook of mkdocs: the first page is the README, links to files outside docs/ lead to the repository, and formulas become MathML.

Browsers show MathML by themselves, so the site loads nothing from elsewhere.
"""

from __future__ import annotations

import inspect
import re
import zlib
from pathlib import Path
from typing import Any

import modula_rs
from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
#: Code, which stays as it is, or a formula: $$...$$ by itself, $...$ within a line.
FORMULA = re.compile(
    r"(?P<code>^```.*?^```|`[^`\n]+`)|\$\$(?P<block>.+?)\$\$|(?<![\w$])\$(?P<inline>[^$\n]+)\$(?![\w$])",
    re.DOTALL | re.MULTILINE,
)
LINK = re.compile(r"(\]\()(?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds README.md as the page index.md."""
    text = LINK.sub(lambda link: f"{link[1]}{_from_docs(link[2])}{link[3] or ''})", (ROOT / "README.md").read_text())
    files.append(File.generated(config, "index.md", content=text))
    return files


def _from_docs(target: str) -> str:
    """A link in README.md, as a page in docs/ writes it."""
    return target.removeprefix("docs/") if target.startswith("docs/") else f"../{target}"


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Links that leave docs/ lead to the file in the repository; a file that does not exist is left for mkdocs to report."""
    folder = (ROOT / "docs" / page.file.src_uri).parent

    def linked(link: re.Match[str]) -> str:
        path = (folder / link[2]).resolve()
        if (path.is_relative_to(ROOT / "docs") and not path.is_dir()) or not path.is_relative_to(ROOT) or not path.exists():
            return link[0]
        kind = "tree" if path.is_dir() else "blob"
        return f"{link[1]}{config.repo_url}/{kind}/main/{path.relative_to(ROOT).as_posix()}{link[3] or ''})"

    return FORMULA.sub(_formula, LINK.sub(linked, markdown))


def on_post_build(config: Any) -> None:
    """Fails if the pages of the API lack a public name."""
    packed = (Path(config.site_dir) / "objects.inv").read_bytes().split(b"\n", 4)[4]
    listed = {line.split(" ", 1)[0] for line in zlib.decompress(packed).decode().splitlines()}
    public = {name: getattr(modula_rs, name) for name in dir(modula_rs)}
    places = {name: f"{value.__module__}.{value.__qualname__}" for name, value in public.items() if not inspect.ismodule(value)}
    missing = [name for name, place in places.items() if place not in listed]
    if missing:
        raise PluginError(f"the pages in docs/api lack {', '.join(missing)}")


def _formula(found: re.Match[str]) -> str:
    if found["code"]:
        return found[0]
    if found["inline"]:
        return convert(found["inline"])
    return f'<div class="formula">{convert(found["block"], display="block")}</div>'
