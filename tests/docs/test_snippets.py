"""Documentation is executed: every Python block of every page, and generated pages are up to date."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

import sparseworks.weights  # noqa: F401  what the library registers is there before pages add to it
from sparseworks.core.allocator import ALLOCATORS
from sparseworks.core.budget import BUDGETS
from sparseworks.core.config import NOUNS
from sparseworks.core.form import FORMS
from sparseworks.core.method import METHODS
from sparseworks.core.schedule import SCHEDULES
from sparseworks.core.score import SCORES
from sparseworks.core.solver import REPAIRS, SOLVERS
from sparseworks.core.stats import STATS
from sparseworks.exec import FORMATS, KERNELS

ROOT = Path(__file__).parents[2]
PAGES = sorted(p for p in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")) if p.exists())
SNIPPETS = runpy.run_path(str(ROOT / "docs" / "snippets.py"))
REGISTRIES = (ALLOCATORS, BUDGETS, FORMATS, FORMS, KERNELS, METHODS, REPAIRS, SCHEDULES, SCORES, SOLVERS, STATS)


@pytest.fixture
def own_registries():
    """Pages may register plug-ins; other tests must not see them."""
    METHODS.names()  # every family is imported before, or it would be forgotten afterwards
    registries = [*REGISTRIES, *(registry for _, registry in NOUNS.values())]
    before = [dict(r._items) for r in registries]
    yield
    for registry, items in zip(registries, before, strict=True):
        registry._items.clear()
        registry._items.update(items)


@pytest.mark.parametrize("page", [p for p in PAGES if SNIPPETS["blocks"](p)], ids=lambda p: p.name)
def test_every_python_block_runs(page, tmp_path, monkeypatch, own_registries):
    monkeypatch.chdir(tmp_path)
    modules = set(sys.modules)
    SNIPPETS["run"](page)
    for name in set(sys.modules) - modules:
        if name.startswith("page_"):
            del sys.modules[name]


def test_few_blocks_are_left_out_and_each_says_why():
    left_out = [(p.name, b.line, b.why_not) for p in PAGES for b in SNIPPETS["blocks"](p) if b.why_not]
    assert len(left_out) <= 3, left_out
    assert all(len(why.split()) >= 3 for _, _, why in left_out)


def test_no_block_hides_from_this_test():
    """Python in a page is in a fenced block of its own, marked `python`, where it is found."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fences = sum(line.strip().startswith("```py") for line in text.splitlines())
        assert fences == len(SNIPPETS["blocks"](page)), page.name


def test_generated_pages_are_up_to_date(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["build.py", "--check"])
    build = runpy.run_path(str(ROOT / "docs" / "build.py"))
    assert build["main"]() == 0, "run `python docs/build.py`"


def test_the_runner_finds_blocks_and_reasons(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# T\n```python\nx = 1\n```\n\n<!-- not run: needs a GPU -->\n```python\nx = 2\n```\n```bash\nls\n```\n"
    )
    found = SNIPPETS["blocks"](page)
    assert [(b.line, b.code, b.why_not) for b in found] == [(3, "x = 1\n", ""), (8, "x = 2\n", "needs a GPU")]
    assert SNIPPETS["run"](page)["x"] == 1
    del sys.modules["page_page"]
    page.write_text("\n\n```python\nraise ValueError\n```\n")
    with pytest.raises(ValueError) as caught:
        SNIPPETS["run"](page)
    assert caught.traceback[-1].lineno + 1 == 4  # the line in the page
    del sys.modules["page_page"]
