"""One layer with inputs as layers see them, and the shipped decoder on a few windows of text."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import sparseworks as sw


@pytest.fixture(scope="session")
def lm() -> Callable[..., float]:
    """`lm(method, density, skip=, **changes)`: perplexity on 1,024 held-out tokens, masked from the first token on; calibrated on as many."""
    from sparseworks.evaluate import Perplexity, documentation_passages, lm_batches, lm_windows
    from sparseworks.io import load_tokenizer

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tokenizer, dense = load_tokenizer("sparseworks/tiny-lm"), sw.load("sparseworks/tiny-lm")
    texts, held_out = ([p.whole for p in documentation_passages(held_out=h)[:60]] for h in (False, True))
    data = [{"input_ids": row[None]} for b in lm_batches(texts, tokenizer, 128, samples=8) for row in b["input_ids"]]
    task = Perplexity(lm_windows(held_out, tokenizer, 128, samples=8).flatten(), 128)
    torch.set_num_threads(threads)

    @cache
    def measure(name: str = "", density: float | None = None, skip: tuple[str, ...] = (), steps: float = 0.25) -> tuple:
        model = copy.deepcopy(dense)
        if not name:
            return task(model).value, 0.0
        method = {
            "wina_uniform": sw.method("teal_uniform", score="input_contribution"),
            "wina_turned": sw.method("wina_rotated", allocate="uniform"),
        }.get(name) or sw.method(name)
        method = method.with_(cut={method.cut.registered_name: {"prompt": 0.0}})
        if method.allocate.uses_block:
            method = method.with_(allocate={"block_greedy": {"step": steps, "tokens": 128}})
        done = sw.sparsify_activations(model, method, data, density=density, skip=skip)
        return task(model).value, done.sparsity

    measure.dense, measure.data, measure.task = dense, data, task
    return measure


@pytest.fixture
def one_layer() -> Callable[..., float]:
    """`one_layer(weight, x, method, density, **changes)`: ||y - W x|| / ||W x|| of a layer masked by the method, calibrated on x itself."""

    def error(weight: Tensor, x: Tensor, name: str, density: float, **changes) -> float:
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.weight.data = weight.clone()
        model = nn.Sequential(linear)
        method = sw.method(name).with_(allocate="uniform", **changes)
        sw.sparsify_activations(model, method, [x], density=density)
        with torch.no_grad():
            wanted = x @ weight.T
            return float((model(x) - wanted).norm() / wanted.norm())

    return error


def laplace(tokens: int, width: int, seed: int = 0) -> Tensor:
    """Inputs as they are inside blocks."""
    g = torch.Generator().manual_seed(seed)
    return torch.empty(tokens, width).exponential_(generator=g) * torch.randn(tokens, width, generator=g).sign()
