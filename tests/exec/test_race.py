"""What a race times: every contender after its first call, on as many copies as a model has such layers."""

from __future__ import annotations

import torch
from torch import nn

from sparseworks.exec.race import _turns


class Counting(nn.Linear):
    """A layer that notes which copy of it was called."""

    def __init__(self, calls: list[int]):
        super().__init__(4, 4)
        self.note = calls.append

    def __deepcopy__(self, memo):
        return Counting(self.note.__self__)

    def forward(self, x):
        self.note(id(self))
        return super().forward(x)


def test_every_copy_was_called_once_before_the_first_is_timed():
    """Kernels check a packed form at its first call, which took up to ten times as long and made sparse layers lose."""
    calls: list[int] = []
    run = _turns(Counting(calls), torch.ones(1, 4), fill=5)
    assert len(calls) == len(set(calls)) == 5
    for _ in range(10):
        run()
    assert calls[5:] == 2 * calls[:5]
