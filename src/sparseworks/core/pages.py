"""The page of a method: what it does, by which formulas, after whom, when to use it and when not. Everything is read from the registry."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import singledispatch
from typing import Any

from sparseworks.core.published import METHODS, Published, brief

_PLAIN = ("Uniform", "Select", "Nothing", "Once")  # parts that do nothing of their own
_SKIPPED = ("Attributes:", "Args:", "Raises:", "Returns:")


def method_table() -> list[dict[str, Any]]:
    """Every registered method as plain data, by family and name: name, family, catalog (numbers), source, composition, status."""
    return [
        {
            "name": m.name,
            "family": m.family,
            "catalog": list(m.catalog),
            "source": str(m.source),
            "composition": m.composition,
            "status": m.status,
        }
        for m in sorted(METHODS, key=lambda m: (m.family, m.name))  # whatever was imported first
    ]


def method_facts(name: str) -> dict[str, Any]:
    """What the registry says about one method, as plain data.

    Raises:
        UnknownNameError: no method has that name.
    """
    method = METHODS.get(name)
    return _facts(method) | {"parts": parts_of(method)} | particulars(method)


@singledispatch
def particulars(method: Published) -> dict[str, Any]:
    """What the page says for one kind of method only: `needs` (lines), `call` (code), and `parts` where they are no plain nouns."""
    return {"needs": [], "call": f'sw.method("{method.name}")   # {method.used_by}'}


def parts_of(method: Published) -> list[dict[str, str]]:
    """The nouns a method is made of, outermost first: part, name, formula."""
    return [
        {"part": where, "name": brief(noun), "text": formula(type(noun))}
        for part in method.PARTS
        for where, noun in nouns(part, getattr(method, part))
    ]


def method_page(facts: Mapping[str, Any], figures: Iterable[str] = ()) -> str:
    """The facts as Markdown.

    Args:
        figures: lines of a section with measured figures, for where they are stored.
    """
    return "\n".join(_lines(facts, list(figures))) + "\n"


def _lines(facts: Mapping[str, Any], figures: list[str]) -> Iterator[str]:
    yield from (f"# {facts['name']}", "", plain(facts["what"]), "")
    if facts["status"] != "stable":
        yield "Experimental: tested for what it does; the gain that its paper reports was not seen, or not measured, on this project's small models."
        yield ""
    yield from ("## When to use it", "", plain(facts["when"]), "", "## When not", "", plain(facts["when_not"]), "")
    yield from ("## What it needs", "", *(f"- {plain(need)}" for need in facts["needs"]), "")
    yield from ("```text", facts["call"], "```", "", "## Formula", "")
    for part in facts["parts"]:
        yield from (f"{part['part']} `{part['name']}`", "", "```text", part["text"], "```", "")
    yield from ("## Composition", "", "```text", facts["composition"], "```", "", "## Source", "")
    title = f", “{plain(facts['title'])}”" if facts["title"] else ""
    year = f" ({facts['year']})" if facts["year"] else ""
    yield f"{plain(facts['authors'])}{year}{title}."
    if facts["arxiv"]:
        yield f"[arXiv {facts['arxiv']}](https://arxiv.org/abs/{facts['arxiv']})"
    if figures:
        yield from ("", "## Figures", "", *figures)


def plain(text: str) -> str:
    """Text that Markdown shows as it is: its signs escaped, code between backticks left alone."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([\\*_\[\]<>|])", r"\\\1", p) for p in parts)


def _facts(method: Published) -> dict[str, Any]:
    source = method.source
    return {
        "name": method.name,
        "family": method.family,
        "status": method.status,
        "what": method.claims,
        "when": method.when or "Nothing is recorded yet.",
        "when_not": method.when_not or "Nothing is recorded yet.",
        "composition": method.composition,
        "catalog": list(method.catalog),
        **{k: getattr(source, k) for k in ("authors", "year", "title", "arxiv")},
    }


def nouns(where: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The part and those inside it, outermost first, each with its place; what does nothing of its own is left out."""
    if not is_dataclass(value) or isinstance(value, type) or not hasattr(value, "registered_name"):
        return
    if type(value).__name__ not in _PLAIN:
        yield where, value
    for field in fields(value):
        yield from nouns(f"{where}.{field.name}", getattr(value, field.name))


def formula(noun: Any) -> str:
    """The docstring of a class or function without the sections on arguments, attributes and errors."""
    paragraphs = re.split(r"\n[ \t]*\n", inspect.getdoc(noun) or "")
    return "\n\n".join(p for p in paragraphs if not p.startswith(_SKIPPED))
