"""What a long run tells while it works: lines of text and a progress bar, both on the standard error stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

Tick = Callable[[int, str], None]


@dataclass(frozen=True)
class Shown:
    """Where a run is heard of: nowhere, in a terminal, or by a caller's own function.

    Attributes:
        progress: show lines and bars on the standard error stream.
        caller: gets the lines instead.
    """

    progress: bool = True
    caller: Callable[[str], None] | None = None

    def say(self, line: str) -> None:
        """One line of text."""
        if self.caller:
            self.caller(line)
        elif self.progress:
            _console().print(line, highlight=False, markup=False)

    @contextmanager
    def bar(self, what: str, total: int | None) -> Iterator[Tick]:
        """`tick(steps, note)` moves the bar on and shows `note` beside it; without a total the bar only counts."""
        if not self.progress:
            yield lambda steps, note: None
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=_console()) as bar:
            task = bar.add_task(what, total=total, note="")
            yield lambda steps, note: bar.update(task, advance=steps, note=note)


def _console() -> Any:
    from rich.console import Console

    return Console(stderr=True)
