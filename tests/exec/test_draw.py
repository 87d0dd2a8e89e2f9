"""Whole layers in the planner: preferred where one call pays, and without effect everywhere else."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

import sparseworks as sw
from sparseworks.core.support import Support
from sparseworks.exec.fusion import FusedForward
from sparseworks.exec.native import native
from sparseworks.exec.race import Entry, Race

needs_kernel = pytest.mark.skipif(native() is None, reason="the compiled extension is not built")


def fused_layers(model):
    return [f for m in model.modules() if isinstance(f := m.__dict__.get("forward"), FusedForward)]


@pytest.fixture
def planned(monkeypatch):
    """Plans a model of one layer with injected speeds: rows -> kernel -> times faster than dense; `slow` names a matrix where
    `pairs` loses."""
    config = BertConfig(vocab_size=50, hidden_size=48, num_attention_heads=4, intermediate_size=96, num_hidden_layers=1)
    dense = BertModel(config, add_pooling_layer=False).eval()
    supports = {}
    for name, module in dense.encoder.named_modules(prefix="encoder"):
        if isinstance(module, nn.Linear):
            size = module.weight.reshape(module.out_features, -1, 2).abs().sum(-1)
            supports[name] = Support.from_mask((size > 0.02).repeat_interleave(2, dim=1))

    def draw(speeds, slow=None, objective="latency"):
        def timed(layer, support, kernels, call, **_):
            own = dict(speeds[call.rows])
            if slow and layer.module is dense.get_submodule(slow):
                own["pairs-int16"] = 0.9
            return Race(100.0, {k: Entry(100 / r, r, r, r, True) for k, r in own.items()})

        monkeypatch.setattr("sparseworks.exec.draw.race", timed)
        drawn = sw.plan(dense, supports, batch=list(speeds), dtypes=TYPES, cache=False, objective=objective)
        kernels = {rows: {row.kernel for row in drawn.table if row.batch == rows} for rows in speeds}
        whole = {row.batch for row in drawn.table if "one call" in row.reason}
        assert len(fused_layers(drawn.apply(dense))) == bool(whole)
        return kernels, whole

    return draw


TYPES = (torch.int16, torch.bfloat16)
BOTH = {"tile-fp32": 2.2, "pairs-int16": 2.0}


@needs_kernel
def test_the_planner_prefers_whole_layers(planned):
    """`tile` is ahead in each product, but `pairs` beats dense in all six of them: they run in one call."""
    assert planned({32: BOTH, 4: BOTH}) == ({32: {"pairs-int16"}, 4: {"pairs-int16"}}, {32, 4})


@needs_kernel
def test_one_slow_matrix_leaves_every_choice_as_it_was(planned):
    assert planned({32: BOTH}, slow="encoder.layer.0.output.dense") == ({32: {"tile-fp32"}}, set())


@needs_kernel
def test_whole_layers_must_not_cost_too_much_in_the_products(planned):
    assert planned({32: {"tile-fp32": 4.0, "pairs-int16": 2.0}}) == ({32: {"tile-fp32"}}, set())


@needs_kernel
@pytest.mark.parametrize("few", [1.2, 3.0])
def test_whole_layers_change_nothing_at_other_numbers_of_rows(planned, few):
    """Two forms in a layer: a third for `pairs` would push out the one that serves a single row."""
    speeds = {4096: BOTH, 32: {"tile-fp32": 2.0}, 1: {"bitmask-fp32": few}}
    kernels, whole = planned(speeds)
    assert kernels == {4096: {"tile-fp32"}, 32: {"tile-fp32"}, 1: {"bitmask-fp32"}} and not whole


@needs_kernel
def test_whole_layers_beside_another_kernel(planned):
    kernels, whole = planned({4096: BOTH, 1: {"bitmask-fp32": 3.0}})
    assert kernels == {4096: {"pairs-int16"}, 1: {"bitmask-fp32"}} and whole == {4096}


@needs_kernel
def test_a_plan_for_size_is_left_alone(planned):
    small = {"bitmask-bf16": 2.0, "pairs-int16": 2.0}
    assert planned({32: small}, objective="bytes") == ({32: {"bitmask-bf16"}}, set())
    assert planned({32: BOTH}, objective="bytes") == ({32: {"pairs-int16"}}, {32})
