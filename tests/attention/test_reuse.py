"""Anchors by dynamic programme against anchors at equal distances, on a small language model."""

import collections
import inspect
import statistics
import subprocess

import pytest
import torch

import sparseworks as sw
from sparseworks.attention import AttentionMethod, pages, select
from sparseworks.attention.masks import Window
from sparseworks.attention.scores import ExactMass, LayerReuse
from sparseworks.attention.scores.reuse import layer_similarity, reuse_plan
from sparseworks.core.budget import Count
from sparseworks.evaluate.perplexity import token_losses
from sparseworks.evaluate.text import lm_stream


@pytest.fixture(scope="module")
def model():
    return sw.load("sparseworks/tiny-lm").eval()


@pytest.fixture(scope="module")
def windows():
    members = [inspect.getmembers(m) for m in (statistics, subprocess, collections)]
    texts = [inspect.getdoc(value) or "" for some in members for _, value in some]
    long = [text for text in texts if len(text) > 150]
    return lm_stream(long, sw.load_tokenizer("sparseworks/tiny-lm"))[: 3 * 192].view(3, 192)


def kept_by_layer(model, ids, count: int) -> list[torch.Tensor]:
    """What every layer would keep by its own attention."""
    own = AttentionMethod("own", ExactMass("sum"), pattern=pages(1), budget=Count(count), phases=("prefill",))
    masks: dict[int, torch.Tensor] = {}
    with sw.attention(model, own.with_(density=1.0)) as run:
        run.watch = lambda heads, _: masks.update({heads.layer: select(heads, own).mask})
        model(ids)
    return [masks[layer] for layer in sorted(masks)]


@torch.no_grad()
def test_anchors_by_similarity_lose_less_than_anchors_at_equal_distances(model, windows):
    """Dense 2.98 nats; two anchors of six layers, 8 tokens each: by plan 3.34, at equal distances 3.99; here 3.6 and 4.2."""
    similarity = layer_similarity(kept_by_layer(model, windows[:1], 8))
    plan = reuse_plan(similarity, 2)
    losses = []
    for anchors in (plan, (0, 0, 0, 3, 3, 3)):
        options = {"score": LayerReuse(anchors), "budget": Count(8), "always": Window(1), "phases": ("prefill",)}
        with sw.attention(model, sw.method("hylra", **options)) as run:
            losses.append(float(token_losses(model, windows[1:])[:, 32:].mean()))
        assert 0.3 < run.density("prefill") < 0.5
    assert plan != (0, 0, 0, 3, 3, 3) and losses[0] < losses[1] - 0.15
