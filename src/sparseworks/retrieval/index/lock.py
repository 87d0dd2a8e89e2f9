"""A lock between processes on a folder: held by an open file, so it goes with the process however that ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparseworks.core.errors import CheckpointError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(folder: Path, purpose: str, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock `purpose` of a folder; False where another holds it and `wait` is off.

    Raises:
        CheckpointError: the folder is not writable.
    """
    path = folder / f".{purpose}.lock"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise CheckpointError(f"Cannot write {folder}: {error.strerror or error}.") from error
    try:
        yield _take(handle, wait)
    finally:
        os.close(handle)


def _take(handle: int, wait: bool) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True
