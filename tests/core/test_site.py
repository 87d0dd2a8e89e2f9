"""Sites: reading gives what the layer multiplies with, writing is its inverse; couplings cut whole units."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparseworks.core.errors import ModelError, ShapeError
from sparseworks.core.site import Coupling, Member, Site


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


class Holder(nn.Module):
    def __init__(self, tensor: torch.Tensor):
        super().__init__()
        self.weight = nn.Parameter(tensor.clone())


CASES = {
    "linear": (Site("s", "linear", "weight", (6, 4)), (6, 4), lambda w: w),
    "fused rows": (Site("s[k]", "linear", "weight", (2, 4), rows=(2, 4)), (6, 4), lambda w: w[2:4]),
    "transposed": (Site("s", "hf_conv1d", "weight", (6, 4), transposed=True), (4, 6), lambda w: w.T),
    "transposed rows": (Site("s[q]", "hf_conv1d", "weight", (3, 4), rows=(0, 3), transposed=True), (4, 6), lambda w: w.T[:3]),
    "expert": (Site("s[1]", "expert", "weight", (6, 4), expert=1), (3, 6, 4), lambda w: w[1]),
    "expert rows": (Site("s[1][g]", "expert", "weight", (3, 4), expert=1, rows=(3, 6)), (3, 6, 4), lambda w: w[1][3:]),
    "conv1d": (Site("s", "conv1d", "weight", (6, 12), kernel=(3,)), (6, 4, 3), lambda w: w.permute(0, 2, 1).flatten(1)),
    "conv2d": (Site("s", "conv2d", "weight", (6, 36), kernel=(3, 3)), (6, 4, 3, 3), lambda w: w.permute(0, 2, 3, 1).flatten(1)),
    "conv2d rows": (Site("s", "conv2d", "weight", (2, 4), kernel=(1, 1), rows=(1, 3)), (6, 4, 1, 1), lambda w: w[1:3, :, 0, 0]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_read_and_write_are_inverse(case):
    site, shape, expected = CASES[case]
    model = Holder(random(*shape))
    before = model.weight.detach().clone()
    assert torch.equal(site.read(model), expected(before)) and site.size == expected(before).numel()
    new = random(*site.shape) + 10
    site.write(model, new)
    assert torch.equal(site.read(model), new)
    changed = site.view(model.weight.detach() != before)
    assert bool(changed.all()) and int(changed.sum()) == int((model.weight != before).sum())  # nothing else was touched
    site.write(model, expected(before))
    assert torch.equal(model.weight, before)


def test_the_view_is_what_the_layer_multiplies_with():
    conv, x = nn.Conv2d(4, 6, 3, bias=False), random(2, 4, 5, 5)
    site = CASES["conv2d"][0]
    columns = (
        nn.functional.unfold(x, 3).reshape(2, 4, 9, 9).permute(0, 3, 2, 1).reshape(18, 36)
    )  # (tokens, positions * in)
    expected = conv(x).permute(0, 2, 3, 1).reshape(18, 6)
    assert torch.allclose(columns @ site.read(conv).T, expected, atol=1e-5)


def test_names():
    site = Site("layers.0.q", "linear", "layers.0.q.weight", (2, 2))
    assert site.module == "layers.0.q"
    with pytest.raises(ModelError, match=r"'layers.0.q': the model has no parameter 'layers.0.q.weight'"):
        site.read(nn.Linear(2, 2))


def test_writing_another_shape():
    with pytest.raises(ShapeError, match=r"'s' is \(6, 4\), cannot store a \(4, 6\) matrix"):
        CASES["linear"][0].write(Holder(random(6, 4)), random(4, 6))


def test_inputs_are_flattened_to_tokens():
    assert CASES["linear"][0].inputs(random(2, 3, 4)).shape == (6, 4)


FFN = Coupling("ffn", "neuron", 3, (Member("up", "rows"), Member("gate", "rows"), Member("down", "cols")))


def test_coupled_units_are_scored_by_all_they_own():
    scores = {"up": random(3, 4), "gate": random(3, 5), "down": random(2, 3)}
    pooled = FFN.pool(scores)
    for unit in range(3):
        own = torch.cat([scores["up"][unit], scores["gate"][unit], scores["down"][:, unit]]).double()
        assert float(pooled[0, unit]) == pytest.approx(float(own.mean()), abs=1e-6)


def test_coupled_units_live_or_die_together():
    masks = FFN.spread(torch.tensor([True, False, True]), {"up": (3, 4), "gate": (3, 5), "down": (2, 3)})
    assert masks["up"].sum(1).tolist() == [4, 0, 4] and masks["down"].sum(0).tolist() == [2, 0, 2]
    heads = Coupling("attention", "head", 2, (Member("q", "rows", width=2), Member("o", "cols", width=2)))
    masks = heads.spread(torch.tensor([False, True]), {"q": (4, 3), "o": (3, 4)})
    assert masks["q"].any(1).tolist() == [False, False, True, True] and masks["o"].any(0).tolist() == [
        False,
        False,
        True,
        True,
    ]


def test_a_member_that_does_not_fit_its_units():
    with pytest.raises(ShapeError, match=r"rows of 'up' are 4, not 3 x 1"):
        FFN.pool({"up": random(4, 4), "gate": random(3, 5), "down": random(2, 3)})
