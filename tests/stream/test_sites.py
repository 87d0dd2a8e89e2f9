from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparseworks.core.errors import ModelError
from sparseworks.core.site import Site
from sparseworks.stream import sites


def by_name(model: nn.Module, **options) -> dict[str, Site]:
    return {s.name: s for s in sites(model, **options)}


def round_trip(model: nn.Module, site: Site) -> None:
    """Reading, writing and reading again: the new values are there, and nothing else of the model has changed."""
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    old = site.read(model).clone()
    new = torch.randn(site.shape)
    site.write(model, new)
    assert torch.equal(site.read(model), new)
    assert torch.equal(site.view(site.tensor(model).detach()), new)
    site.write(model, old)
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


class TestKinds:
    def test_linear(self):
        model = nn.Sequential(nn.Linear(6, 4))
        (site,) = sites(model)
        assert (site.name, site.kind, site.shape, site.parameter) == ("0", "linear", (4, 6), "0.weight")
        assert torch.equal(site.read(model), model[0].weight)

    def test_hf_conv1d_is_read_as_out_by_in(self):
        from transformers.pytorch_utils import Conv1D

        model = nn.Sequential(Conv1D(5, 3))
        (site,) = sites(model)
        assert site.kind == "hf_conv1d" and site.shape == (5, 3)
        x = torch.randn(2, 3)
        assert torch.allclose(F.linear(x, site.read(model), model[0].bias), model(x), atol=1e-6)

    @pytest.mark.parametrize("conv", [nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, (1, 3), stride=2), nn.Conv1d(4, 6, 5)])
    def test_convolution_columns_are_kernel_positions_with_channels_last(self, conv):
        model = nn.Sequential(conv)
        (site,) = sites(model)
        positions = conv.weight[0, 0].numel()
        assert site.shape == (6, positions * 4)
        w = site.read(model).reshape(6, positions, 4)
        assert torch.equal(w[:, 0, :], conv.weight.flatten(2)[:, :, 0])
        assert torch.equal(w[:, -1, :], conv.weight.flatten(2)[:, :, -1])

    def test_a_group_of_a_convolution_is_a_site_with_its_own_inputs(self):
        model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2))
        first, second = sites(model)
        assert (first.name, first.shape, first.rows) == ("0[g0]", (3, 18), (0, 3))
        assert (second.name, second.rows) == ("0[g1]", (3, 6))

    def test_depthwise_convolutions_and_embeddings_are_left_out_unless_asked_for(self):
        model = nn.Sequential(nn.Embedding(7, 4), nn.Conv1d(4, 4, 3, groups=4), nn.Linear(4, 4))
        assert list(by_name(model)) == ["2"]
        assert list(by_name(model, include=["*"])) == ["0", "1", "2"]
        assert by_name(model, include=["0"])["0"].kind == "embedding"

    def test_transposed_convolutions_are_no_sites(self):
        assert sites(nn.Sequential(nn.ConvTranspose2d(3, 4, 2))) == []

    def test_attention_of_torch_is_cut_into_queries_keys_and_values(self):
        model = nn.MultiheadAttention(8, 2)
        found = by_name(model)
        assert list(found) == ["in_proj_weight[q]", "in_proj_weight[k]", "in_proj_weight[v]", "out_proj"]
        assert torch.equal(found["in_proj_weight[k]"].read(model), model.in_proj_weight[8:16])

    def test_attention_of_torch_with_separate_projections(self):
        found = by_name(nn.MultiheadAttention(8, 2, kdim=6, vdim=4))
        assert {n: s.shape for n, s in found.items()} == {
            "q_proj_weight": (8, 8),
            "k_proj_weight": (8, 6),
            "v_proj_weight": (8, 4),
            "out_proj": (8, 8),
        }


