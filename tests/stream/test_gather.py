from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sparseworks.core.errors import CalibrationError, NonFiniteError
from sparseworks.core.stats import Gram, InputMoments, Stat
from sparseworks.stream import gather, sites
from sparseworks.stream.gather import Gatherer, unfolded
from sparseworks.stream.padding import Padding, real_tokens, token_masks

GRAM = frozenset({Gram})


class Outputs(Stat):
    """Sum of a site's outputs."""

    source = "output"
    state_names = ("sum",)

    def __init__(self, rows: int, cols: int):
        super().__init__(rows, cols)
        self.sum = torch.zeros(rows, dtype=torch.float64)

    def update(self, x: Tensor) -> None:
        self.sum += self._matrix(x, self.rows).sum(dim=0)


def inputs_of(model: nn.Module, name: str, batch) -> Tensor:
    """What the module `name` receives, by a hook of our own."""
    seen = []
    handle = model.get_submodule(name).register_forward_hook(lambda m, args, out: seen.append(args[0].detach()))
    with torch.no_grad():
        model(**batch)
    handle.remove()
    return torch.cat(seen)


class TestAgainstTheHand:
    def test_linear_over_several_batches(self):
        model, batches = (
            nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 2)),
            [torch.randn(4, 5) for _ in range(3)],
        )
        found = gather(model, sites(model), frozenset({Gram, InputMoments}), batches)
        x = torch.cat(batches).double()
        assert found["0"][Gram].count == 12
        assert torch.allclose(found["0"][Gram].total, x.T @ x, atol=1e-5)
        h = F.relu(model[0](torch.cat(batches))).double()
        assert torch.allclose(found["2"][Gram].total, h.T @ h, atol=1e-5)
        assert torch.allclose(found["2"][InputMoments].square, h.square().sum(0), atol=1e-5)
        assert torch.allclose(found["2"][InputMoments].sum, h.sum(0), atol=1e-5)

    @pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "opt", "phi3", "vit"])
    def test_every_linear_site_of_a_transformer(self, tiny, batch_for, name):
        model, batch = tiny(name), batch_for(name)
        listed = sites(model, exclude=["*projection", "*pooler*"])
        found = gather(model, listed, GRAM, [batch])
        mask = batch["attention_mask"].bool() if "attention_mask" in batch else None
        for site in listed:
            x = inputs_of(model, site.module, batch)
            x = x.reshape(-1, site.shape[1]).double()
            x = x if mask is None else x[mask.flatten()]
            assert found[site.name][Gram].count == len(x), site.name
            assert torch.allclose(found[site.name][Gram].total, x.T @ x, atol=1e-4), site.name

    @pytest.mark.parametrize(
        "conv",
        [
            nn.Conv2d(4, 6, 3),
            nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, dilation=(1, 2)),
            nn.Conv2d(4, 6, 3, groups=2),
            nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect"),
            nn.Conv1d(4, 6, 3, stride=2),
            nn.Conv1d(4, 6, 3, groups=2, padding=1),
        ],
        ids=lambda c: f"{len(c.kernel_size)}d-{c.groups}-{c.padding_mode}-{c.stride}",
    )
    def test_a_convolution_is_a_product_with_its_unfolded_input(self, conv):
        """Gram of the inputs determines the outputs' second moment: sum |y|^2 = tr(W G W^T)."""
        model, dims = nn.Sequential(conv), len(conv.kernel_size)
        conv.bias = None
        x = torch.randn(2, 4, *([9] * dims))
        found = gather(model, sites(model), GRAM, [x])
        y = model(x)
        for site in sites(model):
            w = site.read(model).double()
            rows = slice(*site.rows) if site.rows else slice(None)
            expected = y[:, rows].double().square().sum(dim=(0, *range(2, 2 + dims)))
            assert torch.allclose(((w @ found[site.name][Gram].total) * w).sum(1), expected, rtol=1e-4)

    def test_unfolded_times_weight_is_the_convolution(self):
        conv = nn.Conv2d(3, 5, 3, stride=2, padding=1)
        model, x = nn.Sequential(conv), torch.randn(2, 3, 7, 7)
        (site,) = sites(model)
        y = unfolded(conv, x) @ site.read(model).T + conv.bias
        assert torch.allclose(y.reshape(2, 4, 4, 5).movedim(-1, 1), model(x), atol=1e-5)

    def test_outputs_of_slices(self, tiny, batch_for):
        model, batch = tiny("gpt2"), batch_for("gpt2")
        listed = sites(model, include=["*h.0*c_attn*"])
        found = gather(model, listed, frozenset({Outputs}), [batch])
        seen = []
        module = model.get_submodule("transformer.h.0.attn.c_attn")
        handle = module.register_forward_hook(lambda m, a, out: seen.append(out))
        with torch.no_grad():
            model(**batch)
        handle.remove()
        total = seen[0][batch["attention_mask"].bool()].double().sum(0)
        assert torch.allclose(torch.cat([found[s.name][Outputs].sum for s in listed]), total, atol=1e-4)


