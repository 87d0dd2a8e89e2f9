"""A step that is the same every time, recorded once on a GPU and replayed: the host no longer launches its hundreds of kernels."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from sparseworks.codes.autoencoders.stream import Batch
from sparseworks.core.errors import ShapeError

_FIRST = 3  # steps before the recording: they make what is made only once (moments of Adam, compiled kernels)


class Replay:
    """`body(batch)`, from the fourth call on replayed as a CUDA graph with the batch's tensors copied into those recorded.

    The body must not look at entries of tensors, nor depend on numbers of the host that change. Tensors that the body hands out are those
    of the recording: the next call overwrites them. Where a recording fails, steps go on as they were, with a warning.

    Args:
        body: one step.

    Raises:
        ShapeError: a batch is not of the shape that was recorded.
    """

    def __init__(self, body: Callable[[Batch], None]) -> None:
        self.body, self.calls = body, 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._given: Batch | None = None
        self._failed = False

    def __call__(self, batch: Batch) -> None:
        """One step."""
        self.calls += 1
        if self._failed or self.calls <= _FIRST:
            self.body(batch)
            return
        if self._graph is None and not self._record(batch):
            self.body(batch)
            return
        assert self._graph is not None and self._given is not None
        if _shapes(batch) != _shapes(self._given):  # copying would repeat a single row
            raise ShapeError(
                f"A step was recorded for a batch of {_shapes(self._given)}, got {_shapes(batch)}: give batches of one shape."
            )
        with torch.cuda.device(self._given.x.device):
            for to, value in zip(_tensors(self._given), _tensors(batch), strict=True):
                to.copy_(value)
            self._graph.replay()

    def _record(self, batch: Batch) -> bool:
        device = batch.x.device
        try:
            with torch.cuda.device(device):  # a recording sees the streams of one device, whichever is the current one
                given = Batch(*(None if t is None else t.clone() for t in (batch.x, batch.target, batch.gradients)))  # type: ignore[arg-type]
                graph = torch.cuda.CUDAGraph()
                torch.cuda.synchronize()
                with torch.cuda.graph(graph, stream=torch.cuda.Stream(device)):
                    self.body(given)
        except RuntimeError as error:
            self._failed = True
            warnings.warn(
                f"A training step could not be recorded and is run anew each time: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            return False
        self._graph, self._given = graph, given
        return True


def _shapes(batch: Batch) -> list[tuple[int, ...] | None]:
    return [None if t is None else tuple(t.shape) for t in (batch.x, batch.target, batch.gradients)]


def _tensors(batch: Batch) -> list[Tensor]:
    return [t for t in (batch.x, batch.target, batch.gradients) if t is not None]
