"""What a method must do on a GPU: what it does on the CPU. `python -m sparseworks.testing.device cuda` asks all of them; with `pretended`
in place of `cuda` no GPU is needed, and what is found are tensors that would not be on it, see `testing.pretend`.

Nothing is drawn on a device: models, data and generators are the CPU's and are moved, so that a seed means the same everywhere.
"""

from __future__ import annotations

import sys
import traceback
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial, singledispatch
from typing import Any

import torch
from torch import Tensor, nn

import sparseworks as sw
from sparseworks.activations import ActivationMethod, predict_structures, sparsify_activations
from sparseworks.activations.contextual import ContextualMethod
from sparseworks.activations.trained import TrainedMethod, train_sparse
from sparseworks.attention import AttentionMethod
from sparseworks.attention.cache.held import Held
from sparseworks.attention.cache.method import CacheMethod, kept_tokens
from sparseworks.attention.trained import Gate, TrainedAttention
from sparseworks.codes.autoencoders import AutoencoderMethod
from sparseworks.codes.method import CodeMethod
from sparseworks.core.method import Method
from sparseworks.core.published import METHODS, Published
from sparseworks.core.support import Support
from sparseworks.testing import activations, attention, cache, encoder, pursuit, regime, trained
from sparseworks.testing.decoder import Decoder
from sparseworks.testing.examples import require
from sparseworks.testing.pretend import pretended

AGREE = 0.95
"""Share of what is kept that two devices must agree on: sums in another order decide near ties otherwise."""
CLOSE = 1e-3
"""Of outputs, relative to the largest."""


def check_device(method: Published | str, device: torch.device | str = "cuda") -> bool:
    """Raise AssertionError unless `method` runs on `device` and does there what it does on the CPU; False = a kind that has no device.

    One-shot selections and attention must agree but for near ties; trainings must meet budget and pattern, since their rounding adds up; of
    factors and sparse activations the outputs must be finite.

    Raises:
        AssertionError: with a sentence that names the method and what differs.
    """
    method = METHODS.get(method) if isinstance(method, str) else method
    if _check.dispatch(type(method)) is _check.dispatch(object):
        return False
    return _check(method, torch.device(device)) is not False


@singledispatch
def _check(method: Any, device: torch.device) -> bool | None:
    """False = there is nothing to ask."""
    raise NotImplementedError(f"{type(method).__name__} has no device.")


@_check.register
def _weights(method: Method, device: torch.device) -> bool | None:
    if method.cycle is not None or any(need.source == "training" for need in method.needs):
        return False  # trains by a function of the caller; its selections are those of the other methods
    if method.train is not None and method.form is None:
        return _trains(method, device)
    here, there = (_pruned(method, d) for d in (torch.device("cpu"), device))
    for name, support in here.items():
        _same(support.mask(), there[name].mask(), f"{method.name}: {name}")
    return None


def _trains(method: Method, device: torch.device) -> None:
    method = regime._brisk(method)
    build = regime._normed if method.train is not None and method.train.grouped else regime._net
    model = build().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    sparsifier = sw.Sparsifier(model, method, optimizer, steps=regime.STEPS)
    for step in range(regime.STEPS):
        optimizer.zero_grad()
        x, y = (t.to(device) for t in regime._batch(step))
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        sparsifier.step()
    supports = sparsifier.finish()
    regime._check_end(method, model.cpu(), supports)


def _pruned(method: Method, device: torch.device) -> dict[str, Support]:
    torch.manual_seed(0)
    model = (
        (_biased if method.name.endswith("_bias") else partial(Decoder, width=64, hidden=128, groups=4))()
        .eval()
        .to(device)
    )
    data = [{"input_ids": batch["input_ids"].to(device)} for batch in activations._batches()]
    if method.form is not None:
        known = {"steps": 20, "iterations": 2}
        brisk = {k: v for k, v in known.items() if hasattr(method.form, k)}
        sw.factorise(model, method.with_(form=replace(method.form, **brisk)), data, skip=["*lm_head*"], progress=False)  # type: ignore[arg-type]
        require(
            bool(model(**data[0]).isfinite().all()), f"{method.name}: the factorised model's outputs are not finite."
        )
        return {}
    return dict(sw.prune(model, method, data, loss=_loss, skip=["*lm_head*"], progress=False).supports)


