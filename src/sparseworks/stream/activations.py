"""Hidden states of a calibration set, batch by batch, in main memory or beyond a limit in memory-mapped files."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor


class Activations:
    """One tensor per batch, on the CPU in its own dtype.

    Args:
        limit: bytes to hold in main memory; what exceeds them lies in memory-mapped files. None = no limit.
        folder: where those files lie; default a temporary folder. They go with the process, also with one that is killed.
    """

    def __init__(self, *, limit: int | None = None, folder: Path | str | None = None):
        self.limit = limit
        self._folder = Path(folder) if folder else None
        self._items: dict[int, Tensor] = {}
        self._mapped: set[int] = set()

    def __setitem__(self, batch: int, x: Tensor) -> None:
        old = self._items.get(batch)
        x = x.detach()
        if old is not None and old.shape == x.shape and old.dtype == x.dtype:
            old.copy_(x)
            return
        self._items.pop(batch, None)
        self._mapped.discard(batch)
        size = x.numel() * x.element_size()
        if self.limit is not None and x.numel() and self.resident + size > self.limit:
            file = self._file(batch)
            mapped = torch.from_file(str(file), shared=True, size=x.numel(), dtype=x.dtype)
            with suppress(OSError):  # the mapping keeps the contents; some systems refuse, and keep the name as well
                file.unlink()
            self._items[batch] = mapped.reshape(x.shape).copy_(x)
            self._mapped.add(batch)
        else:
            self._items[batch] = x.to("cpu", copy=True)

    def __getitem__(self, batch: int) -> Tensor:
        return self._items[batch]

    def __len__(self) -> int:
        return len(self._items)

    @property
    def resident(self) -> int:
        """Bytes held in main memory."""
        return sum(x.numel() * x.element_size() for i, x in self._items.items() if i not in self._mapped)

    @property
    def mapped(self) -> int:
        """Number of batches that lie in files."""
        return len(self._mapped)

    def _file(self, batch: int) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="sparseworks-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / f"batch_{batch:05d}.bin"