class TestPadding:
    def test_padding_does_not_change_statistics(self, tiny, batch_for):
        model = tiny("llama")
        batch = batch_for("llama", rows=2)
        whole = gather(model, sites(model), GRAM, [batch])
        rows = [{k: v[i : i + 1, : int(batch["attention_mask"][i].sum())] for k, v in batch.items()} for i in range(2)]
        alone = gather(model, sites(model), GRAM, rows)
        for name in whole:
            assert whole[name][Gram].count == alone[name][Gram].count
            assert torch.allclose(whole[name][Gram].total, alone[name][Gram].total, atol=1e-4), name

    @pytest.mark.parametrize("name", ["mixtral", "gptoss"])
    def test_experts_do_not_see_padding(self, tiny, batch_for, name):
        model, batch = tiny(name), batch_for(name, rows=2)
        listed = sites(model, include=["*layers.0*experts*"])
        whole = gather(model, listed, GRAM, [batch])
        rows = [{k: v[i : i + 1, : int(batch["attention_mask"][i].sum())] for k, v in batch.items()} for i in range(2)]
        alone = gather(model, listed, GRAM, rows)
        assert sum(whole[s.name][Gram].count for s in listed) == 2 * 2 * int(batch["attention_mask"].sum())
        for site in listed:
            assert whole[site.name][Gram].count == alone[site.name][Gram].count
            assert torch.allclose(whole[site.name][Gram].total, alone[site.name][Gram].total, atol=1e-4)

    def test_encoder_and_decoder_have_their_own(self, tiny, batch_for):
        model, batch = tiny("t5"), batch_for("t5", rows=2)
        found = gather(model, sites(model), frozenset({InputMoments}), [batch])
        real, decoded = int(batch["attention_mask"].sum()), batch["decoder_input_ids"].numel()
        counts = {n: s[InputMoments].count for n, s in found.items()}
        assert counts["encoder.block.0.layer.0.SelfAttention.q"] == real
        assert counts["decoder.block.0.layer.0.SelfAttention.k"] == decoded
        assert counts["decoder.block.0.layer.1.EncDecAttention.q"] == decoded
        assert counts["decoder.block.0.layer.1.EncDecAttention.k"] == real

    def test_a_decoder_without_a_mask_of_its_own_is_not_cut_by_the_encoders(self, tiny, batch_for):
        model, batch = tiny("t5"), batch_for("t5", rows=2)
        labels = {
            "input_ids": batch["input_ids"],
            "attention_mask": batch["attention_mask"],
            "labels": batch["input_ids"],
        }
        found = gather(model, sites(model), frozenset({InputMoments}), [labels])
        assert found["decoder.block.0.layer.0.SelfAttention.q"][InputMoments].count == batch["input_ids"].numel()

    def test_the_mask_of_a_decoder_only_model_named_decoder(self, tiny, batch_for):
        padding, batch = Padding(tiny("opt")), batch_for("opt")
        padding.begin(batch)
        assert torch.equal(padding.mask("model.decoder.layers.0.fc1"), batch["attention_mask"].bool())

    @given(rows=st.integers(1, 4), length=st.integers(2, 5), data=st.data())
    def test_real_tokens_flat_or_not(self, rows, length, data):
        flags = data.draw(st.lists(st.booleans(), min_size=rows * length, max_size=rows * length))
        mask, x = torch.tensor(flags).reshape(rows, length), torch.randn(rows, length, 3)
        for form in (x, x.reshape(-1, 3)):
            assert torch.equal(real_tokens(form, mask).reshape(-1, 3), x[mask])

    def test_masks_of_other_shapes_are_no_padding_masks(self):
        assert token_masks({"attention_mask": torch.ones(1, 1, 2, 2)}) == {}
        assert token_masks(torch.ones(2)) == {}


