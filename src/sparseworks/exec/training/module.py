"""What trainable sparse layers share: values as the only parameter of the weight, the index beside them, a changing support."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import sqrt
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sparseworks.core.errors import CheckpointError, ShapeError
from sparseworks.core.support import Support
from sparseworks.exec.native import native
from sparseworks.exec.training.index import SparseIndex

_SAVED = ("columns", "count", "rows")


class SparseWeight(nn.Module):
    """A matrix of which only the kept values exist: parameter, gradient and optimiser state have one number a kept entry.

    `values` lie in the order of `index` (see `entries`); `state_dict` holds them with three small index buffers.

    Attributes:
        values: the kept entries.
        bias: one number an output, or None.
        index: where the kept entries lie.
    """

    bias: nn.Parameter | None

    def __init__(self, index: SparseIndex, values: Float[Tensor, " entries"], bias: Float[Tensor, " out"] | None):
        """The layer over an index with its values; both tensors are copied.

        Raises:
            ShapeError: values or bias do not fit the index.
        """
        super().__init__()
        if tuple(values.shape) != (index.count,):
            raise ShapeError(f"An index of {index.count} entries takes as many values, got {tuple(values.shape)}.")
        if bias is not None and tuple(bias.shape) != (index.shape[0],):
            raise ShapeError(f"A weight of {index.shape[0]} outputs takes a bias of as many, got {tuple(bias.shape)}.")
        self.index = index
        self.values = nn.Parameter(values.detach().clone())
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().clone()))

    # -- views ----------------------------------------------------------------------------------------------------

    @property
    def density(self) -> float:
        """Share of entries kept."""
        out, width = self.index.shape
        return self.index.count / (out * width) if out * width else 1.0

    @property
    def nbytes(self) -> int:
        """Bytes of values and index; training adds a gradient and the optimiser's state, each of the size of the values."""
        return self.values.nbytes + self.index.nbytes

    def support(self) -> Support:
        """The kept entries of the (out, in) matrix."""
        return self.index.support()

    def entries(self) -> tuple[Int[Tensor, " entries"], Int[Tensor, " entries"]]:
        """Row and column of each of `values`."""
        return self.index.forward.coordinates()

    def dense_matrix(self) -> Float[Tensor, "out in"]:
        """The matrix with zeros outside the support; differentiable."""
        return self.index.scatter(self.values)

    # -- changing the support -------------------------------------------------------------------------------------

    def change(self, support: Support, optimizers: Iterable[torch.optim.Optimizer] = ()) -> None:
        """Go on with another support: values and optimiser states of entries that stay, stay; new ones are zero.

        Args:
            support: of the shape of the matrix.
            optimizers: those whose state of `values` moves along.

        Raises:
            ShapeError: the support has another shape.
        """
        self._move(*self.index.changed_to(support), optimizers)

    def exchange(
        self,
        kept: Bool[Tensor, " entries"],
        grown: Int[Tensor, " grown"],
        optimizers: Iterable[torch.optim.Optimizer] = (),
    ) -> None:
        """Drop-and-grow (Mocanu et al. 2018, arXiv 1707.04780): drop what is not `kept`, grow the positions `grown`.

        Args:
            kept: one flag an entry, in the order of `values`.
            grown: `row * in + column` of new entries; they begin at zero.
            optimizers: those whose state of `values` moves along.

        Raises:
            ShapeError: flags that do not fit; a grown position outside, twice, or in the support already.
        """
        self._move(*self.index.exchanged(kept, grown), optimizers)

    def _move(
        self, index: SparseIndex, source: Int[Tensor, " entries"], optimizers: Iterable[torch.optim.Optimizer]
    ) -> None:
        old, move = self.values.shape, _mover(source, self.index.count)
        for optimizer in optimizers:
            state = optimizer.state.get(self.values, {})
            for name, tensor in state.items():
                if isinstance(tensor, Tensor) and tensor.shape == old:
                    state[name] = move(tensor)
        gradient, self.values.grad = self.values.grad, None
        self._put(move(self.values.detach()))
        self.values.grad = None if gradient is None else move(gradient)
        self.index = index

    def _put(self, values: Tensor) -> None:
        """In place where the number of values stays, so that flattened and sharded parameters keep their memory."""
        if values.shape == self.values.shape:
            with torch.no_grad():
                self.values.copy_(values)
        else:
            self.values.data = values

    # -- saving ---------------------------------------------------------------------------------------------------

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, tensor in zip(_SAVED, self.index.forward.tensors, strict=False):
            destination[prefix + name] = tensor

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ):
        saved = [state_dict.get(prefix + name) for name in _SAVED]
        if all(part is not None for part in saved):
            try:
                self.index = SparseIndex.of_parts(cast("list[Tensor]", saved), self.index.shape)
                self.values.data = self.values.new_empty(self.index.count)
                self.values.grad = None
            except CheckpointError as error:
                error_msgs.append(f"{prefix or 'the layer'}: {error}")
        else:
            missing_keys.extend(prefix + name for name, part in zip(_SAVED, saved, strict=True) if part is None)
        known = {k: v for k, v in state_dict.items() if k not in {prefix + name for name in _SAVED}}
        super()._load_from_state_dict(known, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)


def fresh(support: Support, *, bias: bool) -> tuple[SparseIndex, Tensor, Tensor | None]:
    """Index, values and bias of a new layer, uniform in +-1 / sqrt(kept inputs of an output, on average), as in `nn.Linear`.

    A sparse layer initialised as if it were dense would begin with outputs that are too small (Evci et al. 2022, arXiv
    2010.03533).
    """
    index = SparseIndex.of(support)
    bound = 1 / sqrt(max(index.count / max(index.shape[0], 1), 1.0))
    values = torch.empty(index.count).uniform_(-bound, bound)
    return index, values, torch.empty(index.shape[0]).uniform_(-bound, bound) if bias else None


def _mover(source: Int[Tensor, " entries"], count: int) -> Callable[[Tensor], Tensor]:
    """`tensor[source]` of tensors of `count` entries, zero where there is no source."""
    module = native()

    def move(tensor: Tensor) -> Tensor:
        if not tensor.numel():
            return tensor.new_zeros(source.shape)
        usual = tensor.dtype is torch.float32 and tensor.is_cpu and tensor.is_contiguous()
        if module is None or not usual or tensor.shape != (count,):
            at = source.to(tensor.device)
            return tensor.index_select(0, at.clamp(min=0)).masked_fill_(at < 0, 0)
        moved = tensor.new_empty(source.shape)
        module.move(tensor.data_ptr(), source.data_ptr(), moved.data_ptr(), source.numel())
        return moved

    return move
