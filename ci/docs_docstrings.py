"""An extension of griffe: examples and references in our docstrings become Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

#: From a prompt at the beginning of a line to the next empty line: an example, indented or not.
EXAMPLE = re.compile(r"^([ ]*)>>> .*(?:\n(?![ ]*$).*)*", re.MULTILINE)
#: A table of three lines of equals signs, with its head and rows between.
TABLE = re.compile(r"^([ ]*)=+ [= ]+\n(?:.*\n)+?[ ]*=+ [= ]+\n(?:.*\n)+?[ ]*=+ [= ]+$", re.MULTILINE)
#: One line about several arguments.
SEVERAL = re.compile(r"^( {4})(\w+(?:, \w+)+): (.*)$", re.MULTILINE)
ROLE = re.compile(r":(?:meth|class|func|attr|mod|data|exc):`~?([^`]+)`")


def markdown(text: str) -> str:
    """A docstring with fenced examples and tables, a line for each argument, and names in the place of Sphinx's references."""
    fenced = EXAMPLE.sub(lambda found: f"{found[1]}```pycon\n{found[0]}\n{found[1]}```", text)
    fenced = TABLE.sub(lambda found: f"{found[1]}```text\n{found[0]}\n{found[1]}```", fenced)
    single = SEVERAL.sub(lambda found: "\n".join(f"{found[1]}{name}: {found[3]}" for name in found[2].split(", ")), fenced)
    return ROLE.sub(r"`\1`", single)


class Docstrings(griffe.Extension):
    """Rewrites the docstring of every object when it has been read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
