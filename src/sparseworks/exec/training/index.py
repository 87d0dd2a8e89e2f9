"""SparseIndex: where the kept weights of a trainable matrix lie, for the product, for its transpose, and for changing the support."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from sparseworks.core.errors import CheckpointError, ShapeError
from sparseworks.core.support import Support
from sparseworks.exec.formats.segments import too_many
from sparseworks.exec.native import native
from sparseworks.exec.training.cut import Cut, Rows, blank, cut, find, relate, trace, transpose

_GROWN = "Grown positions are distinct, lie inside of the matrix, and do not hold an entry that stays."


@dataclass(frozen=True)
class SparseIndex:
    """A support of shape (out, in) as training reads it. Kept values lie in the order of `forward`.

    Attributes:
        forward: the support in reading order.
        backward: its transpose in reading order.
        order: entry e of `backward` is entry `order[e]` of `forward` (int32).
    """

    forward: Cut
    backward: Cut
    order: Int[Tensor, " entries"]

    @classmethod
    def of(cls, support: Support) -> SparseIndex:
        """The index of a support, in time proportional to its entries.

        Raises:
            ShapeError: the support is not a matrix, or has 2^31 entries or more.
        """
        rows = _rows(support)
        return cls._of(rows, *cut(rows))

    @classmethod
    def of_parts(cls, parts: Sequence[Tensor], shape: tuple[int, int]) -> SparseIndex:
        """The index whose forward cut was saved as `columns`, `count` and `rows`.

        Raises:
            CheckpointError: they do not describe a support.
        """
        columns, count, rows = (p.detach().cpu().contiguous() for p in parts)
        saved = Cut.of_parts(columns, count, rows, shape)
        natural, _ = saved.in_row_order()
        made = cls._of(natural, *cut(natural))
        if not all(torch.equal(a, b) for a, b in zip(made.forward.tensors, saved.tensors, strict=True)):
            raise CheckpointError("The index of a sparse weight is not in reading order; build it from the support.")
        return made

    @classmethod
    def _of(cls, rows: Rows, forward: Cut, order: Int[Tensor, " entries"]) -> SparseIndex:
        rows_t, order_t = transpose(rows)
        backward, order_b = cut(rows_t)
        made = cls(forward, backward, relate(order, order_t, order_b))
        object.__setattr__(made, "_checked", made._stamp())
        return made

    def __getstate__(self) -> dict[str, object]:
        return {k: self.__dict__[k] for k in ("forward", "backward", "order")}

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.forward.shape

    @property
    def count(self) -> int:
        """Kept entries."""
        return self.forward.columns.numel()

    @cached_property
    def tensors(self) -> list[Tensor]:
        """All buffers, in the order of `products`."""
        return [*self.forward.tensors, *self.backward.tensors, self.order]

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(t.numel() * t.element_size() for t in self.tensors)

    def support(self) -> Support:
        """The kept entries."""
        rows, _ = self.forward.in_row_order()
        return Support.from_indices(rows.ptr, rows.columns, self.shape)

    def gather(self, matrix: Shaped[Tensor, "out in"]) -> Shaped[Tensor, " entries"]:
        """The kept entries of a dense matrix.

        Raises:
            ShapeError: it has another shape.
        """
        if tuple(matrix.shape) != self.shape:
            raise ShapeError(f"A matrix of shape {tuple(matrix.shape)} does not fit a support of {self.shape}.")
        row, column = self.forward.coordinates()
        return matrix[row.to(matrix.device), column.to(matrix.device)]

    def scatter(self, values: Shaped[Tensor, " entries"]) -> Shaped[Tensor, "out in"]:
        """The dense matrix with these values and zeros elsewhere; differentiable."""
        row, column = (i.to(values.device) for i in self.forward.coordinates())
        return values.new_zeros(self.shape).index_put((row, column), values)

    def changed_to(self, support: Support) -> tuple[SparseIndex, Int[Tensor, " entries"]]:
        """The index of another support, and for each of its entries the place here, or -1 if it is new.

        Raises:
            ShapeError: the support has another shape.
        """
        if tuple(support.shape) != self.shape:
            raise ShapeError(f"A support of {self.shape} cannot become one of {tuple(support.shape)}.")
        old, before = self.forward.in_row_order()
        rows = _rows(support)
        forward, order = cut(rows)
        return SparseIndex._of(rows, forward, order), trace(before, find(old, rows), order)

    def exchanged(
        self, kept: Bool[Tensor, " entries"], grown: Int[Tensor, " grown"]
    ) -> tuple[SparseIndex, Int[Tensor, " entries"]]:
        """Drop-and-grow in time proportional to the entries: without those that are not `kept`, with those at the positions
        `grown` (row * in + column). Returned as by `changed_to`.

        Raises:
            ShapeError: `kept` is not one flag an entry; a grown position lies outside, occurs twice, or stays kept.
        """
        if kept.shape != (self.count,) or kept.dtype != torch.bool:
            raise ShapeError(f"Say of each of the {self.count} entries whether it is kept; got {tuple(kept.shape)}.")
        grown, module = grown.long().flatten().cpu().contiguous(), native()
        if module is not None:
            return self._exchanged(module, kept, grown)
        changed = self._changed(kept, grown)
        if changed.count_nonzero() != kept.count_nonzero() + grown.numel():
            raise ShapeError(_GROWN)
        made, source = self.changed_to(Support.from_mask(changed))
        stays = torch.cat([kept, kept.new_zeros(1)])[source.long()]  # what is dropped and grown again begins anew
        return made, torch.where(stays, source, -1)

    def _exchanged(
        self, module: ModuleType, kept: Bool[Tensor, " entries"], grown: Int[Tensor, " grown"]
    ) -> tuple[SparseIndex, Int[Tensor, " entries"]]:
        self.ensure_safe()
        flags, entries = kept.cpu().contiguous().view(torch.uint8), int(kept.count_nonzero()) + grown.numel()
        if refusal := too_many(entries):
            raise ShapeError(f"This support cannot be trained: {refusal}.")
        made = SparseIndex(blank(self.forward, entries), blank(self.backward, entries), self.order.new_empty(entries))
        source = torch.empty_like(made.order)
        indices = [i for index in (self, made) for way in (index.forward, index.backward) for i in way.addresses]
        data = [t.data_ptr() for t in (self.order, flags, grown, made.order, source)]
        if not module.exchange(indices, data, [self.count, grown.numel(), entries]):
            raise ShapeError(_GROWN)
        object.__setattr__(made, "_checked", made._stamp())
        return made, source

    def _changed(self, kept: Bool[Tensor, " entries"], grown: Int[Tensor, " grown"]) -> Bool[Tensor, "out in"]:
        """Which entries there are after dropping and growing; a position that is counted twice is there once."""
        mask = self.scatter(kept)
        if grown.numel() and not 0 <= int(grown.min()) <= int(grown.max()) < mask.numel():
            raise ShapeError(_GROWN)
        mask.view(-1)[grown] = True
        return mask

    def ensure_safe(self) -> None:
        """Check an index that was not built here, or whose buffers were written to since: kernels follow it blindly.

        Raises:
            CheckpointError: it does not describe a support and its transpose.
        """
        stamp = self._stamp()
        if self.__dict__.get("_checked") == stamp:
            return
        if not all(t.is_contiguous() and t.is_cpu for t in self.tensors):
            raise CheckpointError("The index of a sparse weight must be contiguous and on the CPU.")
        self.forward.check()
        rows, _ = self.forward.in_row_order()
        again = SparseIndex._of(rows, *cut(rows))
        if not all(torch.equal(a, b) for a, b in zip(again.tensors, self.tensors, strict=True)):
            raise CheckpointError("The index of a sparse weight does not fit its transpose; build it from the support.")
        object.__setattr__(self, "_checked", stamp)

    def _stamp(self) -> int:
        """Grows when a buffer is written to (inference tensors keep no count of writes)."""
        return sum(0 if t.is_inference() else t._version for t in self.tensors)


def _rows(support: Support) -> Rows:
    if len(support.shape) != 2:
        raise ShapeError(f"A trainable matrix has two dimensions, its support {len(support.shape)}.")
    if refusal := too_many(support.count):
        raise ShapeError(f"This support cannot be trained: {refusal}.")
    ptr, columns = support.indices()
    return Rows(ptr.int(), columns.int(), (support.shape[0], support.shape[1]))
