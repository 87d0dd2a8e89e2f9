"""The plots of a report as inline SVG that follows the page's colours in light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# Colours with enough contrast on white and on near-black (checked by eye in both schemes).
DENSE, SPARSE, ACCENT = "#8a8f98", "#2f7ed8", "#e07b00"


def svg(draw: Callable[[Any], None], *, width: float = 7.2, height: float = 3.0, label: str = "") -> str:
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
        axes.set_xlim(-0.7, max(len(sites), 6) - 0.3)
        axes.set_ylim(0, 1)
        axes.set_ylabel("kept share")
        axes.set_xlabel("site, in model order")
        axes.grid(axis="y", alpha=0.25)

    return svg(draw, height=2.2, label="kept share of every site")


def sweep(data: Mapping[str, Any]) -> str:
    """Quality against sparsity, the dense level and the knee, of `weights.Sweep.to_data()`."""
    dense, knee = data["dense"], data["knee"]

    def draw(axes: Any) -> None:
        axes.plot([0.0, *data["sparsities"]], [dense, *data["values"]], "o-", color=SPARSE)
        axes.axhline(dense, color=DENSE, linewidth=1)
        axes.axvline(knee, color=ACCENT, linestyle="--", label=f"knee at {knee:.0%}")
        axes.set_xlabel("sparsity")
        axes.set_ylabel("quality")
        axes.legend(frameon=False)

    return svg(draw, label="quality against sparsity")


def times(sites: Sequence[dict[str, Any]]) -> str:
    """Microseconds of every planned site: dense, chosen kernel, physical bound."""
    timed = [s for s in sites if s.get("us") and s.get("dense_us")]

    def draw(axes: Any) -> None:
        at = range(len(timed))
        axes.bar(at, [s["dense_us"] for s in timed], color=DENSE, width=0.85, label="dense")
        axes.bar(at, [s["us"] for s in timed], color=SPARSE, width=0.5, label="as planned")
        bound = [s.get("ceiling_us") or float("nan") for s in timed]
        axes.scatter(at, bound, color=ACCENT, marker="_", s=40, label="physical bound", zorder=3)
        axes.set_ylabel("µs a call")
        axes.set_xlabel("site, in model order")
        axes.legend(frameon=False, ncols=3, loc="upper right")
        axes.margins(y=0.2)
        axes.grid(axis="y", alpha=0.25)

    return svg(draw, height=2.6, label="time of every site, dense and chosen") if timed else ""


def frontier(points: Sequence[dict[str, Any]], metric: str) -> str:
    """Quality against speed. Points carry letters in order of speed (the page lists them); the chosen one is marked."""

    def draw(axes: Any) -> None:
        ordered = by_speed(points)
        others = [p for p in ordered if not p.get("chosen")]
        axes.plot([p["speed"] for p in others], [p["quality"] for p in others], color=DENSE, lw=0.8, alpha=0.6)
        for at, p in enumerate(ordered):
            chosen = bool(p.get("chosen"))
            axes.scatter(p["speed"], p["quality"], s=60 if chosen else 28, color=ACCENT if chosen else SPARSE, zorder=3)
            above = at % 2 == 0  # neighbours may lie close together: one letter above, the next one below
            axes.annotate(
                letter(at),
                (p["speed"], p["quality"]),
                textcoords="offset points",
                xytext=(0, 7 if above else -8),
                ha="center",
                va="bottom" if above else "top",
                weight="bold" if chosen else "normal",
            )
        low, high = ordered[0]["speed"], ordered[-1]["speed"]
        room = max(0.1 * (high - low), 0.1)
        axes.set_xlim(low - room, high + room)
        axes.margins(y=0.3)
        axes.set_xlabel("speed-up over dense (measured)")
        axes.set_ylabel(metric)
        axes.grid(alpha=0.25)

    return svg(draw, label=f"{metric} against speed-up") if points else ""


def by_speed(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Points of a frontier, slowest first."""
    return sorted(points, key=lambda p: p["speed"])


def letter(at: int) -> str:
    """A, B, ... Z, then A1, B1 ..."""
    return chr(ord("A") + at % 26) + (str(at // 26) if at >= 26 else "")


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

    return svg(draw, height=2.4, label="recovery curve") if losses else ""
