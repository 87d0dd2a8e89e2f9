"""The leaderboard from the stored rows of `benchmarks/weights`: a table and a plot for every task, and the figures of one method."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks" / "weights"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
import tables
from rows import FOLDER, Cell, Row, beside, by_cell, groups, read

from sparseworks.core.pages import plain
from sparseworks.report import plots

PLOTS = "plots"
INK = "#7f8690"  # of text and axes: readable on white and on near-black
MARKS = "osD^v<>Pp*hX"
INTRO = """# Leaderboard

{mark}

Method x sparsity x task, from the rows that `benchmarks/weights` stored: mean ± sample deviation over seeds, the best of each sparsity in bold.
A deviation is that of seeds on one small task: a difference within it was not found. Methods stand in one table only if task, metric and dense parent are
the same; how each was trained and on what stands beside it, since a post-training method that saw a little calibration data and one that trained for
epochs answer different questions. `pattern` matters as much: equal densities of different patterns do not cost the same. What else was counted stands
behind, at one sparsity after the other where it differs. Training is in floating-point operations of all training, the dense parent's included where a method needs it,
as the paper of RigL counts: three products a step with what is kept, and a dense gradient where the support is chosen by it.

Every script takes `--quick`, `--seeds N` and `--json NAME` (into `benchmarks/results/weights`), and goes on where it was cut off;
`detector.py` and `factors.py` take their times apart from the rest, by `--times`, on a machine that is quiet.
"""


@cache
def stored(folder: Path = FOLDER) -> tuple[tuple[dict[str, Any], tuple[Row, ...]], ...]:
    """Head and rows of every stored benchmark."""
    return tuple((head, tuple(rows)) for head, rows in map(read, sorted(folder.glob("*.json"))))


def page(mark: str, linked: Sequence[str], folder: Path = FOLDER) -> str:
    """The leaderboard. `linked`: methods that have a page."""
    return "\n".join(_lines(mark, set(linked), folder)) + "\n"


def pictures(folder: Path = FOLDER, drawn: Path | None = None) -> dict[str, str]:
    """Path in docs/ -> SVG of every group. `drawn`: a folder whose plots stay as they are where their data did not change."""
    named = {f"{PLOTS}/{slug(group)}.svg": group for _, rows in stored(folder) for group in groups(rows)}
    return {name: _drawn(drawn / name if drawn else None, group) or picture(group) for name, group in named.items()}


def _drawn(path: Path | None, group: Sequence[Row]) -> str | None:
    """The stored plot, if it shows this data."""
    if path is None or not path.exists():
        return None
    found = path.read_text(encoding="utf-8")
    return found if found.startswith(f"<!-- {digest(group)} -->\n") else None


@cache
def grouped(folder: Path) -> list[list[Row]]:
    """The tables of every stored file: rows that may stand beside each other. Kept, since every method's page asks for them."""
    return [group for _, rows in stored(folder) for group in groups(rows)]


def figures(method: str, folder: Path = FOLDER) -> list[str]:
    """Lines of a method's page: every stored figure of it, beside that of the dense model, of one that saw the same where there is one."""
    lines = []
    for group in grouped(folder):
        dense = [r for r in group if r.record.method == "dense"]
        for label, own in by_cell([r for r in group if r.record.method == method]).items():
            for density, found in own.items():
                r = found[0].record
                alike = [d for d in dense if d.record.data == r.data] or dense
                cells = [
                    plain(r.task),
                    plain(r.metric),
                    plain(label),
                    r.structure,
                    percent(density),
                    str(Cell.of(found)),
                    str(Cell.of(alike)) if alike else "",
                ]
                lines.append(f"| {' | '.join(cells)} |")
    if not lines:
        return []
    head = ["| task | metric | as | pattern | sparsity | mean ± deviation | dense |", f"|{' --- |' * 7}"]
    return [*head, *lines, "", "All methods beside each other: [leaderboard](../leaderboard.md)."]


def _lines(mark: str, linked: set[str], folder: Path) -> Iterator[str]:
    yield from INTRO.format(mark=mark).splitlines()
    if not stored(folder):
        yield from ("", "No results are stored yet.")
        return
    yield from ("", "```sh", *(f"python {head['command']}" for head, _ in stored(folder)), "```", "")
    for head, rows in stored(folder):
        for group in groups(rows):
            r = group[0].record
            better = "higher" if r.higher_is_better else "lower"
            yield from (
                f"## {plain(r.task)}",
                "",
                f"{plain(r.metric)}, {better} is better; dense parent of {r.parent:,} parameters.",
            )
            yield f"`{head['benchmark']}`, {head['created'][:10]}, {r.hardware}, sparseworks {head['sparseworks']}."
            yield from ("", f"![{plain(r.metric)} against sparsity]({PLOTS}/{slug(group)}.svg)", "")
            yield from table(group, linked)
        if head.get("lines"):
            yield from (f"Times of `{head['benchmark']}`, as torch runs it:", "")
            yield from tables.table([tables.compared(entry) for entry in head["lines"]])
        for title, entries in head.get("tables", {}).items():
            yield from (f"`{head['benchmark']}`, {title}:", "")
            yield from tables.table(entries)


