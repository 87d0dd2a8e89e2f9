"""What every trained form must do, whatever it is."""

from __future__ import annotations

import pytest
import torch

import sparseworks as sw
from sparseworks.attention.trained import Gate, Sizes, TrainedAttention
from sparseworks.attention.trained.gate import gate_of
from sparseworks.core.errors import ModelError, RecipeError
from sparseworks.core.pages import method_facts, method_page
from sparseworks.core.published import METHODS, method_from
from sparseworks.core.recipe import Recipe

SIZES = Sizes(32, 4, 2, 8, layer=2, layers=3)


@pytest.mark.parametrize("name", [m.name for m in TrainedAttention.all()])
def test_a_trained_form(name):
    method = sw.method(name)
    assert method.claims and method.when and method.when_not and method.catalog and method.source.arxiv
    assert METHODS.get(name) is method and TrainedAttention.of(name) is method
    assert TrainedAttention.from_config(method.to_config()) == method
    assert f'"{name}"' in method_page(method_facts(name))
    torch.manual_seed(0)
    first = method.build(SIZES)
    torch.manual_seed(0)
    second = method.build(SIZES)
    assert any(p.requires_grad for p in first.parameters())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert isinstance(first, Gate) != (method.trainable.replaces or method.trainable.alone)
    second.load_state_dict(first.state_dict())
    for exported in method.export():
        assert exported.name not in METHODS and exported.source == method.source
        recipe = Recipe.of(exported, kind=type(exported))
        assert Recipe.from_yaml(recipe.to_yaml()) == recipe
        assert method_from(exported.to_config()) == exported
        with pytest.raises(RecipeError, match="trained attention"):
            TrainedAttention.of(exported)


def test_hyperparameters_are_named_directly():
    method = sw.method("dms", window=7, ratio=3.0)
    assert method.trainable.window == 7 and method.trainable.ratio == 3.0
    assert TrainedAttention.from_config(method.to_config()) == method
    with pytest.raises(RecipeError, match="no option 'widow'"):
        sw.method("dms", widow=7)


def test_a_gate_of_another_kind_is_not_taken():
    from sparseworks.attention.trained.dma import DMAGate

    module = torch.nn.Module()
    module.sparse_gate = sw.method("dms").build(SIZES)
    with pytest.raises(ModelError, match="DMAGate"):
        gate_of(module, DMAGate)
