from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparseworks.core.errors import MissingStatError, ShapeError
from sparseworks.core.site import Coupling, Member
from sparseworks.stream import couplings, select_units, sites

HALF = 0.5


def magnitudes(model: nn.Module, listed) -> dict[str, torch.Tensor]:
    names = {m.site for c in listed for m in c.members}
    return {s.name: s.read(model).abs() for s in sites(model, include=["*"]) if s.name in names}


def masked(model: nn.Module, supports, only: str = "") -> nn.Module:
    """A copy of the model with everything outside the supports set to zero, biases of dropped rows as well."""
    model = copy.deepcopy(model)
    for site in sites(model, include=["*"]):
        if site.name in supports and only in site.name:
            site.write(model, torch.where(supports[site.name].mask(), site.read(model), 0.0))
    return model


def run(model: nn.Module, batch) -> torch.Tensor:
    with torch.no_grad():
        out = model(**batch)
    return out.last_hidden_state if hasattr(out, "last_hidden_state") else out.logits


def kept_of(coupling: Coupling, supports) -> torch.Tensor:
    """Indices of the units that a reader's mask keeps."""
    m = coupling.members[-1]
    along = supports[m.site].mask().any(dim=0)
    return along.reshape(m.repeats, coupling.units, m.width).any(dim=2).all(dim=0).nonzero().flatten()


