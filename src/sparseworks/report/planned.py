"""A plan as one HTML file: for every shape and number of rows, time against density, expected and measured, with the bound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any

from sparseworks.exec.cost import PRIOR, CostModel, Known
from sparseworks.exec.kernel import Call
from sparseworks.exec.ladder import DENSE
from sparseworks.exec.row import Row, rows_text
from sparseworks.report import plots
from sparseworks.report.page import write_page

if TYPE_CHECKING:
    from pathlib import Path

    from sparseworks.exec import Plan

_DENSITIES = tuple(2 ** (-i / 4) for i in range(25))
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Plan</title>
<style>:root{{color-scheme:light dark}}body{{font:15px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}
pre{{overflow-x:auto;font-size:12px}}</style>
<h1>Plan</h1><p>{summary}</p>
<p>Lines: expected times, from measurements of another machine corrected by those of this one. Dots: measured here. Dashes: what
bandwidth and arithmetic of this machine allow the chosen form.</p>{plots}<h2>Every site</h2><pre>{table}</pre></html>
"""


@dataclass(frozen=True)
class _Case:
    shape: tuple[int, int]
    rows: int


def save_plan(plan: Plan, path: Path | str) -> Path:
    """Write the page (temporary file, then rename).

    Raises:
        SparseworksError: the file cannot be written.
    """
    return write_page(path, plan_page(plan))


def plan_page(plan: Plan) -> str:
    """The page as text."""
    threads = int(plan.machine.get("threads", 1))
    drawn = [_plot(case, rows, threads) for case, rows in _cases(plan).items()]
    summary, table = escape(plan.summary).replace("\\n", "<br>"), escape(str(plan))
    return _PAGE.format(summary=summary, plots="".join(drawn), table=table)


def _cases(plan: Plan) -> Mapping[_Case, list[Row]]:
    """Timed sites by shape and rows; shares of a fused matrix are left out, since nothing ran at their shape."""
    shapes = {unit.sites[0]: unit.shape for unit in plan.layers if len(unit.sites) == 1}
    cases: dict[_Case, list[Row]] = {}
    for row in plan.table:
        if row.site in shapes and row.us is not None:
            cases.setdefault(_Case(shapes[row.site], row.rows or row.batch), []).append(row)
    return cases


def measured(row: Row) -> dict[str, float]:
    """Kernel -> microseconds of everything that was timed for a row."""
    chosen = {row.kernel: row.us} if row.us else {}
    return {**chosen, **dict(row.alternatives), **({DENSE: row.dense_us} if row.dense_us else {})}


def _plot(case: _Case, rows: list[Row], threads: int) -> str:
    call = Call(case.rows, case.shape, threads=threads)
    model = CostModel([Known(k, replace(call, density=r.density), us) for r in rows for k, us in measured(r).items()])
    kernels = list(dict.fromkeys(k for r in rows for k in measured(r)))

    def draw(axes: Any) -> None:
        for at, kernel in enumerate(kernels):
            colour = plots.DENSE if kernel == DENSE else f"C{at % 10}"
            if kernel in PRIOR:
                line = [model.us(kernel, replace(call, density=d)) for d in _DENSITIES]
                axes.plot(_DENSITIES, line, color=colour, lw=1, label=kernel)
            dots = [(r.density, measured(r)[kernel]) for r in rows if kernel in measured(r)]
            axes.scatter(
                *zip(*dots, strict=True), color=colour, s=14, label=None if kernel in PRIOR else kernel, zorder=3
            )
        bounds = [(r.density, r.ceiling_us) for r in rows if r.ceiling_us is not None]
        if bounds:
            axes.scatter(*zip(*bounds, strict=True), color=plots.ACCENT, marker="_", s=60, label="physical bound")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("density")
        axes.set_ylabel("µs a call")
        axes.legend(frameon=False, fontsize=7, ncols=3)
        axes.grid(alpha=0.25)

    title = f"{case.shape[0]}x{case.shape[1]}, {rows_text(case.rows)}"
    return f"<h2>{title}</h2>{plots.svg(draw, height=3.4, label=f'time against density, {title}')}"
