"""What every rule of latents, and every method of autoencoders, must hold."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sparseworks.codes.autoencoders.latent import LatentRule, Moment
from sparseworks.codes.autoencoders.method import AutoencoderMethod
from sparseworks.codes.autoencoders.module import SparseAutoencoder
from sparseworks.codes.autoencoders.rules import BatchTopK, Bilinear, FeatureChoice, JumpReLU
from sparseworks.codes.autoencoders.stream import Batch
from sparseworks.codes.autoencoders.trainer import Schedule, Trainer
from sparseworks.core.select import select_across
from sparseworks.testing.examples import require

D, WIDTH, ROWS, K = 6, 24, 32, 3


def check_encoder(method: str | AutoencoderMethod) -> None:
    """Counts are exact under ties, sparse equals dense decoding, gradients are those of float64 differences, going to eval and back
    changes nothing, the exported form agrees, and parameters of 16 bits move.

    Raises:
        AssertionError: with a sentence that names the method and what broke.
    """
    chosen = small(AutoencoderMethod.of(method))
    if isinstance(chosen.latents, Bilinear):
        _moves(chosen)
        return
    _counts(chosen)
    _decodes(chosen)
    _differentiates(chosen)
    _comes_back(chosen)
    _exports(chosen)
    _moves(chosen)


def small(method: AutoencoderMethod) -> AutoencoderMethod:
    """The method with so few latents a token that it fits a toy; pseudo-gradients get a window that holds something, and inputs none of them,
    so that gradients of weights are what differences say."""
    fields = {"k": K, "start": None, "threshold": 0.1, "bandwidth": 0.2, "to_input": 0.0, "mutual": 0.0}
    known = {n: v for n, v in fields.items() if hasattr(method.latents, n)}
    return method.with_(**known)


def _built(method: AutoencoderMethod, dtype: torch.dtype = torch.float64) -> SparseAutoencoder:
    sae = SparseAutoencoder(method, D, WIDTH, seed=1).to(dtype)
    with torch.no_grad():
        sae.b_enc.add_(0.05)
        sae.density.copy_(torch.linspace(0.2, 0.01, WIDTH, dtype=torch.float64))
    return sae.train()


def _inputs(rows: int = ROWS, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)


def _counts(method: AutoencoderMethod) -> None:
    """Equal rows and equal atoms: whatever is chosen, it is as many as was said."""
    name, sae = method.name, _built(method)
    with torch.no_grad():
        sae.W_dec[: WIDTH // 2] = sae.W_dec[WIDTH // 2 :].clone()
        if not sae.rule.tied:
            sae.encoder_weight.copy_(sae.W_dec)
    x = _inputs()
    x[1::2] = x[::2].clone()
    codes = sae.rule(sae, x, Moment()).codes
    rule: LatentRule = sae.rule
    if isinstance(rule, FeatureChoice):
        want = rule.counts(sae, ROWS)
        held = torch.bincount(codes.indices[codes.kept()].long(), minlength=WIDTH)
        require(torch.equal(held, want), f"{name} keeps {held.tolist()} of the columns, not {want.tolist()}.")
        require(int(want.sum()) == K * ROWS, f"{name} has quotas that sum to {int(want.sum())}, not {K * ROWS}.")
    elif isinstance(rule, BatchTopK):
        require(codes.nnz == K * ROWS, f"{name} keeps {codes.nnz} entries, not {K * ROWS}.")
        best = select_across([sae.coded(x).codes.dense()], codes.nnz)[0]
        require(bool((codes.dense()[best] >= 0).all()), f"{name} keeps negative values.")
    elif hasattr(rule, "k") and not rule.tied:
        require(
            codes.lengths is None and codes.values.shape[1] == K, f"{name} does not keep {K} latents of every token."
        )
    elif rule.tied:
        require(codes.values.shape[1] <= K, f"{name} keeps more than {K} latents.")


def _decodes(method: AutoencoderMethod) -> None:
    sae = _built(method)
    codes = sae.encode(_inputs())
    dense = codes.dense() @ sae.W_dec + sae.b_dec
    require(
        torch.allclose(sae.decode(codes), dense, atol=1e-12), f"{method.name} decodes otherwise than its dense codes."
    )


def _differentiates(method: AutoencoderMethod) -> None:
    """Directional derivatives in float64, for each parameter that has true gradients, where the support stays as it is."""
    sae, x = _built(method.with_(auxiliary=None, prefixes=None)), _inputs()
    skip = {"log_threshold"} if isinstance(sae.rule, JumpReLU) else set()
    parameters = [(n, p) for n, p in sae.named_parameters() if n not in skip]

    def loss() -> Tensor:
        return sae.loss(Batch(x), Moment()).total

    if sae.rule.pressure():
        sae.pressure.zero_()  # counts have pseudo-gradients only
    grads = torch.autograd.grad(loss(), [p for _, p in parameters], allow_unused=True)
    for (name, p), grad in zip(parameters, grads, strict=True):
        way = torch.randn(p.shape, generator=torch.Generator().manual_seed(3), dtype=p.dtype)
        step, kept = 1e-7, p.data.clone()
        p.data = kept + step * way
        up = float(loss().detach())
        p.data = kept - step * way
        down = float(loss().detach())
        p.data = kept
        numeric, exact = (up - down) / (2 * step), 0.0 if grad is None else float((grad * way).sum())
        fixed = name in ("b_dec", "W_dec") and not sae.rule.tied and sae.rule.pressure() > 0 and hasattr(sae, "b_gate")
        if not fixed:  # a gated autoencoder holds its decoder fixed in the further loss
            require(
                abs(numeric - exact) <= 1e-5 * max(1.0, abs(numeric)),
                f"{method.name}: {name} has {exact}, not {numeric}.",
            )


def _comes_back(method: AutoencoderMethod) -> None:
    sae, x = _built(method), _inputs()
    before = {n: b.clone() for n, b in sae.state_dict().items()}
    one = sae.encode(x).dense()
    sae.eval()
    with torch.no_grad():
        first, second = sae.encode(x).dense(), sae.encode(x).dense()
    require(torch.equal(first, second), f"{method.name} encodes otherwise the second time.")
    sae.train()
    require(torch.equal(one, sae.encode(x).dense()), f"{method.name} encodes otherwise after eval.")
    require(
        all(torch.equal(b, before[n]) for n, b in sae.state_dict().items()), f"{method.name} changes while it encodes."
    )


def _exports(method: AutoencoderMethod) -> None:
    """Codes of a batch at thresholds calibrated on it are those of training; then each token's are its own."""
    sae, x = _built(method), _inputs()
    trained = sae.encode(x).dense()
    out = sae.export(iter([Batch(x)]))
    with torch.no_grad():
        found = out.encode(x).dense()
        alone = torch.cat([out.encode(row).dense() for row in x.split(1)])
    require(torch.allclose(found, trained, atol=1e-12), f"{method.name} exports a form with other codes.")
    require(
        torch.allclose(found, alone, atol=1e-12), f"{method.name} exports a form in which tokens depend on one another."
    )
    require(not out.training and sae.training, f"{method.name} changes its mode by being exported.")


