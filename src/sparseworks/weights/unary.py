"""Activation functions fitted to a sparse network: a search over operators, layer by layer, then trained scales."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sparseworks.core.errors import BudgetError, ModelError, UnknownNameError

Unary = Callable[[Tensor], Tensor]

OPERATORS: dict[str, Unary] = {
    "acon": lambda x: x * torch.sigmoid(x * 1.25),
    "elu": F.elu,
    "erf": torch.erf,
    "gelu": F.gelu,
    "hardtanh": F.hardtanh,
    "hardswish": F.hardswish,
    "leaky_relu": F.leaky_relu,
    "linear": lambda x: x,
    "logsigmoid": F.logsigmoid,
    "mish": F.mish,
    "relu": F.relu,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "srs": lambda x: x / (x / 2 + torch.exp(-x / 3)).clamp(min=0.1),
    "swish": F.silu,
    "symexp": lambda x: x.sign() * torch.expm1(x.abs().clamp(max=10.0)),
    "symlog": lambda x: x.sign() * torch.log1p(x.abs()),
    "tanh": torch.tanh,
    "tanhsoft": lambda x: torch.tanh(x * F.softplus(x)),
}
"""One-argument functions that a layer may have; soft roots and powers are cut where they overflow."""


class Activation(nn.Module):
    """alpha * f(beta * x), f one of `OPERATORS`; alpha and beta are trained if `scaled`.

    Raises:
        UnknownNameError: no such operator.
    """

    def __init__(self, name: str, *, scaled: bool = False):
        super().__init__()
        if name not in OPERATORS:
            raise UnknownNameError("activation", name, OPERATORS)
        self.name = name
        self.alpha = nn.Parameter(torch.ones(()), requires_grad=scaled)
        self.beta = nn.Parameter(torch.ones(()), requires_grad=scaled)

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """alpha f(beta x)."""
        return self.alpha * OPERATORS[self.name](self.beta * x)

    def extra_repr(self) -> str:
        """The operator."""
        return self.name


_KINDS = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.ELU, nn.Tanh, nn.LeakyReLU, nn.Hardswish, Activation)


def activations(model: nn.Module) -> list[str]:
    """Names of the activation modules, in the model's order."""
    return [name for name, m in model.named_modules() if isinstance(m, _KINDS)]


def set_activations(model: nn.Module, chosen: Mapping[str, str] | Sequence[str], *, scaled: bool = False) -> None:
    """Put `Activation`s in place of the model's activation modules (functions called in `forward` cannot be reached).

    Raises:
        ModelError: the model has no such modules, or another number of them.
        UnknownNameError: no such operator.
    """
    names = activations(model)
    pairs = dict(chosen) if isinstance(chosen, Mapping) else dict(zip(names, chosen, strict=False))
    if not names or not set(pairs) <= set(names) or (not isinstance(chosen, Mapping) and len(chosen) != len(names)):
        raise ModelError(f"The model has activation modules {names}; got {chosen}.")
    for name, operator in pairs.items():
        model.set_submodule(name, Activation(operator, scaled=scaled))


@dataclass(frozen=True)
class Searched:
    """The best operators, their score, and how many were tried."""

    chosen: tuple[str, ...]
    score: float
    tried: int


def search_activations(
    score: Callable[[tuple[str, ...]], float],
    layers: int,
    *,
    tries: int = 60,
    history: int = 5,
    operators: Sequence[str] = tuple(OPERATORS),
    start: str = "relu",
    seed: int = 0,
) -> Searched:
    """Late-acceptance hill climbing: change one layer's operator; accept what is no worse than now or than `history` steps ago.

    Source: Loni et al., 2023, arXiv 2305.10964 (SAFS, stage 1); Burke and Bykov, 2017, for
    the search.

    Args:
        score: quality of one operator per layer, higher is better: put them into a copy of the pruned model
            (`set_activations`), retrain it shortly with its support held, and evaluate it. Called once a choice.
        layers: how many activations there are.

    Raises:
        BudgetError: no layers, no tries, or fewer than two operators.
    """
    if layers < 1 or tries < 1 or history < 1 or len(operators) < 2:
        raise BudgetError(
            f"A search needs layers, tries, a history and two operators, got {layers}, {tries}, {history}."
        )
    draw, known = random.Random(seed), dict[tuple[str, ...], float]()

    def value(choice: tuple[str, ...]) -> float:
        if choice not in known:
            found = score(choice)
            known[choice] = found if math.isfinite(found) else -math.inf
        return known[choice]

    now = (start,) * layers
    best, late = now, deque([value(now)] * history, maxlen=history)
    for _ in range(tries - 1):
        at = draw.randrange(layers)
        other = draw.choice([o for o in operators if o != now[at]])
        candidate = (*now[:at], other, *now[at + 1 :])
        if value(candidate) >= min(value(now), late[0]):
            now = candidate
        late.append(value(now))
        if value(now) > value(best):
            best = now
    return Searched(best, value(best), len(known))
