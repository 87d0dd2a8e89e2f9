"""A step that is the same every time, recorded once on a GPU and replayed: the host no longer launches its hundreds of kernels."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from sparseworks.codes.autoencoders.stream import Batch

_FIRST = 3  # steps before the recording: they make what is made only once (moments of Adam, compiled kernels)


class Replay:
    """`body(batch)`, from the fourth call on replayed as a CUDA graph with the batch's tensors copied into those recorded.

    The body must not look at entries of tensors, nor depend on numbers of the host that change; batches are of one shape. Where a
    recording fails, steps go on as they were, with a warning.

    Args:
        body: one step.
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
        for to, value in zip(_tensors(self._given), _tensors(batch), strict=True):
            to.copy_(value)
        self._graph.replay()

    def _record(self, batch: Batch) -> bool:
        given = Batch(*(None if t is None else t.clone() for t in (batch.x, batch.target, batch.gradients)))  # type: ignore[arg-type]
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        try:
            with torch.cuda.graph(graph):
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


def _tensors(batch: Batch) -> list[Tensor]:
    return [t for t in (batch.x, batch.target, batch.gradients) if t is not None]
