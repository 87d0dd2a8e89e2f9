from __future__ import annotations

import pytest
from torch import nn

from sparseworks.stream import block_of, blocks

NAMES = {
    "llama": ["model.layers.0", "model.layers.1", "model.layers.2"],
    "gpt2": ["transformer.h.0", "transformer.h.1", "transformer.h.2"],
    "bert": ["encoder.layer.0", "encoder.layer.1", "encoder.layer.2"],
    "opt": [f"model.decoder.layers.{i}" for i in range(3)],
    "mixtral": ["model.layers.0", "model.layers.1", "model.layers.2"],
    "t5": ["encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1"],
    "vit": ["layers.0", "layers.1", "layers.2"],
    "resnet": ["encoder.stages.0", "encoder.stages.1"],
}


@pytest.mark.parametrize("name", NAMES)
def test_found_by_structure(tiny, name):
    listed = blocks(tiny(name))
    assert [b.name for b in listed] == NAMES[name]
    assert [b.index for b in listed] == list(range(len(listed)))


def test_two_stacks_are_told_apart(tiny):
    assert {b.stack for b in blocks(tiny("t5"))} == {"encoder.block", "decoder.block"}


def test_nothing_repeats_in_a_plain_sequential():
    (block,) = blocks(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)))
    assert block.name == "" and block.holds("anything")


def test_repeated_sequentials_are_blocks():
    layer = lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU())  # noqa: E731
    assert [b.name for b in blocks(nn.Sequential(layer(), layer(), layer()))] == ["0", "1", "2"]


def test_one_module_used_twice_is_no_stack():
    layer = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    assert blocks(nn.ModuleDict({"stack": nn.ModuleList([layer, layer])}))[0].name == ""


def test_a_stack_that_holds_few_of_the_sites_is_ignored():
    small = nn.ModuleList([nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))])
    model = nn.ModuleDict({"small": small, **{f"big{i}": nn.Linear(4, 4) for i in range(5)}})
    assert [b.name for b in blocks(model)] == [""]


def test_block_of_a_name(tiny):
    listed = blocks(tiny("llama"))
    assert block_of("model.layers.1.mlp.up_proj.weight", listed) == 1
    assert block_of("model.embed_tokens.weight", listed) == -1
    assert block_of("model.layers.10.mlp", listed) == -1
    assert block_of("model.layers.2[3]", listed) == 2