def _moves(method: AutoencoderMethod) -> None:
    """In bfloat16, with steps far below its rounding, every parameter that float32 moves goes nearly as far."""
    went = {}
    x = _inputs(64, torch.float32)
    for dtype in (torch.float32, torch.bfloat16):
        trainer = Trainer(method, Batch(x), WIDTH, Schedule(20, 64, lr=1e-4, warmup=0, decay=0), dtype=dtype)
        first = {n: p.detach().float().clone() for n, p in trainer.model.named_parameters()}
        for i in range(20):
            trainer.step(i, Batch(x))
        moved = dict(zip(trainer.optimiser.names, trainer.optimiser.masters, strict=True))
        went[dtype] = {n: float((moved[n].detach().float() - first[n]).norm()) for n in first}
        require(
            all(p.dtype == dtype for p in trainer.model.parameters()), f"{method.name} has parameters of another type."
        )
    for name, far in went[torch.float32].items():
        near = went[torch.bfloat16][name]
        require(near >= 0.5 * far, f"{method.name}: {name} moves {near:.2g} in bfloat16, {far:.2g} in float32.")


def check_auxiliary_reaches(method: str | AutoencoderMethod) -> None:
    """With room for all dead latents, an auxiliary loss has a gradient for the encoder of each, and for its decoder row where it rebuilds the error.

    Raises:
        AssertionError: latents that it does not reach.
    """
    chosen = small(AutoencoderMethod.of(method))
    auxiliary = chosen.auxiliary
    if auxiliary is None or not hasattr(auxiliary, "weight"):
        return
    rebuilds = hasattr(auxiliary, "k")
    sae = _built(chosen.with_(auxiliary=replace(auxiliary, k=WIDTH)) if rebuilds else chosen)  # type: ignore[type-var]
    sae.silent.fill_(10**9)
    sae.density.zero_()
    sae.batches.fill_(1)
    x = _inputs()
    assert sae.method.auxiliary is not None
    loss = sae.method.auxiliary(sae, sae.centre(x), x)
    require(loss is not None, f"{chosen.name} has no auxiliary loss though all latents are dead.")
    assert loss is not None
    loss.backward()
    for name in ("encoder_weight", "W_dec") if rebuilds else ("encoder_weight",):
        grad = getattr(sae, name).grad
        reached = grad is not None and bool((grad.norm(dim=1) > 0).all())
        require(reached, f"{chosen.name}: the auxiliary loss does not reach {name} of every latent.")
