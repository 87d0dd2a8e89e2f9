"""Running ahead of a device: while a context is open, nothing looks at entries of tensors, so that the host never waits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_AHEAD: ContextVar[bool] = ContextVar("ahead", default=False)


@contextmanager
def running_ahead(on: bool = True) -> Iterator[None]:
    """Leave out checks of entries, and write codes out instead of gathering them, for what is right by construction.

    On a GPU a question about an entry (is it finite, how many are there?) waits until all work given to the device is done, which
    costs a training step most of its time; a step without such questions can be recorded and replayed.

    Args:
        on: False changes nothing.
    """
    token = _AHEAD.set(on or _AHEAD.get())
    try:
        yield
    finally:
        _AHEAD.reset(token)


def is_ahead() -> bool:
    """Whether a `running_ahead` is open in this thread."""
    return _AHEAD.get()
