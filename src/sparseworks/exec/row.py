"""One line of a plan: what runs a site at a number of rows, how fast, how fast at best, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Row:
    """One site at one number of rows.

    Attributes:
        site: name.
        batch: planned number of rows of the model's input (tokens).
        min_rows: the number of rows from which the layer runs this kernel.
        density: share of the site's weights kept.
        format, kernel: what runs; both "dense" where dense stays.
        us: measured microseconds of the chosen kernel, None where nothing was timed. A slice of a fused module has the share
            of its kept weights in the module's time.
        dense_us: the same of the dense layer (a slice: the share of its rows).
        ceiling_us: what bandwidth and arithmetic of this machine allow the chosen form at best.
        reason: a sentence for the user.
        alternatives: `(kernel, us)` of everything else that was timed, fastest first.
        refusals: `(kernel, sentence)` of the kernels that cannot take this site or call.
        rows: rows of this site's own matrix product, positions of the maps for a convolution; None where nothing was timed.
    """

    site: str
    batch: int
    min_rows: int
    density: float
    format: str
    kernel: str
    us: float | None
    dense_us: float | None
    ceiling_us: float | None
    reason: str
    alternatives: tuple[tuple[str, float], ...] = ()
    refusals: tuple[tuple[str, str], ...] = ()
    rows: int | None = None

    @classmethod
    def dense(cls, site: str, batch: int, density: float, why: str) -> Row:
        """A site that cannot be replaced, with the reason."""
        return cls(site, batch, 0, density, "dense", "dense", None, None, None, f"dense stays: {why}")

    @property
    def speedup(self) -> float | None:
        """Dense time over chosen time."""
        return self.dense_us / self.us if self.us and self.dense_us else None

    def cells(self) -> tuple[str, ...]:
        """Texts for a table: site, rows, density, kernel, us, dense us, speed-up, bound us, reason."""
        x = "" if self.speedup is None else f"{self.speedup:.2f}"
        numbers = (_us(self.us), _us(self.dense_us), x, _us(self.ceiling_us))
        return (self.site, str(self.rows or self.batch), f"{self.density:.1%}", self.kernel, *numbers, self.reason)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Row:
        """The row that `dataclasses.asdict` described.

        Raises:
            TypeError, KeyError: fields are missing or unknown.
        """
        unknown = set(data) - {f.name for f in fields(cls)}
        if unknown:
            raise KeyError(f"unknown field {sorted(unknown)[0]!r}")
        pairs = {k: tuple((str(a), b) for a, b in data[k]) for k in ("alternatives", "refusals")}
        return cls(**{**data, **pairs})


def _us(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def rows_text(rows: int) -> str:
    """ "1 row", "64 rows"."""
    return "1 row" if rows == 1 else f"{rows} rows"
