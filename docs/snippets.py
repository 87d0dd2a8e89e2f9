"""Run the Python blocks of a documentation page in order, in one namespace: `python docs/snippets.py README.md`.

A block under a line `<!-- not run: reason -->` is left out.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<why>[^\n]+?) -->\n+)?```python\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """One Python block: its first line in the page, its code, and why it is not run (empty: it is)."""

    line: int
    code: str
    why_not: str = ""


def blocks(page: Path) -> list[Block]:
    """The Python blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = _BLOCK.finditer(text)
    return [Block(text.count("\n", 0, m.start("code")) + 1, m["code"], m["why"] or "") for m in found]


def run(page: Path) -> dict[str, Any]:
    """Run all blocks of a page and return their namespace; line numbers of errors are those of the page."""
    module = ModuleType(f"page_{page.stem.replace('-', '_')}")
    sys.modules[module.__name__] = module  # classes of a block look for their module
    for block in blocks(page):
        if not block.why_not:
            exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), module.__dict__)
    return module.__dict__


if __name__ == "__main__":
    for name in sys.argv[1:]:
        run(Path(name))