class TestFound:
    @pytest.mark.parametrize(
        ("name", "heads", "neurons", "expected"),
        [
            ("llama", 2, 48, ("model.layers.0.self_attn.heads", "model.layers.0.mlp.neurons")),
            ("gpt2", 4, 128, ("transformer.h.0.attn.heads", "transformer.h.0.mlp.neurons")),
            ("bert", 4, 48, ("encoder.layer.0.attention.heads", "encoder.layer.0.neurons")),
            ("opt", 4, 48, ("model.decoder.layers.0.self_attn.heads", "model.decoder.layers.0.neurons")),
            ("phi3", 2, 48, ("model.layers.0.self_attn.heads", "model.layers.0.mlp.neurons")),
            ("vit", 4, 48, ("layers.0.attention.heads", "layers.0.mlp.neurons")),
        ],
    )
    def test_heads_and_neurons_of_every_layer(self, tiny, name, heads, neurons, expected):
        listed = couplings(tiny(name))
        assert [c.name for c in listed[:2]] == list(expected)
        assert [(c.kind, c.units) for c in listed] == [("head", heads), ("neuron", neurons)] * 3

    def test_a_unit_of_grouped_queries_is_a_key_value_head_with_its_queries(self, tiny):
        widths = {m.site.rpartition(".")[2]: (m.axis, m.width) for m in couplings(tiny("llama"))[0].members}
        assert widths == {
            "q_proj": ("rows", 16),
            "k_proj": ("rows", 8),
            "v_proj": ("rows", 8),
            "o_proj": ("cols", 16),
        }

    def test_both_attentions_of_a_decoder(self, tiny):
        names = [c.name for c in couplings(tiny("t5")) if c.kind == "head"]
        assert "decoder.block.1.layer.1.EncDecAttention.heads" in names and len(names) == 6

    def test_experts(self, tiny):
        stacked = next(c for c in couplings(tiny("mixtral")) if c.kind == "neuron")
        in_turns = next(c for c in couplings(tiny("gptoss")) if c.kind == "neuron")
        assert (stacked.members[0].width, stacked.members[0].repeats) == (1, 2)
        assert (in_turns.members[0].width, in_turns.members[0].repeats) == (2, 1)
        assert stacked.units == in_turns.units == 48

    def test_attention_of_torch(self):
        listed = couplings(nn.TransformerEncoderLayer(16, 4, 32))
        assert [(c.kind, c.units) for c in listed] == [("head", 4), ("neuron", 32)]

    def test_channels_of_residual_blocks_and_no_others(self, tiny):
        listed = couplings(tiny("resnet"))
        assert [(c.name, c.units) for c in listed] == [
            ("encoder.stages.0.layers.0.layer.0.convolution.channels", 8),
            ("encoder.stages.0.layers.1.layer.0.convolution.channels", 8),
            ("encoder.stages.1.layers.0.layer.0.convolution.channels", 16),
            ("encoder.stages.1.layers.1.layer.0.convolution.channels", 16),
        ]

    def test_only_complete_units_of_the_given_sites(self, tiny):
        model = tiny("llama")
        assert {c.kind for c in couplings(model, sites(model, exclude=["*k_proj"]))} == {"neuron"}
        assert couplings(model, []) == []

    @pytest.mark.parametrize(
        "between", [nn.LayerNorm(6), nn.Softmax(-1), nn.GLU(), nn.Linear(6, 6), nn.Unflatten(1, (2, 3))]
    )
    def test_what_mixes_units_ends_a_run(self, between):
        reads = 3 if isinstance(between, nn.GLU) else 6
        model = nn.Sequential(nn.Linear(4, 6), between, nn.Linear(reads, 2))
        names = [m.site for c in couplings(model) for m in c.members]
        assert not {"0", "2"} <= set(names) or isinstance(between, nn.Linear)
        assert couplings(nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2))) != []

    def test_a_residual_sum_inside_a_sequential_ends_a_run(self):
        class Residual(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = nn.Linear(4, 4)

            def forward(self, x):
                return x + self.linear(x)

        assert couplings(nn.Sequential(nn.Linear(4, 4), Residual(), nn.Linear(4, 4))) == []


class TestMaskedEqualsRemoved:
    """The masked layer, and the layer that lacks the unit, give the same output."""

    @pytest.mark.parametrize(
        ("name", "up", "down"),
        [
            ("llama", ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"),
            ("gpt2", ("mlp.c_fc",), "mlp.c_proj"),
            ("bert", ("intermediate.dense",), "output.dense"),
            ("opt", ("fc1",), "fc2"),
        ],
    )
    def test_neurons(self, tiny, batch_for, name, up, down):
        model, batch = tiny(name), batch_for(name)
        listed = [c for c in couplings(model) if c.kind == "neuron"]
        supports = select_units(listed, magnitudes(model, listed), HALF)
        small = copy.deepcopy(model)
        for c in listed:
            kept = kept_of(c, supports)
            assert len(kept) == c.units // 2
            layer = c.name.removesuffix(".neurons").removesuffix(".mlp")
            for part in up:
                self.shrink(small.get_submodule(f"{layer}.{part}"), kept, out=True)
            self.shrink(small.get_submodule(f"{layer}.{down}"), kept, out=False)
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
        assert torch.allclose(run(small, batch), run(masked(model, supports), batch), atol=1e-5)
        assert not torch.allclose(run(small, batch), run(model, batch), atol=1e-3)

    @staticmethod
    def shrink(module: nn.Module, kept: torch.Tensor, *, out: bool) -> None:
        """Keep some outputs or inputs of a Linear or of a Hugging Face Conv1D."""
        transposed = not isinstance(module, nn.Linear)
        w = module.weight.detach().T if transposed else module.weight.detach()
        w = w[kept] if out else w[:, kept]
        module.weight = nn.Parameter(w.T.contiguous() if transposed else w)
        if out and module.bias is not None:
            module.bias = nn.Parameter(module.bias.detach()[kept])
        if transposed and out:
            module.nf = len(kept)

    def test_heads_with_grouped_queries(self, tiny, batch_for):
        model, batch = tiny("llama"), batch_for("llama")
        listed = [c for c in couplings(model) if c.kind == "head"]
        supports = select_units(listed, magnitudes(model, listed), 1)
        small = copy.deepcopy(model)
        for c in listed:
            kept = kept_of(c, supports)
            attention = small.get_submodule(c.name.removesuffix(".heads"))
            for m in c.members:
                rows = (kept.unsqueeze(1) * m.width + torch.arange(m.width)).flatten()
                self.shrink(small.get_submodule(m.site), rows, out=m.axis == "rows")
            attention.num_key_value_groups = 2
        assert torch.allclose(run(small, batch), run(masked(model, supports), batch), atol=1e-5)
        assert not torch.allclose(run(small, batch), run(model, batch), atol=1e-3)

    @pytest.mark.parametrize("name", ["gpt2", "bert", "opt", "phi3"])
    def test_a_dropped_head_has_no_influence(self, tiny, batch_for, name):
        """Whatever the dropped rows hold, the output is that of the masked model: the reader's columns carry it all."""
        model, batch = tiny(name), batch_for(name)
        listed = couplings(model)
        supports = select_units(listed, magnitudes(model, listed), HALF)
        noisy = copy.deepcopy(model)
        readers = {c.members[-1].site for c in listed}
        for site in sites(noisy):
            if site.name in supports:
                other = torch.zeros(site.shape) if site.name in readers else torch.randn(site.shape)
                site.write(noisy, torch.where(supports[site.name].mask(), site.read(noisy), other))
        assert torch.allclose(run(noisy, batch), run(masked(model, supports), batch), atol=1e-4)

    @pytest.mark.parametrize("name", ["mixtral", "gptoss"])
    def test_a_dropped_neuron_of_an_expert_has_no_influence(self, tiny, batch_for, name):
        model, batch = tiny(name), batch_for(name)
        listed = [c for c in couplings(model) if c.kind == "neuron"]
        supports = select_units(listed, magnitudes(model, listed), HALF)
        readers = masked(model, supports, only="down_proj")
        assert torch.allclose(run(readers, batch), run(masked(model, supports), batch), atol=1e-5)
        assert not torch.allclose(run(readers, batch), run(model, batch), atol=1e-4)

    def test_channels_of_a_sequential_past_normalisation_pooling_and_flattening(self):
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(6 * 4, 10), nn.GELU(), nn.Linear(10, 2),
        ).eval()  # fmt: skip
        listed = couplings(model)
        assert [(c.kind, c.units) for c in listed] == [("channel", 8), ("channel", 6), ("neuron", 10)]
        supports = select_units(listed, magnitudes(model, listed), HALF)
        a, b, c = (kept_of(x, supports) for x in listed)
        small = copy.deepcopy(model)
        pixels = (b.unsqueeze(1) * 4 + torch.arange(4)).flatten()
        for at, rows, cols in ((0, a, slice(None)), (3, b, a), (7, c, pixels), (9, slice(None), c)):
            small[at].weight = nn.Parameter(small[at].weight.detach()[rows][:, cols])
            small[at].bias = nn.Parameter(small[at].bias.detach()[rows])
        for part in ("weight", "bias", "running_mean", "running_var"):
            value = getattr(small[1], part).detach()[a]
            setattr(small[1], part, nn.Parameter(value) if part in ("weight", "bias") else value)
        x = torch.randn(2, 3, 8, 8)
        with torch.no_grad():
            assert torch.allclose(small(x), masked(model, supports)(x), atol=1e-5)
            assert not torch.allclose(small(x), model(x), atol=1e-3)

    def test_depthwise_convolutions_between_follow(self):
        model = nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1)
        ).eval()
        (plain,) = couplings(model)
        (whole,) = couplings(model, sites(model, include=["*"]))
        assert [m.site for m in plain.members] == ["0", "4"]
        assert [m.site for m in whole.members] == ["0", "2", "4"]
        x = torch.randn(2, 3, 5, 5)
        scores = magnitudes(model, [whole])
        supports = select_units([whole], scores, HALF)
        with torch.no_grad():
            assert torch.allclose(masked(model, supports)(x), masked(model, {"4": supports["4"]})(x), atol=1e-5)

    def test_the_convolutions_of_a_residual_block(self, tiny, batch_for):
        model, batch = tiny("resnet"), batch_for("resnet")
        listed = couplings(model)
        supports = select_units(listed, magnitudes(model, listed), HALF)
        readers = {c.members[-1].site: supports[c.members[-1].site] for c in listed}
        assert torch.allclose(run(masked(model, readers), batch), run(masked(model, supports), batch), atol=1e-5)


