from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sparseworks.core.errors import ModelError, ShapeError
from sparseworks.stream.outputs import last_hidden, logits_of, mean_pooled


def test_named_outputs_before_the_first_tensor():
    first, named = torch.zeros(1), torch.ones(1)
    for kind in (dict, lambda **k: SimpleNamespace(**k)):
        assert last_hidden(kind(other=first, last_hidden_state=named)) is named
        assert logits_of(kind(other=first, logits=named)) is named
    assert logits_of((torch.tensor([3]), first)) is first
    assert last_hidden(first) is first
    with pytest.raises(ModelError, match="NoneType"):
        logits_of(None)


def test_the_mean_is_over_the_tokens_that_count():
    hidden = torch.arange(12.0).reshape(2, 3, 2)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert mean_pooled(hidden, mask).tolist() == [[1.0, 2.0], [6.0, 7.0]]
    assert torch.equal(mean_pooled(hidden), hidden.mean(dim=1))
    assert torch.equal(mean_pooled(hidden[:, 0]), hidden[:, 0])
    assert mean_pooled(hidden, torch.zeros(2, 3, dtype=torch.bool)).tolist() == [[0.0, 0.0]] * 2
    assert mean_pooled(hidden.bfloat16(), mask).dtype == torch.float32


def test_shapes_that_cannot_be_pooled():
    with pytest.raises(ShapeError, match="batch x tokens x width"):
        mean_pooled(torch.zeros(3))
    with pytest.raises(ShapeError, match="does not fit"):
        mean_pooled(torch.zeros(2, 3, 4), torch.ones(2, 4, dtype=torch.bool))
