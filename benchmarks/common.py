"""What every benchmark shares: arguments, facts of the machine, tables beside the peer and the ceiling, JSON on disk."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import sparseworks as sw
from sparseworks.exec import measure

RESULTS = Path(__file__).parent / "results"
DEVICE = {"default": "cpu", "help": "where models and data are: cpu, or cuda"}
"""Of a script that can run on a GPU: its argument `device`."""
ran_on = ["cpu"]
"""The device of this process, the last entry: rows name it."""


@dataclass(frozen=True)
class Line:
    """One comparison.

    Attributes:
        case: what was run.
        ours, peer: names of the two contenders.
        ours_us, peer_us: medians.
        ratio: peer over ours, median over rounds; low and high are its quartiles.
        kept: share of the rounds that nothing disturbed.
        ceiling_us: what bandwidth and arithmetic allow ours at best, if known.
    """

    case: str
    ours: str
    peer: str
    ours_us: float
    peer_us: float
    ratio: float
    low: float
    high: float
    kept: float
    ceiling_us: float | None = None


def line(case: str, timings: measure.Comparison, ours: str, peer: str, ceiling_us: float | None = None) -> Line:
    """The comparison of two contenders of one measurement."""
    ratio = timings.ratio(peer, ours)
    us = timings[ours].us, timings[peer].us
    return Line(case, ours, peer, *us, ratio.median, ratio.low, ratio.high, timings[ours].kept, ceiling_us)


def arguments(description: str, **extra: dict[str, Any]) -> argparse.Namespace:
    """Parsed command line: `--threads`, `--rounds`, `--json FILE`, `--quick`, and `extra` (name -> add_argument options).

    A script that can run on a GPU passes `device=DEVICE` and moves its models and data to `args.device`. What is drawn is drawn
    on the CPU and moved, as in the library, so that a seed gives the same numbers on every device.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--rounds", type=int, default=15, help="rounds per comparison")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="where to store the figures; a bare name, or one in a folder of benchmarks/results, goes there",
    )
    parser.add_argument("--quick", action="store_true", help="few and small cases: does the script run?")
    for name, options in extra.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **options)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    ran_on.append(str(getattr(given, "device", "cpu")))
    return given


def facts() -> dict[str, Any]:
    """Machine, versions, load and time: what a stored figure is worth nothing without."""
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(_shown(argument) for argument in sys.argv),
        "sparseworks": sw.__version__,
        "machine": measure.machine(),
        "load": [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        # Threads that spin while they wait lose much where several libraries, or programs, share the cores.
        **{name: os.environ[name] for name in ("OMP_WAIT_POLICY",) if name in os.environ},
    }


def _shown(argument: str) -> str:
    """The argument; of an absolute path only the name, since others do not have that folder."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def show(lines: Sequence[Line], title: str) -> None:
    """Print ours beside the peer: times, ratio with quartiles, and how far the ceiling is."""
    head = ("case", "ours", "us", "peer", "us", "ratio", "quartiles", "ceiling us", "of ceiling", "clean rounds")
    table(title, head, [_cells(entry) for entry in lines])


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a plain table, numbers to the right."""
    widths = [max(len(str(r[i])) for r in [head, *rows]) for i in range(len(head))]
    print(f"\n{title}")
    for row in [head, *rows]:
        print(
            "  ".join(
                str(c).ljust(w) if i == 0 else str(c).rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
            )
        )


def _cells(entry: Line) -> tuple[str, ...]:
    bound = (
        ("", "") if entry.ceiling_us is None else (f"{entry.ceiling_us:.3g}", f"{entry.ceiling_us / entry.ours_us:.0%}")
    )
    return (
        entry.case, entry.ours, f"{entry.ours_us:.4g}", entry.peer, f"{entry.peer_us:.4g}", f"{entry.ratio:.2f}x",
        f"{entry.low:.2f}-{entry.high:.2f}", *bound, f"{entry.kept:.0%}",
    )  # fmt: skip


def store(name: str, lines: Sequence[Line], path: Path | None, **more: Any) -> Path | None:
    """Write the figures as JSON, under a temporary name first; without `path` nothing is written."""
    if path is None:
        return None
    target = RESULTS / path if not path.is_absolute() and (RESULTS / path.parent).is_dir() else path
    target = target.with_suffix(".json")
    data = {"benchmark": name, **facts(), **more, "lines": [asdict(entry) for entry in lines]}
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(data, indent=1, default=str) + "\n", encoding="utf-8")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    print(f"\nwritten to {target}")
    return target