class TestSharing:
    def test_queries_keys_and_values_are_counted_once(self, tiny, batch_for, monkeypatch):
        model, batch, updates = tiny("llama"), batch_for("llama"), []
        monkeypatch.setattr(Gram, "update", lambda self, x: updates.append(x.shape))
        gather(model, sites(model), GRAM, [batch])
        # Per layer: attention input, attention output, MLP input, MLP hidden.
        assert len(updates) == 3 * 4

    def test_followers_see_their_leader_in_their_own_shape(self, tiny, batch_for):
        model = tiny("llama")
        found = gather(model, sites(model), GRAM, [batch_for("llama")])
        q, k = (found[f"model.layers.0.self_attn.{p}_proj"][Gram] for p in "qk")
        assert q.total is k.total and (q.rows, k.rows) == (32, 16)

    def test_different_needs_are_not_shared(self, tiny, batch_for):
        model = tiny("llama")
        listed = sites(model, include=["*layers.0.self_attn.[qk]_proj"])
        needs = {listed[0].name: GRAM, listed[1].name: frozenset({InputMoments})}
        found = gather(model, listed, needs, [batch_for("llama")])
        assert Gram in found[listed[0].name] and Gram not in found[listed[1].name]
        assert found[listed[1].name][InputMoments].count > 0

    def test_an_input_shared_now_and_then_is_counted_by_each(self):
        class Sometimes(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

            def forward(self, x, shared):
                return self.a(x) + self.b(x if shared else 2 * x)

        model, x = Sometimes(), torch.randn(4, 3)
        found = gather(model, sites(model), GRAM, [(x, True), (x, False)])
        g = x.double().T @ x.double()
        assert torch.allclose(found["a"][Gram].total, 2 * g, atol=1e-5)
        assert torch.allclose(found["b"][Gram].total, 5 * g, atol=1e-5)

    def test_a_tensor_changed_in_place_is_another_input(self):
        class InPlace(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

            def forward(self, x):
                y = self.a(x)
                x.mul_(2)
                return y + self.b(x)

        model, x = InPlace(), torch.randn(4, 3)
        found = gather(model, sites(model), GRAM, [x.clone()])
        g = x.double().T @ x.double()
        assert torch.allclose(found["b"][Gram].total, 4 * g, atol=1e-5)


class TestRefusals:
    def test_no_batches(self):
        with pytest.raises(CalibrationError, match="empty"):
            gather(nn.Sequential(nn.Linear(2, 2)), sites(nn.Sequential(nn.Linear(2, 2))), GRAM, [])

    def test_nan_names_the_site(self):
        model = nn.Sequential(nn.Linear(2, 2))
        with pytest.raises(NonFiniteError, match="Site '0'"):
            gather(model, sites(model), GRAM, [torch.full((1, 2), torch.nan)])

    def test_hooks_are_removed_after_an_error(self):
        model = nn.Sequential(nn.Linear(2, 2))
        with pytest.raises(NonFiniteError), Gatherer(model, sites(model), GRAM):
            model(torch.full((1, 2), torch.nan))
        assert not model[0]._forward_hooks

    def test_an_embedding_has_no_input_vectors(self):
        model = nn.Sequential(nn.Embedding(5, 4))
        with pytest.raises(CalibrationError, match="without a floating tensor"):
            gather(model, sites(model, include=["0"]), GRAM, [torch.tensor([1, 2])])
