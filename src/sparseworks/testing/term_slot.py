"""What every slot of a term encoder must hold: heads, poolings, saturations, normalisations, importances."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sparseworks.core.config import from_config, to_config
from sparseworks.core.errors import BudgetError
from sparseworks.retrieval.encoders.heads import Read, TermHead
from sparseworks.retrieval.encoders.slots import (
    Log1p,
    MaxPooling,
    Saturation,
    SumPooling,
    TermImportance,
    TermNorm,
    TermPooling,
)
from sparseworks.testing.examples import example, require

_TEXTS, _TOKENS, _WIDTH, _HIDDEN = 4, 5, 7, 3
Slot = TermHead | TermPooling | Saturation | TermNorm | TermImportance


def check_term_slot(slot: type[Slot] | Slot) -> None:
    """What the slot's noun promises: padding and other texts change nothing, texts without tokens have no weights, saturations rise
    from 0, normalisations keep the order of terms, gradients are those of float64 differences, and it comes back from plain data.

    Raises:
        AssertionError: with a sentence that names the slot and what broke.
    """
    subject = example(slot)
    name = type(subject).__name__
    for noun, kind, check in _SUITES:
        if isinstance(subject, kind):
            check(subject, name)
            if hasattr(subject, "registered_name"):
                require(from_config(noun, to_config(subject)) == subject, f"{name} does not come back from plain data.")
            return
    require(False, f"{name} is none of the slots of a term encoder.")


def _read() -> Read:
    """Four texts of 5, 3, 1 and 0 tokens; terms occur twice in a text."""
    g = torch.Generator().manual_seed(0)
    mask = torch.arange(_TOKENS) < torch.tensor([5, 3, 1, 0])[:, None]
    ids = torch.randint(0, _WIDTH, (_TEXTS, _TOKENS), generator=g)
    ids[0, 1] = ids[0, 0]
    hidden, logits = (torch.randn(_TEXTS, _TOKENS, n, generator=g, dtype=torch.float64) for n in (_HIDDEN, _WIDTH))
    return Read(ids, mask, _WIDTH, hidden, 3 * logits)


def _noisy(read: Read) -> Read:
    """The same texts with other padding."""
    assert read.hidden is not None and read.logits is not None
    out = ~read.mask.unsqueeze(2)
    ids = torch.where(read.mask, read.ids, (read.ids + 1) % _WIDTH)
    return replace(read, ids=ids, hidden=read.hidden + 9.0 * out, logits=read.logits + 9.0 * out)


def _rows(read: Read, at: Tensor) -> Read:
    assert read.hidden is not None and read.logits is not None
    return Read(read.ids[at], read.mask[at], read.width, read.hidden[at], read.logits[at])


def _texts_apart(weigh: Callable[[Read], Tensor], name: str) -> Tensor:
    """Shape, padding, other texts; the weights."""
    read = _read()
    w = weigh(read)
    require(w.shape == (_TEXTS, _WIDTH), f"{name} gives {tuple(w.shape)}, not (texts, width).")
    require(bool(w.isfinite().all()), f"{name} gives NaN or infinity.")
    require(not bool(w[3].any()), f"{name} gives weights to a text without tokens.")
    require(torch.allclose(weigh(_noisy(read)), w), f"{name} depends on padding.")
    for text in torch.arange(_TEXTS).split(1):
        require(torch.allclose(weigh(_rows(read, text)), w[text]), f"{name} depends on other texts of the batch.")
    return w


def _differentiates(f: Callable[[Tensor], Tensor], x: Tensor, name: str) -> None:
    """Along one direction, in float64, beside the central difference."""
    g = torch.Generator().manual_seed(1)
    at = x.detach().clone().requires_grad_()
    value = f(at)
    if not value.requires_grad:
        return
    weights = torch.randn(value.shape, generator=g, dtype=x.dtype)
    (grad,) = torch.autograd.grad((value * weights).sum(), at, allow_unused=True)
    way, step = torch.randn(x.shape, generator=g, dtype=x.dtype), 1e-7
    up, down = ((f(x + s * way) * weights).sum() for s in (step, -step))
    numeric, exact = float((up - down).detach()) / (2 * step), 0.0 if grad is None else float((grad * way).sum())
    require(abs(numeric - exact) <= 1e-5 * max(1.0, abs(numeric)), f"{name} has the gradient {exact}, not {numeric}.")


def _pooling(subject: TermPooling, name: str) -> None:
    require(
        type(subject.copies) is int and subject.copies >= 1,
        f"{name} reads a text {subject.copies!r} times: an integer of at least 1.",
    )
    read = _read()
    assert read.logits is not None

    def pooled(read: Read) -> Tensor:
        assert read.logits is not None
        return subject(read.logits, read.mask, Log1p())

    w = _texts_apart(pooled, name)
    more = replace(read, logits=read.logits + 0.5)
    require(bool((pooled(more) >= w).all()), f"{name} falls where every score rises.")
    require(bool((pooled(more)[:3] > w[:3]).any()), f"{name} does not depend on the scores.")
    alone = Log1p()(read.logits[2, 0])
    require(torch.allclose(w[2], alone), f"{name} of one token is not the saturation of its scores.")
    _differentiates(lambda x: subject(x, read.mask, Log1p()), read.logits, name)


def _saturation(subject: Saturation, name: str) -> None:
    h = torch.linspace(-40, 40, 801, dtype=torch.float64)
    y = subject(h)
    require(y.shape == h.shape and y.dtype == h.dtype, f"{name} changes shape or type.")
    require(bool(y.isfinite().all()), f"{name} gives NaN or infinity.")
    require(bool((y.diff() >= -1e-12).all()) and float(y[-1]) > float(y[400]), f"{name} does not rise.")
    require(float(subject(torch.zeros((), dtype=h.dtype))) == 0, f"{name} is not 0 at 0: nothing would be sparse.")
    order = torch.randperm(len(h), generator=torch.Generator().manual_seed(0))
    require(torch.equal(subject(h[order].view(3, -1)).flatten(), y[order]), f"{name} is not elementwise.")
    _differentiates(subject, torch.tensor([-7.3, -2.1, -0.4, 0.3, 1.7, 6.2], dtype=torch.float64), name)


def _norm(subject: TermNorm, name: str) -> None:
    w = torch.randn(_TEXTS, _WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64).relu()
    w[3] = 0
    y = subject(w)
    require(y.shape == w.shape and y.dtype == w.dtype, f"{name} changes shape or type.")
    require(torch.equal(y != 0, w != 0), f"{name} changes which terms have weights.")
    require(
        torch.equal(y.argsort(dim=1, stable=True), w.argsort(dim=1, stable=True)), f"{name} changes the order of terms."
    )
    for text in torch.arange(3).split(1):
        require(torch.allclose(subject(w[text]), y[text]), f"{name} depends on other texts of the batch.")
    require(torch.allclose(subject(-w), -y), f"{name} is another one for codes with a sign.")
    _differentiates(subject, w[:3], name)
    at = w.clone().requires_grad_()
    subject(at).sum().backward()
    require(at.grad is not None and bool(at.grad.isfinite().all()), f"{name} has no gradient at a text of zeros.")


def _importance(subject: TermImportance, name: str) -> None:
    idf = torch.linspace(0.2, 3, _WIDTH, dtype=torch.float64)
    built = _built(subject, name, idf)
    if built is None:
        return

    def weigh(read: Read, module: nn.Module = built, scale: float = 1.0) -> Tensor:
        assert read.hidden is not None
        first = scale * read.hidden.new_ones(len(read.ids), read.width) * read.mask.any(1, keepdim=True)
        return module(first, read.ids, read.mask, read.hidden if subject.needs_hidden else None)

    w = _texts_apart(weigh, name)
    require(bool((w >= 0).all()), f"{name} makes negative weights of weights that are not.")
    require(bool((weigh(_read(), scale=2.0) >= w).all()), f"{name} falls where every weight rises.")
    again = _built(subject, name, idf.flip(0))
    assert again is not None
    again.load_state_dict(built.state_dict())
    require(torch.equal(weigh(_read(), again), w), f"{name} is not in its state.")


def _built(subject: TermImportance, name: str, idf: Tensor) -> nn.Module | None:
    """Its module in float64, with parameters as if trained; what needs the table says so."""
    torch_state = torch.random.get_rng_state()
    built = subject.build(_WIDTH, _HIDDEN, idf)
    torch.random.set_rng_state(torch_state)
    if subject.needs_idf:
        try:
            subject.build(_WIDTH, _HIDDEN, None)
        except BudgetError:
            pass
        else:
            require(False, f"{name} needs idf, and is built without.")
    return None if built is None else _shaken(built)


def _shaken(module: nn.Module) -> nn.Module:
    g = torch.Generator().manual_seed(2)
    module = module.double()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return module


def _head(subject: TermHead, name: str) -> None:
    own = subject.build(_HIDDEN)
    own = None if own is None else _shaken(own)
    for pooling in (MaxPooling(), SumPooling()):

        def weigh(read: Read, pooling: Any = pooling) -> Tensor:
            seen = read if subject.reads else replace(read, hidden=None, logits=None)
            return subject(seen, pooling, Log1p(), own)

        w = _texts_apart(weigh, name)
        require(bool((w >= 0).all()), f"{name} gives negative weights with a saturation that has none.")
        require(bool(w.any()), f"{name} gives no weights at all.")
    read = _read()
    for field in ("hidden", "logits") if subject.reads else ():
        x = getattr(read, field)
        _differentiates(lambda t, f=field: weigh(replace(read, **{f: t})), x, name)


_SUITES: tuple[tuple[str, type, Callable[[Any, str], None]], ...] = (
    ("term_head", TermHead, _head),
    ("term_pooling", TermPooling, _pooling),
    ("saturation", Saturation, _saturation),
    ("term_norm", TermNorm, _norm),
    ("term_importance", TermImportance, _importance),
)