class TestSelection:
    def test_the_units_with_the_largest_pooled_score_stay(self, tiny):
        model = tiny("llama")
        listed = couplings(model)
        scores = {n: torch.zeros_like(s) for n, s in magnitudes(model, listed).items()}
        scores["model.layers.1.mlp.down_proj"][:, 7] = 1.0
        supports = select_units(listed, scores, 1)
        mask = supports["model.layers.1.mlp.gate_proj"].mask()
        assert mask[7].all() and mask.sum() == 32

    def test_a_site_in_two_couplings_keeps_what_both_keep(self):
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
        listed = couplings(model)
        supports = select_units(listed, magnitudes(model, listed), HALF)
        assert supports["2"].count == 3 * 4

    def test_missing_scores_name_the_site(self, tiny):
        listed = couplings(tiny("llama"))[:1]
        with pytest.raises(MissingStatError, match=r"layers\.0\.self_attn\.heads.*q_proj"):
            select_units(listed, {}, HALF)

    def test_scores_of_another_shape(self):
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        with pytest.raises(ShapeError, match="not 6 x 1"):
            select_units(couplings(model), {"0": torch.ones(5, 4), "2": torch.ones(2, 6)}, HALF)

    @given(units=st.integers(1, 5), width=st.integers(1, 3), repeats=st.integers(1, 3), other=st.integers(1, 4))
    def test_pool_sums_exactly_what_spread_covers(self, units, width, repeats, other):
        coupling = Coupling("c", "channel", units, (Member("a", "rows"), Member("b", "cols", width, repeats)))
        scores = {"a": torch.rand(units, other), "b": torch.rand(other, units * width * repeats)}
        pooled = coupling.pool(scores).flatten()
        shapes = {n: tuple(s.shape) for n, s in scores.items()}
        entries = other + other * width * repeats
        for unit in range(units):
            masks = coupling.spread(torch.arange(units) == unit, shapes)
            inside = sum(float(scores[n][masks[n]].double().sum()) for n in scores)
            assert sum(int(m.sum()) for m in masks.values()) == entries
            assert abs(inside / entries - float(pooled[unit])) < 1e-6
