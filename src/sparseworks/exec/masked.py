"""Layers that see only some of their inputs, as plain modules: what calibration makes, files store, and kernels take over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sparseworks.core.errors import KernelError
from sparseworks.core.normal import normal_threshold
from sparseworks.exec.skipping import kept_by_count


@dataclass(frozen=True)
class InputRule:
    """Which inputs of a token are kept: those whose score |x_j| f_j exceeds `threshold`, or the `keep` best of the token.

    Attributes:
        threshold: None = not used.
        keep: None = not used.
        exact: `keep` by sorting, otherwise by the statistical threshold, which keeps about as many.
        prompt: where many tokens come at once (batch x tokens x in), this first share of them is kept whole.

    Raises:
        KernelError: both or neither of threshold and keep, or one out of range.
    """

    threshold: float | None = None
    keep: int | None = None
    exact: bool = True
    prompt: float = 0.0

    def __post_init__(self):
        if (self.threshold is None) == (self.keep is None):
            raise KernelError("Name either a threshold or how many inputs to keep, not both and not neither.")
        if self.threshold is not None and not self.threshold >= 0:
            raise KernelError(f"A threshold of sizes is at least 0, got {self.threshold}.")
        if self.keep is not None and self.keep < 0:
            raise KernelError(f"At least 0 inputs can be kept, not {self.keep}.")
        if not 0 <= self.prompt <= 1:
            raise KernelError(f"The share of the prompt that stays whole lies in [0, 1], got {self.prompt}.")

    def __call__(
        self, x: Float[Tensor, "*lead in"], factor: Float[Tensor, " in"] | None = None
    ) -> Float[Tensor, "*lead in"]:
        """x where it is kept, else 0; a NaN is kept. `factor` is f, None = 1."""
        whole = self.whole_tokens(x)
        if not whole:
            return self._kept(x, factor)
        return torch.cat([x[..., :whole, :], self._kept(x[..., whole:, :], factor)], dim=-2)

    def whole_tokens(self, x: Float[Tensor, "*lead in"]) -> int:
        """How many of the first tokens of `x` are kept whole."""
        return ceil(self.prompt * x.shape[-2]) if x.dim() > 2 and x.shape[-2] > 1 else 0

    def _kept(self, x: Tensor, factor: Tensor | None) -> Tensor:
        size = x.abs() if factor is None else x.abs() * factor.to(x)
        if self.threshold is not None:
            return x.where(~(size <= self.threshold), 0.0)
        keep = min(self.keep or 0, x.shape[-1])
        rows, sizes = x.reshape(-1, x.shape[-1]), size.reshape(-1, x.shape[-1])
        if self.exact or keep in (0, x.shape[-1]):
            return kept_by_count(rows, keep, sizes).reshape(x.shape)
        return rows.where(~(sizes <= normal_threshold(sizes, keep)), 0.0).reshape(x.shape)


class MaskedLinear(nn.Linear):
    """y = W s(x) + U V (x - s(x)) + b, s the rule; x (*, in) -> y (*, out). Parameters and their names are those of `nn.Linear`.

    Everything is multiplied, so nothing is faster: `sparseworks.exec.executing` puts kernels in its place.

    Attributes:
        rule: which inputs are kept. May be changed between calls.
        factor: (in,), f of the rule; None = 1.
        left, right: U (out, rank) and V (rank, in), through which the other inputs pass; None = they are dropped.
    """

    factor: Tensor | None
    left: Tensor | None
    right: Tensor | None

    def __init__(self, in_features: int, out_features: int, bias: bool, rule: InputRule, **options: Any):
        super().__init__(in_features, out_features, bias, **options)
        self.rule = rule
        for name in ("factor", "left", "right"):
            self.register_buffer(name, None)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        rule: InputRule,
        *,
        factor: Float[Tensor, " in"] | None = None,
        path: tuple[Float[Tensor, "out rank"], Float[Tensor, "rank in"]] | None = None,
    ) -> MaskedLinear:
        """With the parameters of `linear`, the very same objects."""
        made = cls(linear.in_features, linear.out_features, False, rule, device="meta")
        made.weight, made.bias = linear.weight, linear.bias
        made.factor = None if factor is None else factor.detach().to(linear.weight)
        made.left, made.right = (None, None) if path is None else (p.detach().to(linear.weight) for p in path)
        return made.train(linear.training)

    def dense(self) -> nn.Linear:
        """The layer without the rule, with the same parameters."""
        made = nn.Linear(self.in_features, self.out_features, False, device="meta")
        made.weight, made.bias = self.weight, self.bias
        return made.train(self.training)

    def kept(self, x: Float[Tensor, "*lead in"]) -> Float[Tensor, "*lead in"]:
        """s(x)."""
        return self.rule(x, self.factor)

    def forward(self, x: Float[Tensor, "*lead in"]) -> Float[Tensor, "*lead out"]:
        """W s(x) + U V (x - s(x)) + b."""
        kept = self.kept(x)
        y = F.linear(kept, self.weight, self.bias)
        return y if self.left is None or self.right is None else y + passed(x - kept, self.left, self.right)

    def metadata(self) -> dict[str, Any]:
        """Plain data from which `from_metadata` builds the layer, values aside."""
        return {
            "in": self.in_features, "out": self.out_features, "bias": self.bias is not None, "rule": rule_data(self.rule),
            "factor": self.factor is not None, "rank": None if self.right is None else self.right.shape[0],
        }  # fmt: skip

    @classmethod
    def from_metadata(cls, meta: Mapping[str, Any]) -> MaskedLinear:
        """An empty layer (on the meta device), to be filled with a `state_dict`."""
        made = cls(meta["in"], meta["out"], meta["bias"], rule_from(meta["rule"]), device="meta")
        if meta["factor"]:
            made.factor = torch.empty(meta["in"], device="meta")
        if meta["rank"] is not None:
            made.left = torch.empty(meta["out"], meta["rank"], device="meta")
            made.right = torch.empty(meta["rank"], meta["in"], device="meta")
        return made

    def extra_repr(self) -> str:
        """Shown by `print`."""
        return f"{super().extra_repr()}, {self.rule}"


class MaskedOutput(nn.Module):
    """s(f(x)) for an activation function f without parameters, s the rule.

    Attributes:
        function: f.
        rule: which outputs are kept. May be changed between calls.
        relu: max(0, x) in the place of f(x).
    """

    def __init__(self, function: nn.Module, rule: InputRule, *, relu: bool = False):
        super().__init__()
        self.function, self.rule, self.relu = function, rule, relu

    def kept(self, x: Float[Tensor, "*lead n"]) -> Float[Tensor, "*lead n"]:
        """s(x)."""
        return self.rule(x)

    def forward(self, x: Float[Tensor, "*lead n"]) -> Float[Tensor, "*lead n"]:
        """s(f(x))."""
        return self.kept(F.relu(x) if self.relu else self.function(x))

    def metadata(self) -> dict[str, Any]:
        """Plain data, the function aside."""
        return {"rule": rule_data(self.rule), "relu": self.relu}

    def extra_repr(self) -> str:
        """Shown by `print`."""
        return f"{self.rule}, relu={self.relu}"


class Rotated(nn.Module):
    """Q^T n(x) for a normalisation n: what follows sees its inputs in other coordinates.

    Attributes:
        norm: n.
        rotation: Q, (width, width), orthogonal.
    """

    rotation: Tensor

    def __init__(self, norm: nn.Module, rotation: Float[Tensor, "width width"]):
        super().__init__()
        self.norm = norm
        self.register_buffer("rotation", rotation)

    def forward(self, x: Float[Tensor, "*lead width"]) -> Float[Tensor, "*lead width"]:
        """n(x) Q, the tokens being rows."""
        return self.norm(x) @ self.rotation


def passed(
    rest: Float[Tensor, "*lead in"], left: Float[Tensor, "out rank"], right: Float[Tensor, "rank in"]
) -> Float[Tensor, "*lead out"]:
    """U V rest."""
    return F.linear(F.linear(rest, right), left)


def rule_data(rule: InputRule) -> dict[str, Any]:
    """The rule as JSON, which knows no infinity."""
    data = asdict(rule)
    return {**data, "threshold": "inf"} if rule.threshold == float("inf") else data


def rule_from(data: Mapping[str, Any]) -> InputRule:
    """Inverse of `rule_data`."""
    threshold = data["threshold"]
    return InputRule(**{**data, "threshold": None if threshold is None else float(threshold)})
