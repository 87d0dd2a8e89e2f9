"""A result as one HTML file: readable in any browser without network, light and dark."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from sparseworks.core.errors import SparseworksError


@dataclass(frozen=True)
class Report:
    """A result (plain data as in `result.json`) that can be saved as a page."""

    data: dict[str, Any]

    def html(self) -> str:
        """The page."""
        return render(self.data)

    def save(self, path: Path | str) -> Path:
        """Write the page (temporary file, then rename).

        Raises:
            SparseworksError: the file cannot be written; nothing half-written is left.
        """
        return write_page(path, self.html())


def write_page(path: Path | str, text: str) -> Path:
    """Write `text` under a temporary name and rename.

    Raises:
        SparseworksError: the file cannot be written; nothing half-written is left.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise SparseworksError(f"Cannot write the report {path}: {error}") from error
    return path


def render(data: dict[str, Any]) -> str:
    """HTML text of a result."""
    from jinja2 import Environment, StrictUndefined

    from sparseworks.report import plots

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "mb": lambda n: f"{n / 1e6:.2f} MB",
        "pct": lambda x: f"{100 * x:.1f} %",
        "sig": _significant,
        "count": _count,
    }
    template = environment.from_string(
        resources.files("sparseworks.report").joinpath("page.html").read_text(encoding="utf-8")
    )
    recovery = data.get("recovery") or {}
    points = [(plots.letter(i), p) for i, p in enumerate(plots.by_speed(data.get("frontier") or []))]
    pictures = {
        "densities": plots.densities(data["sites"]) if data["sites"] else "",
        "times": plots.times(data["sites"]),
        "frontier": plots.frontier(data.get("frontier") or [], data["quality"]["metric"]),
        "recovery": plots.recovery(recovery.get("losses", []), recovery.get("validations", [])),
    }
    record = list(_stands_on(data.get("record") or {}))
    return template.render(
        r=data, plots=pictures, points=points, record=record, raw=json.dumps(data, indent=1, default=str)
    )


def _stands_on(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The facts of a record for a reader; densities of layers stand in the table of sites."""
    for name, value in record.items():
        if name in ("densities", "more") or value is None or value == "":
            continue
        yield name.replace("_", " "), _said(value)


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}") if isinstance(value, int | float) else str(value)


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _significant(x: Any) -> str:
    return "–" if x is None else f"{x:.4g}" if isinstance(x, float) else str(x)