class TestFusedAndStacked:
    def test_gpt2_c_attn(self, tiny):
        model = tiny("gpt2")
        found = by_name(model)
        weight = model.get_parameter("transformer.h.1.attn.c_attn.weight")
        assert torch.equal(found["transformer.h.1.attn.c_attn[k]"].read(model), weight[:, 32:64].T)
        assert found["transformer.h.1.mlp.c_proj"].shape == (32, 128)

    def test_grouped_queries_in_one_projection(self, tiny):
        found = by_name(tiny("phi3"))
        shapes = [found[f"model.layers.0.self_attn.qkv_proj[{part}]"].shape for part in "qkv"]
        assert shapes == [(32, 32), (16, 32), (16, 32)]
        assert found["model.layers.0.mlp.gate_up_proj[up]"].rows == (48, 96)

    def test_experts_stored_out_by_in(self, tiny):
        model = tiny("mixtral")
        site = by_name(model)["model.layers.2.mlp.experts.gate_up_proj[3]"]
        assert site.shape == (96, 32) and not site.transposed
        assert torch.equal(site.read(model), model.get_parameter(site.parameter)[3])

    def test_experts_stored_in_by_out(self, tiny):
        model = tiny("gptoss")
        site = by_name(model)["model.layers.0.mlp.experts.down_proj[1]"]
        assert site.shape == (32, 48) and site.transposed
        assert torch.equal(site.read(model), model.get_parameter(site.parameter)[1].T)

    def test_experts_without_a_flag_are_told_by_their_hidden_size(self):
        class Experts(nn.Module):
            num_experts, hidden_size = 2, 6

            def __init__(self):
                super().__init__()
                self.gate_up_proj = nn.Parameter(torch.randn(2, 6, 10))
                self.down_proj = nn.Parameter(torch.randn(2, 5, 6))

        assert {s.shape for s in sites(Experts())} == {(10, 6), (6, 5)}

    def test_routers_are_left_out(self, tiny):
        assert not [
            n for name in ("mixtral", "gptoss") for n in by_name(tiny(name)) if "router" in n or ".gate" in n[-5:]
        ]

    def test_a_fused_projection_that_does_not_divide_stays_whole(self):
        class Attention(nn.Module):
            def __init__(self):
                super().__init__()
                self.qkv = nn.Linear(4, 10)

        assert list(by_name(Attention())) == ["qkv"]


class TestTied:
    def test_a_shared_parameter_is_one_site_that_knows_its_other_names(self):
        model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
        model["b"].weight = model["a"].weight
        (site,) = sites(model)
        assert site.name == "a" and site.tied == ("b.weight",)
        site.write(model, torch.ones(3, 3))
        assert torch.equal(model["b"].weight, torch.ones(3, 3))

    def test_an_embedding_tied_to_the_head_is_left_out(self, tiny):
        model = tiny("tied")
        assert not [n for n in by_name(model) if "embed" in n or "lm_head" in n]
        assert by_name(model, include=["*embed_tokens"])["model.embed_tokens"].tied == ("lm_head.weight",)

    def test_the_output_head_is_left_out(self, tiny):
        assert "lm_head" not in by_name(tiny("llama"))
        assert "lm_head" in by_name(tiny("llama"), include=["lm_head"])


class TestChoice:
    def test_exclude_and_include(self, tiny):
        model = tiny("llama")
        kept = by_name(model, exclude=["*.layers.0.*", "*.mlp.*"])
        assert set(kept) == {f"model.layers.{i}.self_attn.{p}_proj" for i in (1, 2) for p in "qkvo"}
        assert set(by_name(model, include=["*.0.*up_proj"])) == {"model.layers.0.mlp.up_proj"}

    def test_a_pattern_without_a_match_is_refused_and_names_what_there_is(self):
        with pytest.raises(ModelError, match=r"'nope\*'.*has 1: 0"):
            sites(nn.Sequential(nn.Linear(2, 2)), include=["nope*"])

    def test_a_model_on_the_meta_device(self):
        with torch.device("meta"):
            assert [s.shape for s in sites(nn.Sequential(nn.Linear(3, 2)))] == [(2, 3)]


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "phi3", "mixtral", "gptoss", "t5", "vit", "resnet"])
def test_round_trips_of_every_site(tiny, name):
    model = tiny(name)
    found = sites(model, include=["*"])
    assert len({s.name for s in found}) == len(found)
    for site in found[:: max(1, len(found) // 12)]:
        round_trip(model, site)
    covered = {s.parameter for s in found}
    assert sum(s.size for s in found) == sum(model.get_parameter(n).numel() for n in covered)
    left = [n for n, p in model.named_parameters() if p.dim() >= 2 and n not in covered]
    assert all(n.endswith(("cls_token", "position_embeddings", "gate.weight", "router.weight", "_bias")) for n in left)


@given(
    out=st.integers(1, 3), each=st.integers(1, 3), groups=st.integers(1, 3), kernel=st.lists(st.integers(1, 3), min_size=1, max_size=2)
)  # fmt: skip
def test_convolution_sites_cover_the_weight_once(out, each, groups, kernel):
    make = nn.Conv1d if len(kernel) == 1 else nn.Conv2d
    model = nn.Sequential(make(each * groups, out * groups, tuple(kernel), groups=groups))
    found = sites(model, include=["*"])
    assert sum(s.size for s in found) == model[0].weight.numel()
    for site in found:
        round_trip(model, site)