def table(group: Sequence[Row], linked: set[str]) -> Iterator[str]:
    """Methods in the order of their mean rank over the sparsities, with how each was trained."""
    cells = by_cell(group)
    densities = sorted({r.density for r in group if r.density < 1}, reverse=True)
    best = {d: rank(group, d)[0] for d in densities}
    ranks = {label: [rank(group, d).index(label) for d in own if d < 1] for label, own in cells.items()}
    order = sorted(cells, key=lambda label: sum(ranks[label]) / len(ranks[label]) if ranks[label] else -1)
    others = beside(group)
    head = ["method", "pattern", "support", *map(percent, densities), "saw", *map(plain, others), "seconds", "peak MiB"]
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for label in order:
        own = cells[label]
        some = next(iter(own.values()))[0].record
        name = f"[{plain(label)}](methods/{some.method}.md)" if some.method in linked else plain(label)
        if 1.0 in own:
            name += f" **{Cell.of(own[1.0])}**"
        found = [
            f"**{Cell.of(own[d])}**" if best[d] == label else str(Cell.of(own[d])) if d in own else ""
            for d in densities
        ]
        structure = ", ".join(dict.fromkeys(rows[0].record.structure for rows in own.values()))
        rows = [r for listed in own.values() for r in listed]
        seconds = [r.seconds for r in rows if r.seconds is not None]
        peaks = [r.peak_bytes for r in rows if r.peak_bytes is not None]
        mean = f"{sum(seconds) / len(seconds):.3g}" if seconds else ""
        most = "" if not peaks else "< 1" if max(peaks) < 2**20 else f"{max(peaks) / 2**20:.0f}"
        support = "" if some.when == "never" else f"{some.start}, {'moves' if some.dynamic else 'fixed'}"
        saw = ", ".join(dict.fromkeys(listed[0].record.data for listed in own.values()))
        more = [figure.get(label, "") for figure in others.values()]
        yield f"| {' | '.join([name, structure, support, *found, plain(saw), *more, mean, most])} |"
    yield ""


def rank(group: Sequence[Row], density: float) -> list[str]:
    """Labels with a figure at this density, the best first."""
    means = {label: Cell.of(own[density]).mean for label, own in by_cell(group).items() if density in own}
    return sorted(means, key=lambda label: means[label], reverse=group[0].record.higher_is_better)


def picture(group: Sequence[Row]) -> str:
    """Metric against sparsity, a line a method, bars of a deviation; the dense level dashed. Begins with a digest of its data."""
    r = group[0].record

    def draw(axes: Any) -> None:
        from matplotlib import colormaps

        ticks, styles = set(), cycle(("--", ":", "-."))
        for at, (label, own) in enumerate(by_cell(group).items()):
            found = {d: Cell.of(rows) for d, rows in own.items()}
            if 1.0 in found:
                axes.axhline(found[1.0].mean, color=INK, linewidth=1, linestyle=next(styles), label=label)
            points = [(1 - d, c.mean, c.spread) for d, c in found.items() if d < 1]
            if points:
                x, y, e = zip(*points, strict=True)
                ticks.update(x)
                style = {
                    "color": colormaps["tab20"]((2 * at + at // 10) % 20),
                    "marker": MARKS[at % len(MARKS)],
                    "markersize": 3.5,
                }
                axes.errorbar(x, y, e, linewidth=1.1, capsize=2, label=label, **style)
        means = [Cell.of(rows).mean for own in by_cell(group).values() for rows in own.values()]
        if not r.higher_is_better and max(means) > 10 * min(means) > 0:
            axes.set_yscale("log")
        axes.set_xticks(sorted(ticks), [percent(1 - x) for x in sorted(ticks)], fontsize=8)
        axes.set_xlabel("sparsity")
        axes.set_ylabel(r.metric)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))

    drawn = plots.svg(draw, width=8.4, height=3.6, label=f"{r.metric} against sparsity").replace("currentColor", INK)
    drawn = (
        drawn.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) if "xmlns=" not in drawn[:400] else drawn
    )
    return f"<!-- {digest(group)} -->\n{drawn}"


def digest(group: Sequence[Row]) -> str:
    """Of what a plot shows; a plot is stale when this differs, whatever the fonts of the machine that drew it."""
    shown = [(r.label, r.density, r.record.seed, r.record.value) for r in group]
    return hashlib.sha256(json.dumps([group[0].record.task, group[0].record.metric, shown]).encode()).hexdigest()


def slug(group: Sequence[Row]) -> str:
    """File name of a group."""
    r = group[0].record
    return re.sub(r"[^a-z0-9]+", "-", f"{r.task} {r.metric} {r.parent}".lower()).strip("-")


def percent(density: float) -> str:
    """A density as the sparsity it leaves: `0.05` -> "95 %"."""
    return f"{100 * (1 - density):.3g} %"
