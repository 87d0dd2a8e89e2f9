"""Masked layers as kernels run them: the weights of dropped inputs are not read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sparseworks.core.support import Support
from sparseworks.exec import measure
from sparseworks.exec.masked import MaskedLinear, passed
from sparseworks.exec.race import copies_of, turns
from sparseworks.exec.skipping import SkippingLinear

MARGIN = 1.03
"""How many times faster than dense a layer must be in three of four rounds to take its place, as in `sparseworks.exec.plan`."""


class ExecutingLinear(nn.Module):
    """What a `MaskedLinear` computes, by `SkippingLinear`: up to eight rows read the weights of kept inputs only.

    Attributes:
        product: the weights, input-major; with a support those of pruned entries are not read either.
        rule, factor, left, right: see `MaskedLinear`.
    """

    factor: Tensor | None
    left: Tensor | None
    right: Tensor | None

    def __init__(self, masked: MaskedLinear, support: Support | None = None):
        super().__init__()
        self.rule = masked.rule
        held = masked.weight.dtype in (torch.float32, torch.bfloat16)
        self.product = SkippingLinear.from_linear(
            masked, support, dtype=masked.weight.dtype if held else torch.float32, threshold=self._fused(masked)
        )
        self._dtype = masked.weight.dtype
        for name in ("factor", "left", "right"):
            self.register_buffer(name, getattr(masked, name))
        self.train(masked.training)

    @staticmethod
    def _fused(masked: MaskedLinear) -> float:
        """The threshold that the kernel itself applies: the rule's own, or zero behind a rule that it does not know."""
        plain = masked.factor is None and masked.left is None
        return masked.rule.threshold if plain and masked.rule.threshold is not None else 0.0

    def masked(self) -> MaskedLinear:
        """The masked layer, its weights equal to those it was made of."""
        weight, _ = self.product.packed.unpack()
        linear = nn.Linear(weight.shape[1], weight.shape[0], False, device="meta")
        linear.weight = nn.Parameter(weight.to(self._dtype))
        bias = self.product.bias
        linear.bias = None if bias is None else nn.Parameter(bias.to(self._dtype))  # type: ignore[assignment]
        path = None if self.left is None or self.right is None else (self.left, self.right)
        return MaskedLinear.from_linear(linear, self.rule, factor=self.factor, path=path).train(self.training)

    def kept(self, x: Float[Tensor, "*lead in"]) -> Float[Tensor, "*lead in"]:
        """s(x)."""
        return self.rule(x, self.factor)

    def forward(self, x: Float[Tensor, "*lead in"]) -> Float[Tensor, "*lead out"]:
        """W s(x) + U V (x - s(x)) + b."""
        whole = self.rule.whole_tokens(x)
        if whole:
            return torch.cat([self._dense(x[..., :whole, :]), self._sparse(x[..., whole:, :])], dim=-2)
        return self._sparse(x)

    def _sparse(self, x: Tensor) -> Tensor:
        if self.rule.threshold is not None and self.product.threshold == self.rule.threshold:
            return self.product(x)
        kept = self.rule._kept(x, self.factor)
        y = self.product(kept)
        return y if self.left is None or self.right is None else y + passed(x - kept, self.left, self.right)

    def _dense(self, x: Tensor) -> Tensor:
        weight, _ = self.product.packed.unpack()
        bias = self.product.bias
        return F.linear(x, weight.to(x), None if bias is None else bias.to(x))


def speed(layer: MaskedLinear, density: float, support: Support | None = None, *, rounds: int = 15) -> float:
    """Time of the executing layer over that of the dense one for one token with cold weights; above 1 where the gain is in doubt.

    The token keeps the share `density` of its inputs. The slower quartile of the ratios of the rounds counts.
    """
    x = _token(layer, density)
    copies = copies_of(layer.weight.numel() * layer.weight.element_size(), 1)
    sparse = [ExecutingLinear(layer, support) for _ in range(copies)]
    weights = [layer.weight.detach().clone() for _ in range(copies)]
    bias = None if layer.bias is None else layer.bias.detach()
    dense = [lambda x, w=w: F.linear(x, w, bias) for w in weights]
    with torch.inference_mode():
        runs = {"dense": turns(dense, x), "sparse": turns(sparse, x)}
        found = measure.compare(runs, rounds=rounds, device=x.device.type)
    return 1.0 / found.ratio("dense", "sparse").low


def faster(ratio: float) -> bool:
    """Whether a layer of that `speed` may take the dense one's place."""
    return ratio < 1.0 / MARGIN


def _token(layer: MaskedLinear, density: float) -> Float[Tensor, "1 in"]:
    g = torch.Generator().manual_seed(0)
    n, device = layer.in_features, layer.weight.device
    size = torch.rand(n, generator=g).to(device) + 0.5
    if layer.rule.threshold is None:
        return size.to(layer.weight)[None]
    lifted = torch.zeros(n, device=device)
    level = layer.rule.threshold if 0 < layer.rule.threshold < float("inf") else 1.0
    kept = torch.randperm(n, generator=g)[: round(density * n)].to(device)
    lifted[kept] = level * (1 + size[kept])
    if layer.factor is not None:
        lifted = lifted / layer.factor.float().clamp(min=1e-12)
    return lifted.to(layer.weight)[None]


@contextmanager
def as_masked(model: nn.Module) -> Iterator[list[str]]:
    """Inside, masked layers stand in the place of executing ones, whose paths are given: what files store."""
    found = {path: m for path, m in model.named_modules() if isinstance(m, ExecutingLinear)}
    try:
        for path, layer in found.items():
            model.set_submodule(path, layer.masked())
        yield list(found)
    finally:
        for path, layer in found.items():
            model.set_submodule(path, layer)
