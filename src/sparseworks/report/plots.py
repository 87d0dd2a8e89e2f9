"""The plots of a report as inline SVG that follows the page's colours in light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

# Colours with enough contrast on white and on near-black (checked by eye in both schemes).
DENSE, SPARSE, ACCENT = "#8a8f98", "#2f7ed8", "#e07b00"


def _svg(draw: Callable[[Any], None], *, width: float = 7.2, height: float = 3.0, label: str = "") -> str:
    """Draw on one matplotlib axes and return SVG text whose ink is `currentColor`."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(
        {"svg.fonttype": "none", "font.size": 9, "font.family": "sans-serif", "svg.hashsalt": "sparseworks"}
    ):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"#000000|(?<=fill: )black|(?<=stroke: )black", "currentColor", svg)
    svg = svg.replace("<text ", '<text fill="currentColor" ')
    svg = re.sub(
        r'width="[\d.]+pt" height="[\d.]+pt"',
        f'role="img" aria-label="{label}" style="max-width:100%;height:auto"',
        svg,
        count=1,
    )
    return svg


def densities(sites: Sequence[dict[str, Any]]) -> str:
    """Kept share of every site, in model order."""

    def draw(axes: Any) -> None:
        axes.bar(range(len(sites)), [s["density"] for s in sites], color=SPARSE, width=0.85)
        axes.set_ylim(0, 1)
        axes.set_ylabel("kept share")
        axes.set_xlabel("site, in model order")
        axes.grid(axis="y", alpha=0.25)

    return _svg(draw, height=2.2, label="kept share of every site")


def times(sites: Sequence[dict[str, Any]]) -> str:
    """Microseconds of every planned site: dense, chosen kernel, physical bound."""
    timed = [s for s in sites if s.get("us") and s.get("dense_us")]

    def draw(axes: Any) -> None:
        at = range(len(timed))
        axes.bar(at, [s["dense_us"] for s in timed], color=DENSE, width=0.85, label="dense")
        axes.bar(at, [s["us"] for s in timed], color=SPARSE, width=0.55, label="chosen")
        bound = [s.get("ceiling_us") or float("nan") for s in timed]
        axes.scatter(at, bound, color=ACCENT, marker="_", s=40, label="physical bound", zorder=3)
        axes.set_ylabel("µs a call")
        axes.set_xlabel("site, in model order")
        axes.legend(frameon=False, ncols=3, loc="upper right")
        axes.margins(y=0.2)
        axes.grid(axis="y", alpha=0.25)

    return _svg(draw, height=2.6, label="time of every site, dense and chosen") if timed else ""


def frontier(points: Sequence[dict[str, Any]], metric: str) -> str:
    """Quality against speed; the chosen point is marked."""

    def draw(axes: Any) -> None:
        for p in points:
            chosen = bool(p.get("chosen"))
            axes.scatter(p["speed"], p["quality"], s=60 if chosen else 28, color=ACCENT if chosen else SPARSE, zorder=3)
            axes.annotate(p["label"], (p["speed"], p["quality"]), textcoords="offset points", xytext=(6, 4), fontsize=8)
        axes.set_xlabel("speed-up over dense (measured)")
        axes.set_ylabel(metric)
        axes.margins(x=0.18, y=0.2)
        axes.grid(alpha=0.25)

    return _svg(draw, label=f"{metric} against speed-up") if points else ""


def recovery(losses: Sequence[float], validations: Sequence[Sequence[float]]) -> str:
    """Training loss and validation metric during recovery."""

    def draw(axes: Any) -> None:
        steps = [v[0] for v in validations]
        at = steps if len(steps) == len(losses) else range(1, len(losses) + 1)
        axes.plot(at, losses, color=SPARSE, marker=".", label="training loss")
        axes.set_ylabel("loss")
        axes.set_xlabel("step" if steps else "interval")
        if validations:
            twin = axes.twinx()
            twin.plot(steps, [v[1] for v in validations], color=ACCENT, marker=".", label="validation")
            twin.set_ylabel("validation (lower is better)")
            twin.spines["top"].set_visible(False)
            twin.legend(frameon=False, loc="upper center")
        axes.legend(frameon=False, loc="upper right")
        axes.grid(alpha=0.25)

    return _svg(draw, height=2.4, label="recovery curve") if losses else ""
