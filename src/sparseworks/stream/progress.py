"""Progress of a loop, shown on the standard error stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def bar(items: Sequence[T], what: str, progress: bool) -> Iterator[T]:
    """The items, with a progress bar on the standard error stream if asked for."""
    if not progress:
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(items, description=what, console=Console(stderr=True))
