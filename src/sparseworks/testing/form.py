"""What every method that writes weights as factors must hold."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from sparseworks.core.errors import BudgetError, ModelError
from sparseworks.core.method import Method
from sparseworks.core.operator import LinearOperator, describe, rebuild
from sparseworks.core.stats import Gram
from sparseworks.testing.examples import gathered, random_weight, refused, require
from sparseworks.weights.factors.factorise import fitted
from sparseworks.weights.prune import prune

SHAPE = (64, 128)


def check_form(method: Method | str, *, shape: tuple[int, int] = SHAPE) -> None:
    """Fit and start of a method's form: the budget, a product equal to the dense form, exact state, purity, and refusals.

    Args:
        shape: (out, in) of the weight that is factorised.

    Raises:
        AssertionError: with a sentence that names the method and what broke.
    """
    method = Method.of(method)
    form, name = method.form, method.name
    assert form is not None, f"{name} has no form."
    words = method.budget.total({"weight": shape[0] * shape[1]})
    weight, stats = random_weight(*shape), gathered(method.needs | {Gram}, shape)
    made = []
    for dtype in (torch.float32, torch.float64):
        operator = _made(lambda dtype=dtype: fitted([weight.to(dtype)], stats, method, words)[0])
        if operator is not None:
            _check(operator, f"{name} (fit, {dtype})", shape, words if form.sized else None)
            require(operator.dense().dtype == dtype, f"{name}: a {dtype} weight becomes {operator.dense().dtype}.")
            again = fitted([weight.to(dtype)], stats, method, words)[0]
            require(torch.equal(again.dense(), operator.dense()), f"{name}: a second fit gives other values.")
            made.append(operator)
    require(torch.equal(weight, random_weight(*shape)), f"{name} changes the weight it was given.")
    started = _made(lambda: form.start(shape, method, words, torch.Generator().manual_seed(0)))
    if started is not None:
        _check(started, f"{name} (start)", shape, words if form.sized else None)
        require(all(p.requires_grad for p in started.parameters()), f"{name}: a factor of its start cannot be trained.")
    require(bool(made) or started is not None, f"{name} has neither a fit nor a start.")
    if form.sized and made:
        refused(lambda: fitted([weight], stats, method, 1), BudgetError, f"{name} is fitted within a single number.")
    refused(lambda: prune(torch.nn.Linear(8, 8), method, progress=False), ModelError, f"`prune` takes {name}.")


def _made(make) -> LinearOperator | None:
    """What `make` gives, or None where the form has no such way of coming about."""
    try:
        return make()
    except BudgetError as error:
        if "from scratch" in str(error) or "no start" in str(error):
            return None
        raise


def _check(operator: LinearOperator, what: str, shape: tuple[int, int], words: int | None) -> None:
    require((operator.out_features, operator.in_features) == shape, f"{what} has another shape.")
    dense = operator.dense().detach()
    require(
        tuple(dense.shape) == shape and bool(torch.isfinite(dense).all()), f"{what}: its dense form is no such matrix."
    )
    require(
        words is None or operator.stored.words() <= words, f"{what} stores {operator.stored.words()} words of {words}."
    )
    x = random_weight(5, shape[1], seed=1).to(dense.dtype)
    require(_close(operator(x), x @ dense.T), f"{what}: product and dense form differ.")
    require(_close(operator(x.view(5, 1, -1))[:, 0], x @ dense.T), f"{what}: a product with more axes differs.")
    numbers = sum(p.numel() for p in operator.parameters())
    require(numbers == operator.stored.numbers, f"{what} counts {operator.stored.numbers} numbers and has {numbers}.")
    require(operator.flops(5) == 10 * operator.macs > 0, f"{what}: its FLOPs are not 2 * rows * macs.")
    again = rebuild(describe(operator)).to(dense.dtype)
    again.load_state_dict(operator.state_dict())
    for other, how in ((again, "rebuilt from its description and state"), (copy.deepcopy(operator), "copied")):
        require(torch.equal(other(x), operator(x)), f"{what} gives other outputs when {how}.")
    operator(x).square().sum().backward()
    grads = [p.grad for p in operator.parameters() if p.requires_grad]
    require(all(g is not None for g in grads), f"{what}: a factor gets no gradient.")
    operator.zero_grad()


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).norm() <= 1e-4 * b.norm() + 1e-6)
