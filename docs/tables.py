"""Stored figures as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def compared(entry: Mapping[str, Any]) -> dict[str, Any]:
    """One comparison as a row."""
    ceiling = entry["ceiling_us"]
    return {
        "case": entry["case"],
        "ours": entry["ours"],
        "µs": entry["ours_us"],
        "peer": entry["peer"],
        "its µs": entry["peer_us"],
        "ratio (quartiles)": f"{entry['ratio']:.2f}x ({entry['low']:.2f}-{entry['high']:.2f})",
        "of ceiling": "" if ceiling is None else f"{ceiling / entry['ours_us']:.0%}",
        "clean rounds": f"{entry['kept']:.0%}",
    }


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Rows as Markdown; columns in the order in which rows first name them."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    yield f"| {' | '.join(columns)} |"
    yield f"| {' | '.join('---' for _ in columns)} |"
    for row in rows:
        yield f"| {' | '.join(cell(row.get(column, '')) for column in columns)} |"
    yield ""


def cell(value: Any) -> str:
    """A value as a reader wants it: four digits, thousands apart, yes and no; `<` as text."""
    if value is None or isinstance(value, bool):
        return {None: "", True: "yes", False: "no"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    text = (
        f"{value:.4g}"
        if isinstance(value, float) and abs(value) < 1e4
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )
    return text.replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")
