"""Sparse vectors of texts: what encoders give, indexes take, and files hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from sparseworks.core.codes import Codes
from sparseworks.core.errors import CheckpointError, ShapeError
from sparseworks.exec.search.rows import Rows


class SparseVectors(Rows):
    """Vectors as CSR, one a text: row i holds `values[ptr[i]:ptr[i+1]]` at `indices[ptr[i]:ptr[i+1]]`; checked once, of any width.

    Attributes, errors: as `exec.search.Rows`; `SparseVectors.of` takes scipy matrices and `(ptr, indices, values)` with a width.
    """

    @classmethod
    def of(cls, given: Any, width: int | None = None) -> SparseVectors:
        """From `Codes`, rows, a scipy sparse matrix, or `(ptr, indices, values)` with `width`.

        Raises:
            ShapeError, NonFiniteError: as `Rows`.
        """
        if isinstance(given, cls):
            return given
        if isinstance(given, Codes):
            return cls(*given.csr(), given.width)  # pyright: ignore[reportCallIssue]
        rows = Rows.of(given, width)
        return cls(rows.ptr, rows.indices, rows.values, rows.width)

    @classmethod
    def of_terms(cls, texts: Sequence[Mapping[int, float]], width: int) -> SparseVectors:
        """From `{term: weight}`, one a text.

        Raises:
            ShapeError, NonFiniteError: as `Rows`.
        """
        ordered = [sorted(text.items()) for text in texts]
        ptr = torch.tensor([0, *(len(t) for t in ordered)]).cumsum(0)
        terms = torch.tensor([i for t in ordered for i, _ in t], dtype=torch.long)
        return cls(ptr, terms, torch.tensor([v for t in ordered for _, v in t], dtype=torch.float32), width)

    def take(self, rows: Int[Tensor, " n"] | slice) -> SparseVectors:
        """These rows, in this order."""
        at = torch.arange(len(self))[rows]
        return SparseVectors(*taken(self.ptr, at, self.indices, self.values), self.width)  # pyright: ignore[reportCallIssue]

    @classmethod
    def join(cls, parts: Sequence[Rows]) -> SparseVectors:
        """The rows of several, one after the other.

        Raises:
            ShapeError: none, or of different widths.
        """
        widths = {p.width for p in parts}
        if len(widths) != 1:
            raise ShapeError(f"Vectors that are joined have one width, got {sorted(widths) or 'none'}.")
        ptr = torch.cat([torch.zeros(1, dtype=torch.long), torch.cat([p.ptr.diff() for p in parts]).cumsum(0)])
        return cls(ptr, torch.cat([p.indices for p in parts]), torch.cat([p.values for p in parts]), widths.pop())

    def save(self, path: Path | str, ids: Sequence[str] | None = None) -> Path:
        """Write a safetensors file: ptr, indices, values, width, and ids where they are given.

        Raises:
            ShapeError: other than one id a row.
            CheckpointError: the disk is full or not writable; nothing is left.
        """
        from sparseworks.io.folder import write_file
        from sparseworks.io.tensors import Entry, safetensors_chunks
        from sparseworks.retrieval.index.names import names_tensors

        tensors = {"ptr": self.ptr, "indices": self.indices, "values": self.values}
        if ids is not None:
            if len(ids) != len(self):
                raise ShapeError(f"{len(ids)} ids were given for {len(self)} vectors.")
            tensors |= names_tensors(ids)
        target = Path(path)
        entries = [Entry.of(name, t) for name, t in tensors.items()]
        try:
            write_file(target, safetensors_chunks(entries, {"width": str(self.width), "what": "sparse vectors"}))
        except OSError as error:
            raise CheckpointError(f"Cannot write {target}: {error.strerror or error}. Nothing was changed.") from error
        return target

    @classmethod
    def load(cls, path: Path | str) -> tuple[SparseVectors, list[str] | None]:
        """The vectors of a file that `save` wrote, and their ids if it has them.

        Raises:
            CheckpointError: missing, damaged, or another kind of file.
        """
        from safetensors import SafetensorError, safe_open

        from sparseworks.io.tensors import read_tensors
        from sparseworks.retrieval.index.names import names_from

        tensors = read_tensors(Path(path))
        try:
            with safe_open(path, framework="pt") as file:
                facts = file.metadata() or {}
            width = int(facts["width"])
            vectors = cls(tensors["ptr"], tensors["indices"], tensors["values"], width)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"{path} holds no sparse vectors ({error}): write it with SparseVectors.save."
            ) from error
        return vectors, names_from(tensors) if "ids" in tensors else None


def taken(ptr: Tensor, rows: Tensor, *columns: Tensor) -> tuple[Tensor, ...]:
    """The pointers and entries of some rows of a CSR matrix."""
    lengths = ptr.diff()[rows]
    out = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    at = torch.repeat_interleave(ptr[rows] - out[:-1], lengths) + torch.arange(int(out[-1]))
    return out, *(c[at] for c in columns)
