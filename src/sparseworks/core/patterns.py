"""Named patterns and their text form: "row", "2:4", "16x2:4", "block:4x1", "fan-in", "2:4:16", "vnm:64:2:8" ..."""

from __future__ import annotations

import re
from typing import Literal

from sparseworks.core.errors import PatternError
from sparseworks.core.pattern import COLUMN, ELEMENT, ROW, WHOLE, Pattern, Tile


def unstructured(across: Literal["tensor", "row", "column", "model"] = "tensor") -> Pattern:
    """Single entries compete within the tensor, each row, each column, or the whole model ("global")."""
    groups = {"tensor": WHOLE, "row": ROW, "column": COLUMN, "model": WHOLE}
    if across not in groups:
        raise PatternError(f"Unstructured groups are {', '.join(groups)}; got {across!r}.")
    return Pattern(group=groups[across], across=across == "model")


def nm(n: int, m: int, *, axis: Literal["in", "out"] = "in", rows: int = 1) -> Pattern:
    """N of every M consecutive entries along `axis`; `rows` > 1: that many neighbours on the other axis share the choice."""
    if not 0 <= n <= m or m < 1:
        raise PatternError(f"N:M needs 0 <= N <= M, got {n}:{m}.")
    if axis == "in":
        return Pattern(unit=Tile(rows, 1), group=Tile(1, m), quota=n)
    return Pattern(unit=Tile(1, rows), group=Tile(m, 1), quota=n)


def nmg(n: int, m: int, g: int) -> Pattern:
    """N:M:G: of every C(M, N) G rows each choice of N among M is made by exactly G (Ivanov et al., 2023, arXiv 2304.07613)."""
    if not 0 <= n <= m or m < 1:
        raise PatternError(f"N:M:G needs 0 < N < M, got {n}:{m}:{g}.")
    return Pattern(group=Tile(1, m), quota=n, uses=g)


def vnm(v: int, n: int, m: int) -> Pattern:
    """V:N:M: panels of V rows keep 4 of every M columns, then N:4 inside them (Castro et al., 2023, arXiv 2310.02065)."""
    if m < 4 or n > 4:
        raise PatternError(
            f"V:N:M keeps 4 of every M columns, then N of those 4: needs M >= 4 and N <= 4, got {v}:{n}:{m}."
        )
    return Pattern(unit=Tile(v, 1), group=Tile(1, m), quota=4).then(nm(n, 4))


def block(rows: int, cols: int) -> Pattern:
    """Tiles of `rows` x `cols` entries compete within the tensor."""
    return Pattern(unit=Tile(rows, cols))


def rows() -> Pattern:
    """Whole rows (output features) compete within the tensor."""
    return Pattern(unit=ROW)


def columns() -> Pattern:
    """Whole columns (input features) compete within the tensor."""
    return Pattern(unit=COLUMN)


def fan_in() -> Pattern:
    """Constant fan-in: every output row keeps exactly the same number of entries."""
    return Pattern(group=ROW, quota="equal")


def live_fan_in() -> Pattern:
    """Every output row keeps the same number of entries, or none: constant fan-in with ablated neurons."""
    return Pattern(group=ROW, quota="live")


_WORDS = {
    "tensor": lambda: unstructured("tensor"),
    "unstructured": lambda: unstructured("tensor"),
    "row": lambda: unstructured("row"),
    "column": lambda: unstructured("column"),
    "global": lambda: unstructured("model"),
    "rows": rows,
    "columns": columns,
    "fan-in": fan_in,
    "live-fan-in": live_fan_in,
}

_FORMS: list[tuple[str, object]] = [
    (r"(\d+):(\d+)", lambda n, m: nm(int(n), int(m))),
    (r"(\d+):(\d+):(\d+)", lambda n, m, g: nmg(int(n), int(m), int(g))),
    (r"(\d+):(\d+)@out", lambda n, m: nm(int(n), int(m), axis="out")),
    (r"(\d+)x(\d+):(\d+)", lambda r, n, m: nm(int(n), int(m), rows=int(r))),
    (r"vnm:(\d+):(\d+):(\d+)", lambda v, n, m: vnm(int(v), int(n), int(m))),
    (r"block:(\d+)x(\d+)", lambda r, c: block(int(r), int(c))),
    (r"block:(\d+)x(\d+)/row", lambda r, c: Pattern(unit=Tile(int(r), int(c)), group=ROW)),
]

EXAMPLES = (
    *("tensor", "row", "column", "global", "fan-in", "rows", "columns"),
    *("2:4", "1:4", "2:4@out", "4x2:4", "1:4:2", "vnm:4:2:8", "block:4x4", "block:4x1", "block:4x4/row"),
)
"""Texts of at least one pattern of every kind; all fit matrices whose sides are multiples of 8."""

HELP = "row, tensor, column, global, N:M (2:4), N:M@out, RxN:M (16x2:4), N:M:G, vnm:V:N:M, block:RxC, block:RxC/row, fan-in, live-fan-in, rows, columns"


def parse(text: str) -> Pattern:
    """The pattern that `text` names.

    Raises:
        PatternError: unknown text; the message lists every form.
    """
    word = str(text).strip().lower()
    if word in _WORDS:
        return _WORDS[word]()
    for form, build in _FORMS:
        found = re.fullmatch(form, word)
        if found:
            return build(*found.groups())  # type: ignore[operator]
    raise PatternError(f"Cannot read the pattern {text!r}. Known forms: {HELP}.")


def describe(pattern: Pattern) -> str:
    """The text that `parse` reads back, or a plain (unit, group, quota) description where no name fits."""
    for word in ("tensor", "row", "column", "global", "rows", "columns", "fan-in", "live-fan-in"):
        if _WORDS[word]() == pattern:
            return word
    unit, group, quota = pattern.unit, pattern.group, pattern.quota
    if pattern.uses:
        return f"{quota}:{group.cols}:{pattern.uses}"
    if pattern.inner is None and not pattern.across:
        if isinstance(quota, int):
            if unit == ELEMENT and group.rows == 1 and group.cols:
                return f"{quota}:{group.cols}"
            if unit == ELEMENT and group.cols == 1 and group.rows:
                return f"{quota}:{group.rows}@out"
            if unit.cols == 1 and unit.rows and group.rows == 1 and group.cols:
                return f"{unit.rows}x{quota}:{group.cols}"
        if quota is None and unit.rows and unit.cols and group in (WHOLE, ROW):
            return f"block:{unit.rows}x{unit.cols}" + ("/row" if group == ROW else "")
    if pattern.inner and unit.rows and group.cols and vnm(unit.rows, _inner_n(pattern), group.cols) == pattern:
        return f"vnm:{unit.rows}:{_inner_n(pattern)}:{group.cols}"
    text = f"(unit {unit}, group {group}, quota {quota})"
    return text + (f" then {describe(pattern.inner)}" if pattern.inner else "")


def _inner_n(pattern: Pattern) -> int:
    quota = pattern.inner.quota if pattern.inner else None
    return quota if isinstance(quota, int) and quota <= 4 else 0
