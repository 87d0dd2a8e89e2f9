"""A comparison of methods as one HTML file: quality against what is kept, a line a method, and every figure in a table."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from sparseworks.core.record import Record, compare
from sparseworks.report import plots
from sparseworks.report.page import write_page

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Comparison</title>
<style>:root{{color-scheme:light dark}}body{{font:15px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}
td,th{{padding:.2rem .8rem;text-align:left}}</style>
<h1>{model}</h1><p>{metric} against the share of weights kept; grey: the dense model.</p>{plot}
<table><tr><th>method</th><th>kept</th><th>{metric}</th><th>dense</th><th>seconds</th><th>MB</th><th></th><th>saw</th></tr>{rows}</table></html>
"""


def save_comparison(model: str, rows: Sequence[Any], path: Path | str, *, allow: Sequence[str] = ()) -> Path:
    """Write the page (temporary file, then rename).

    Args:
        rows: of `sparseworks.jobs.compare.run_cases`.
        allow: differences between records that the reader is told about, see `sparseworks.evaluate.compare`. Densities and
            patterns may always differ: the page shows them.

    Raises:
        ModelError: two rows are unlike: another task or parent, other budgets of training, or training beside pruning alone
            without what each saw. Nothing is written.
        SparseworksError: the file cannot be written.
    """
    records = [Record.from_dict(row.record) for row in rows if row.record]
    if records:
        compare(records, allow=("density", "structure", *allow))
    metric = next((r.metric for r in rows if r.metric), "quality")
    shown = [[*cells(row), (row.record or {}).get("data", "")] for row in rows]
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in shown)
    return write_page(
        path, _PAGE.format(model=escape(model), metric=escape(metric), plot=curves(rows, metric), rows=lines)
    )


def cells(row: Any) -> list[str]:
    """One row as text: method, kept, quality, dense, seconds, megabytes beside the models, note."""
    name = row.method + (f" {row.pattern}" if row.pattern else "")
    megabytes = None if row.peak_bytes is None else row.peak_bytes / 1e6
    figures = [("" if value is None else f"{value:{form}}") for value, form in zip(
        (row.kept, row.quality, row.dense, row.seconds, megabytes), (".3f", ".4f", ".4f", ".1f", ".0f"), strict=True
    )]  # fmt: skip
    return [name, *figures, row.note]


def curves(rows: Sequence[Any], metric: str) -> str:
    """Quality against the share kept, a line a method."""
    measured = [r for r in rows if r.quality is not None]

    def draw(axes: Any) -> None:
        for name in dict.fromkeys(r.method for r in measured):
            points = sorted((r.kept, r.quality) for r in measured if r.method == name)
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1.2, label=name)
        if measured and measured[0].dense is not None:
            axes.axhline(measured[0].dense, color=plots.DENSE, linewidth=1, linestyle="--")
        axes.set_xlabel("share of weights kept")
        axes.set_ylabel(metric)
        axes.grid(alpha=0.25)
        if measured:
            axes.legend(frameon=False, fontsize=8)

    return plots.svg(draw, height=3.6, label="quality of each method against the share kept")
