from __future__ import annotations

import pytest
import torch
from torch import nn

from sparseworks.stream.modes import evaluating


@pytest.mark.parametrize("gradients", [False, True])
def test_modes_come_back_also_after_an_error(gradients: bool):
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with pytest.raises(KeyError), evaluating(model, gradients):
        assert not model[0].training
        assert torch.is_grad_enabled() == gradients
        raise KeyError
    assert [m.training for m in model.modules()] == [True, True, False]


def test_gradients_stay_off_where_they_were():
    with torch.no_grad(), evaluating(nn.Identity(), gradients=True):
        assert not torch.is_grad_enabled()
