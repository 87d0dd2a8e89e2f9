"""Attribution of latents to heads and source tokens: exact sums, and induction features in the head that was built to induce."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparseworks as sw
from sparseworks.codes.autoencoders import ActivationStream
from sparseworks.codes.autoencoders.attribution import HeadAttribution
from sparseworks.core.errors import RecipeError, ShapeError

LETTERS, SHARP = 12, 30.0
PLACES = 2 * LETTERS + 1


class Attention(nn.Module):
    """Causal attention with given matrices; probabilities and values are kept for the test."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, o: Tensor):
        super().__init__()
        self.q, self.k, self.v = q, k, v  # (heads, d, inner)
        self.out = nn.Linear(o.shape[0], o.shape[1], bias=False)
        self.out.weight.data.copy_(o.T)

    def forward(self, x):
        q, k, self.values = (torch.einsum("btd,hdi->bthi", x, w) for w in (self.q, self.k, self.v))
        scores = torch.einsum("bthi,bshi->bhts", q, k)
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        self.attention = scores.masked_fill(later, -torch.inf).softmax(-1)
        return self.out(torch.einsum("bhts,bshi->bthi", self.attention, self.values).flatten(2))


class Letters(nn.Module):
    """Two layers of attention only, built by hand. The stream holds [letter, place, letter before, copied, own]; layer 0 fetches the letter
    before, layer 1 has an induction head (to where the letter before is mine, else to the first place) and one that looks at its own place."""

    def __init__(self):
        super().__init__()
        n, p = LETTERS + 1, PLACES  # the last letter begins every text
        d = 4 * n + p
        letter, place, before, copied, own = (torch.eye(d)[a:b] for a, b in ((0, n), (n, n + p), (n + p, 2 * n + p), (2 * n + p, 3 * n + p), (3 * n + p, d)))  # fmt: skip
        wide = max(n, p)
        pad = lambda w: F.pad(w.T, (0, wide - len(w)))  # noqa: E731
        self.letter, self.place = letter, place
        back = torch.zeros(p, d)
        back[1:] = place[1:]
        q0 = pad(back) * SHARP
        k0 = pad(torch.cat([torch.zeros(1, d), place[:-1]]))
        self.first = Attention(q0[None], k0[None], letter.T[None].contiguous(), before)
        self.second = Attention(
            torch.stack([pad(letter), pad(place)]) * SHARP,
            torch.stack([pad(before) + 0.5 * F.pad(place[:1].T.expand(-1, n), (0, wide - n)), pad(place)]),
            torch.stack([letter.T, letter.T]),
            torch.cat([copied, own]),
        )

    def forward(self, input_ids):
        x = self.letter[input_ids] + self.place[: input_ids.shape[1]]
        x = x + self.first(x)
        return {"logits": x + self.second(x)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The model, batches whose second half repeats the first, and an autoencoder of the second layer's heads."""
    g = torch.Generator().manual_seed(0)
    half = torch.stack([torch.randperm(LETTERS, generator=g) for _ in range(200)])
    model = Letters()
    batch = {"input_ids": torch.cat([torch.full((len(half), 1), LETTERS), half, half], dim=1)}
    stream = ActivationStream.record(model, [batch], "second.out:in", tmp_path_factory.mktemp("heads"))
    sae = sw.train_autoencoder(stream, sw.method("relu_sae", l0=2.0), width=30, steps=400, batch=256, lr=5e-3)
    return model, batch, sae


def _heads_outputs(model, batch):
    from sparseworks.codes.autoencoders.splice import hooked

    seen: list[Tensor] = []
    with hooked(model, "second.out:in", lambda x: seen.append(x)), torch.no_grad():
        model(**batch)
    return seen[0]


def _one_letter(on, letters):
    """Share of each latent's activation that one letter has."""
    by = torch.stack([on[letters == n].sum(0) for n in range(LETTERS)])
    return by.amax(0) / by.sum(0).clamp(min=1e-9)


def test_parts_sum_to_the_preactivation_by_head_and_by_source(trained):
    model, batch, sae = trained
    z, found = _heads_outputs(model, batch), HeadAttribution(sae, 2)
    whole = (sae.centre(z) @ sae.W_enc + sae.b_enc).unflatten(0, z.shape[:2]).detach()
    latents = [0, 5, 17]  # any
    parts = found.by_head(z, latents)
    assert parts.terms.shape == (*z.shape[:2], 2, 3)
    assert torch.allclose(parts.terms.sum(-2) + parts.bias, whole[..., latents], atol=1e-5)
    one = found.by_source(model.second.attention, model.second.values, 5)
    assert one.terms.shape == (len(z), 2, PLACES, PLACES)
    assert torch.allclose(one.terms.sum((1, 3)) + one.bias, whole[..., 5], atol=1e-5)
    assert torch.allclose(one.terms.sum(-1).transpose(1, 2), parts.terms[..., 1], atol=1e-5)


def test_values_may_be_shared_by_groups_of_heads(trained):
    _, _, sae = trained
    g = torch.Generator().manual_seed(1)
    p, v = torch.rand(2, 5, 7, generator=g), torch.randn(7, 1, LETTERS + 1, generator=g)
    z = torch.einsum("hts,sd->thd", p, v[:, 0]).flatten(1)
    whole = (sae.centre(z) @ sae.W_enc + sae.b_enc)[:, 3].detach()
    one = HeadAttribution(sae, 2).by_source(p, v, 3)
    assert torch.allclose(one.terms.sum((0, 2)) + one.bias, whole, atol=1e-5)


def test_induction_features_have_their_decoder_norm_in_the_induction_head(trained):
    model, batch, sae = trained
    z, shares = _heads_outputs(model, batch), HeadAttribution(sae, 2).weights()
    assert torch.allclose(shares.sum(1), torch.ones(sae.width))
    on = sae.encode(z).dense().detach().unflatten(0, z.shape[:2])
    late, ids = on[:, LETTERS + 1 : -1], batch["input_ids"]
    # Where a latent is on in the repeated half: at one letter that is to come, whatever the letter now, or the other way round.
    to_come, now = _one_letter(late, ids[:, LETTERS + 2 :]), _one_letter(late, ids[:, LETTERS + 1 : -1])
    used = late.mean((0, 1)) > 0.01
    induction, own = used & (to_come > 0.8) & (now < 0.5), used & (now > 0.8) & (to_come < 0.5)
    assert int(induction.sum()) >= LETTERS // 2 and int(own.sum()) >= LETTERS // 2
    assert float(shares[induction, 0].min()) > 0.8 and float(shares[own, 0].max()) < 0.5
    # And what turned one on at the repeated half is the token after the first occurrence, by the induction head.
    latent = int(torch.where(induction, late.mean((0, 1)), 0).argmax())
    terms = HeadAttribution(sae, 2).by_source(model.second.attention, model.second.values, latent).terms
    rows, to = (on[:, LETTERS + 1 :, latent] > 0.5).nonzero(as_tuple=True)
    assert len(rows)
    best = terms[rows, :, to + LETTERS + 1].flatten(1).argmax(1)
    head, source = best // PLACES, best % PLACES
    assert bool((head == 0).all()) and bool((source == to + 2).all())


def test_what_does_not_fit_is_refused(trained):
    _, _, sae = trained
    found = HeadAttribution(sae, 2)
    with pytest.raises(ShapeError, match="heads"):
        HeadAttribution(sae, 5)
    with pytest.raises(ShapeError, match="end in"):
        found.by_head(torch.zeros(2, 7), [0])
    with pytest.raises(ShapeError, match="Latents lie"):
        found.by_head(torch.zeros(2, 2 * LETTERS + 2), [30])
    with pytest.raises(ShapeError, match="do not fit"):
        found.by_source(torch.zeros(3, 4, 4), torch.zeros(4, 2, LETTERS + 1), 0)
    pursuit = sw.train_autoencoder(torch.randn(64, 6), sw.method("mp_sae", k=2), width=12, steps=2, batch=32)
    with pytest.raises(RecipeError, match="linear"):
        HeadAttribution(pursuit, 2)
