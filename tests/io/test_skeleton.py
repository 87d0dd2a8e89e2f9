from __future__ import annotations

import pytest
import torch
from torch import nn

from sparseworks.core.errors import ModelError
from sparseworks.io.skeleton import build, fill


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_parameters_cost_nothing_and_computed_buffers_are_real(tmp_path, request, kind):
    case = request.getfixturevalue(kind)
    case.model.save_pretrained(tmp_path)
    made = build(tmp_path)
    assert all(p.is_meta for p in made.parameters() if p.dim() == 2)
    expected = dict(case.model.named_buffers())
    assert expected
    assert all(torch.equal(b, expected[n]) for n, b in made.named_buffers())
    assert torch.get_default_dtype() == torch.float32


def test_gpt2_with_fused_weights_and_masks(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20, n_positions=16)).eval()
    model.save_pretrained(tmp_path)
    made = build(tmp_path)
    state = model.state_dict()
    fill(made, state, state.items())
    ids = torch.arange(6)[None]
    with torch.inference_mode():
        assert torch.equal(made.eval()(ids).logits, model(ids).logits)


def test_wrong_names_change_nothing():
    model = nn.Linear(2, 2)
    before = model.weight
    with pytest.raises(ModelError, match=r"it has no 'other' \(1 such\); the file has no 'bias' \(1 such\)"):
        fill(model, ["weight", "other"], [("weight", torch.zeros(2, 2))])
    assert model.weight is before


def test_wrong_shape_is_refused():
    with pytest.raises(ModelError, match=r"'weight' is \(2, 2\), in the file \(2, 3\)"):
        fill(nn.Linear(2, 2, bias=False), ["weight"], [("weight", torch.zeros(2, 3))])
