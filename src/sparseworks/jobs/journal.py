"""Journal: what a long job has measured, kept on disk, so that the same job after an interruption measures nothing twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sparseworks.core.errors import CheckpointError

T = TypeVar("T")


class Journal:
    """Key -> plain data, written after every entry; timings differ from run to run, and a resumed job must choose as before.

    Args:
        path: the file, or None to keep nothing.
        run: what the job is about; a journal of another job is refused.

    Raises:
        CheckpointError: the file belongs to another job.
    """

    def __init__(self, path: Path | None, run: str):
        self.path = path
        self._known: dict[str, Any] = (read_json(path) if path else None) or {"run": run}
        if self._known.get("run") != run:
            raise CheckpointError(
                f"{path} belongs to a run with other settings; delete it, or use another work folder."
            )

    def __contains__(self, key: str) -> bool:
        """Whether the entry was made."""
        return key in self._known

    def keep(
        self,
        key: str,
        make: Callable[[], T],
        to: Callable[[T], Any] = lambda v: v,
        back: Callable[[Any], Any] = lambda d: d,
    ) -> T:
        """The entry `key` (read by `back`); made and written (as `to` says) if it is new."""
        if key in self._known:
            return back(self._known[key])
        value = make()
        self._known[key] = to(value)
        if self.path:
            write_json(self.path, self._known)
        return value


def read_json(path: Path) -> Any:
    """The content of a JSON file; None if there is none or it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file (temporary file, then rename).

    Raises:
        CheckpointError: it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(data, indent=1, default=str), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise CheckpointError(f"Cannot write {path}: {error}") from error