@_check.register
def _attention(method: AttentionMethod, device: torch.device) -> None:
    causal = method.order is None and not getattr(method.score, "bidirectional", False)
    for phase in method.phases:
        heads = attention.example_heads(1 if phase == "decode" else 128, 128, causal=causal)
        moved = heads.with_(**{n: getattr(heads, n).to(device) for n in "qkv"}, learned={})
        here, there = (attention._run(h, method)[0] for h in (heads, moved))
        # A near tie changes a row of outputs: most rows are as they were.
        apart = (~((here - there.cpu()).abs().amax(-1) <= CLOSE * float(here.abs().max()))).float().mean()
        require(float(apart) <= 1 - AGREE, f"{method.name}: {float(apart):.1%} of the outputs differ ({phase}).")
    if causal and "decode" in method.phases:
        _generates(method, device)


@_check.register
def _caches(method: CacheMethod, device: torch.device) -> None:
    held = cache.example_held()
    moved = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in vars(held).items()}
    here, there = (kept_tokens(h, method) for h in (cache.fresh(held), Held(**{**moved, "memory": {}})))
    _same(here, there, method.name)
    _generates(method, device)


def _generates(method: Published, device: torch.device) -> None:
    """Greedy decoding of a small model of transformers, cache and all."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=97, num_hidden_layers=3, eos_token_id=None, **sizes)  # type: ignore[arg-type]
    model: Any = LlamaForCausalLM(config).eval()
    prompt = torch.randint(0, 97, (2, 160), generator=torch.Generator().manual_seed(1))
    found = []
    for at in (torch.device("cpu"), device):
        with torch.no_grad(), sw.attention(model.to(at), method):
            made = model.generate(
                prompt.to(at), max_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        require(made.sequences.shape == (2, 166), f"{method.name} generates no text on {at}.")
        found.append([logits.cpu() for logits in made.logits])
    for here, there in zip(*found, strict=True):
        _near(here, there, method.name, 0.02)
        if not torch.equal(here.argmax(-1), there.argmax(-1)):
            break  # a near tie: from here on the texts differ


@_check.register
@torch.no_grad()
def _trained(method: TrainedAttention, device: torch.device) -> bool | None:
    method = method.with_(trainable=type(method.trainable).example())
    built = trained._built(method, 0)
    if isinstance(built, Gate):
        gates = trained._gates(method, 0)
        for gate in gates:
            trained._stir(gate, 1)
        tokens = getattr(method.trainable, "tokens", 128)
        heads = trained._with_hidden(attention.example_heads(tokens, tokens, causal=not method.trainable.bidirectional))
        moved = heads.with_(**{n: getattr(heads, n).to(device) for n in ("q", "k", "v", "hidden")})
        here = trained._attend(gates, heads)
        _near(here, trained._attend([g.to(device) for g in gates], moved), method.name)
    elif method.trainable.replaces:
        hidden = torch.randn(2, 128, trained.SIZES.width, generator=torch.Generator().manual_seed(3))
        here = built(hidden)[0]
        _near(here, built.to(device)(hidden.to(device))[0], method.name)
    else:
        return False  # a model or a layer of its own
    return None


@_check.register
def _activations(method: ActivationMethod, device: torch.device) -> None:
    method = activations._brisk(method)
    model = activations._decoder().to(device)
    data = [{"input_ids": batch["input_ids"].to(device)} for batch in activations._batches()]
    done = sparsify_activations(model, method, data)
    require(bool(done.rows), f"{method.name} masks nothing.")
    require(bool(model(**data[0]).isfinite().all()), f"{method.name}: outputs are not finite.")


@_check.register
def _contextual(method: ContextualMethod, device: torch.device) -> None:
    model = activations._decoder().to(device)
    data = [{"input_ids": batch["input_ids"].to(device)} for batch in activations._batches()]
    made = predict_structures(model, method, data, hidden=16, epochs=2, loss=_loss)
    require(bool(model(**data[0]).isfinite().all()), f"{method.name}: outputs are not finite.")
    require(bool(made.recall), f"{method.name} predicts nothing.")


@_check.register
def _sparse_while_it_trains(method: TrainedMethod, device: torch.device) -> bool | None:
    if method.activation.built_with:
        return False  # modules of its own
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    train_sparse(model, method).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(4):
        x, y = (t.to(device) for t in regime._batch(step))
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x.repeat(1, 4)), y).backward()
        optimizer.step()
    require(all(bool(p.isfinite().all()) for p in model.parameters()), f"{method.name}: weights are not finite.")
    return None


@_check.register
def _autoencoders(method: AutoencoderMethod, device: torch.device) -> None:
    x = torch.randn(512, encoder.D, generator=torch.Generator().manual_seed(0))
    made = [
        sw.train_autoencoder(x.to(d), encoder.small(method), width=encoder.WIDTH, steps=20, batch=64, lr=1e-3)
        for d in (torch.device("cpu"), device)
    ]
    for here, there in zip(*(m.state_dict().values() for m in made), strict=True):
        require(there.device.type == device.type, f"{method.name}: it is not where its tokens are.")
        if here.is_floating_point() and here.ndim == 2:
            _near(here, there, method.name, 0.05)


@_check.register
def _codes(method: CodeMethod, device: torch.device) -> None:
    d, _, y = pursuit.planted()
    y = y.sign() if getattr(getattr(method.coder, "datafit", None), "registered_name", "") == "logistic" else y
    here, there = (sw.code(y.to(at), d.to(at), method) for at in (torch.device("cpu"), device))
    _near(here.z, there.z, method.name)


def _loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Of the next token."""
    logits = model(**batch)[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch["input_ids"][:, 1:].flatten())


