"""Latents chosen by their effect on the model's loss, spliced into a small language model of Markov text in four styles."""

from __future__ import annotations

import torch

import sparseworks as sw
from sparseworks.codes.autoencoders import Rows
from sparseworks.codes.autoencoders.latent import Moment
from sparseworks.codes.autoencoders.splice import hooked, next_token_loss

TOKENS, STYLES, LENGTH, SITE = 24, 4, 16, "model.layers.1"


def _texts(rows, g):
    made = torch.Generator().manual_seed(0)
    table, styles = 1.5 * torch.randn(TOKENS, TOKENS, generator=made), 1.5 * torch.randn(STYLES, TOKENS, generator=made)
    p = torch.stack([(table + style).softmax(1) for style in styles])
    style = torch.randint(0, STYLES, (rows,), generator=g)
    x = [torch.randint(0, TOKENS, (rows,), generator=g)]
    while len(x) < LENGTH:
        x.append(torch.multinomial(p[style, x[-1]], 1, generator=g)[:, 0])
    return torch.stack(x, 1)


def _seen(model, ids):
    """Activations, and the gradient of the loss at them."""
    held = []

    def keep(x):
        held.append(x.detach().requires_grad_())
        return held[0]

    with hooked(model, SITE, keep):
        loss = next_token_loss(model(ids), ids).sum()
    return held[0].detach(), torch.autograd.grad(loss, held[0])[0]


def _spliced(model, ids, new):
    with torch.no_grad(), hooked(model, SITE, lambda x: new.view(x.shape)):
        return float(next_token_loss(model(ids), ids).mean())


def _figures(seed, markov_model, k=4):
    """Method -> (loss added by splicing, share of the variance that is not explained), gradients given to both."""
    g = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = markov_model(lambda rows: _texts(rows, g), TOKENS, 3, 150, falling=0.5).requires_grad_(False)
    x, effect = (t[:, 1:-1].flatten(0, 1) for t in _seen(model, _texts(400, g)))
    held = _texts(300, g)
    h, gradients = (t.flatten(0, 1) for t in _seen(model, held))
    found = {}
    for name in ("topk_sae", "g_sae"):
        sae = sw.train_autoencoder(
            Rows(x, gradients=effect), sw.method(name, k=k), width=96, steps=250, batch=256, lr=3e-3
        )
        with torch.no_grad():
            rebuilt = sae.decode(sae.coded(h, Moment(1.0, gradients)).codes)
        left = (h - rebuilt).square().sum() / (h - h.mean(0)).square().sum()
        found[name] = _spliced(model, held, rebuilt) - _spliced(model, held, h), float(left)
    return found


def test_splicing_costs_less_where_latents_are_chosen_by_their_effect(markov_model):
    """With gradients at inference too; chosen by size there, as deployment must, neither was ahead throughout."""
    found = _figures(0, markov_model)
    (plain, left), (ours, ours_left) = found["topk_sae"], found["g_sae"]
    assert 0 < ours < 0.85 * plain and ours_left < 1.1 * left, found