def _biased() -> Decoder:
    """For repairs that write into biases."""
    model = Decoder()
    for module in list(model.modules()):
        if isinstance(module, nn.Linear):
            module.bias = nn.Parameter(torch.zeros(module.out_features))
    return model


def _same(here: Tensor, there: Tensor, what: str) -> None:
    there = there.cpu()
    require(here.shape == there.shape, f"{what} has another shape on the device.")
    agree = float((here & there).sum()) / float((here | there).sum()) if bool((here | there).any()) else 1.0
    require(agree >= AGREE, f"{what} keeps something else on the device: {agree:.1%} of what is kept is common.")


def _near(here: Tensor, there: Tensor, what: str, tolerance: float = CLOSE) -> None:
    apart = float((here - there.cpu()).abs().max()) / max(float(here.abs().max()), 1e-30)
    require(apart <= tolerance, f"{what} gives something else on the device, by {apart:.2g} of the largest.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask every registered method, print what failed, and return how many did."""
    parser = ArgumentParser(
        "python -m sparseworks.testing.device", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "device", nargs="?", default="cuda", help="cuda, another device of torch, or `pretended`; default: cuda"
    )
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="names; default: all that are registered")
    given = parser.parse_args(arguments)
    device, names = given.device, given.methods or METHODS.names()
    if device != "pretended":
        try:
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            parser.error(f"torch has no device {device!r} here ({str(error).splitlines()[0]}); try `pretended`.")
    with pretended() if device == "pretended" else nullcontext(device) as at:
        asked, failed = _ask(names, at)
    print(f"{asked} methods do on {device} what they do on the CPU, {failed} do not; others have no device")
    return failed


def _ask(names: Sequence[str], device: torch.device | str) -> tuple[int, int]:
    asked, failed = 0, 0
    for name in names:
        try:
            asked += check_device(name, device)
        except Exception as error:  # whatever it is, the others are asked too
            where = traceback.extract_tb(error.__traceback__)
            at = [
                f"{f.filename.rpartition('sparseworks/')[2]}:{f.lineno}" for f in where if "sparseworks" in f.filename
            ]
            print(f"{name}: {type(error).__name__}: {str(error)[:300]} [{' < '.join(at[::-1][:4])}]", flush=True)
            failed += 1
    return asked, failed


if __name__ == "__main__":
    sys.exit(min(main(), 1))
