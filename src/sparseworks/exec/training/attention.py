"""TrainableSparseAttention: self-attention between two trainable sparse layers, as one module."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.core.errors import ShapeError
from sparseworks.exec.attention.blocks import attend
from sparseworks.exec.attention.packed import attend_packed, attend_packed_backward
from sparseworks.exec.native import native
from sparseworks.exec.training import onepass
from sparseworks.exec.training.index import SparseIndex
from sparseworks.exec.training.linear import TrainableSparseLinear
from sparseworks.exec.training.onepass import Kept, Norm, norm_of, runs_in_one_pass, suits


class TrainableSparseAttention(nn.Module):
    """y = out(attention(q, k, v)) with q, k, v = qkv(x), both layers trainable sparse ones, which stay modules of their own.

    Outputs of `qkv` are ordered (q k v, heads, features of a head), and every query sees every key, or with `causal` those up to
    its own. With a norm and a residual it is the first half of a pre-norm transformer block, y = x + out(attention(qkv(norm(x)))).
    float32 on the CPU runs in compiled passes between which nothing is moved or added; everything else, parts with hooks, and
    inputs that are too small to keep all threads busy so, run one after the other.

    Attributes:
        qkv, out: the layers.
        heads: of the attention.
        norm: LayerNorm of the input, or None.
        residual: whether the input is added to the output.
        causal: whether queries see keys up to their own only.
    """

    def __init__(
        self,
        qkv: TrainableSparseLinear,
        out: TrainableSparseLinear,
        heads: int,
        *,
        norm: nn.LayerNorm | None = None,
        residual: bool = False,
        causal: bool = False,
    ):
        """The parts, which are taken over as they are.

        Raises:
            ShapeError: `qkv` has not three outputs for each input of `out`, heads do not divide them, a norm over other features,
                or a residual of another size than the output.
            ModelError: a norm without weight or bias.
        """
        super().__init__()
        if qkv.out_features != 3 * out.in_features or heads < 1 or out.in_features % heads:
            raise ShapeError(
                f"{qkv.out_features} outputs are not q, k and v of {heads} heads for {out.in_features} inputs of the last layer."
            )
        if residual and qkv.in_features != out.out_features:
            raise ShapeError(f"A residual of {qkv.in_features} features cannot be added to {out.out_features} outputs.")
        if norm is not None:
            norm_of(norm, qkv.in_features)
        self.norm, self.qkv, self.out = norm, qkv, out
        self.heads, self.residual, self.causal = heads, residual, causal

    def forward(self, x: Float[Tensor, "batch tokens in"]) -> Float[Tensor, "batch tokens out"]:
        """`out(attention(qkv(norm(x))))`, plus `x` if there is a residual.

        Raises:
            ShapeError: `x` is not (batch, tokens, features), or has another number of features.
        """
        if x.dim() != 3 or x.shape[2] != self.qkv.in_features:
            raise ShapeError(f"This attention takes (batch, tokens, {self.qkv.in_features}), got {tuple(x.shape)}.")
        if not self._in_one_pass(x):
            y = self.out(self._attention(self.qkv(x if self.norm is None else self.norm(x))))
            return x + y if self.residual else y
        norm = (None, None, 0.0) if self.norm is None else norm_of(self.norm, self.qkv.in_features)
        a, b = self.qkv, self.out
        a.index.ensure_safe()
        b.index.ensure_safe()
        facts = _Facts(a.index, b.index, self.heads, self.residual, self.causal)
        return _Attention.apply(x, a.values, a.bias, b.values, b.bias, *norm, facts, torch.is_grad_enabled())

    def _in_one_pass(self, x: Tensor) -> bool:
        if torch.compiler.is_compiling():
            return False
        module, tokens = native(), x.shape[0] * x.shape[1]
        if module is None or not tokens:
            return False
        if not all(suits(module, tokens, layer.index) for layer in (self.qkv, self.out)):
            return False
        return runs_in_one_pass(self, x, self.qkv.in_features)

    def _attention(self, qkv: Tensor) -> Tensor:
        n, tokens, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
        q, k, v = qkv.view(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y: Any = attend(q, k, v, causal=self.causal)
        return y.transpose(1, 2).reshape(n, tokens, width)

    def extra_repr(self) -> str:
        """Heads, and what else is done."""
        return f"heads={self.heads}, residual={self.residual}, causal={self.causal}"


class _Facts(NamedTuple):
    qkv: SparseIndex
    out: SparseIndex
    heads: int
    residual: bool
    causal: bool


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, qkv_values, qkv_bias, out_values, out_bias, norm_weight, norm_bias, eps, facts, recorded):  # type: ignore[override]
        module, norm, keep = native(), _norm(norm_weight, norm_bias, eps), recorded and any(ctx.needs_input_grad)
        assert module is not None
        n, tokens, width = x.shape
        flat, values = x.reshape(-1, width).contiguous(), [v.contiguous() for v in (qkv_values, out_values)]
        qkv, first = onepass.forward(module, flat, values[0], qkv_bias, facts.qkv, norm, keep=keep)
        qkv = qkv.view(n, tokens, 3, facts.heads, -1)
        seen, lse = attend_packed(qkv, causal=facts.causal)
        add = flat if facts.residual else None
        y, second = onepass.forward(
            module, seen.flatten(0, 1).flatten(1), values[1], out_bias, facts.out, add=add, keep=keep
        )
        ctx.save_for_backward(first.tiles, first.scale, second.tiles, qkv, seen, lse, *values, norm_weight, norm_bias)
        ctx.facts, ctx.eps, ctx.shape = facts, eps, x.shape
        return y.view(n, tokens, -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):  # type: ignore[override]
        tiles, scale, second, qkv, seen, lse, qkv_values, out_values, norm_weight, norm_bias = ctx.saved_tensors
        module, norm, facts = native(), _norm(norm_weight, norm_bias, ctx.eps), ctx.facts
        assert module is not None
        dy = dy.reshape(-1, facts.out.shape[0]).contiguous()
        dseen, of_out = onepass.backward(module, dy, Kept(second, lse.new_empty(0)), out_values, facts.out)
        dqkv = attend_packed_backward(dseen.view(seen.shape), qkv, seen, lse, causal=facts.causal)
        dqkv, add = dqkv.view(-1, facts.qkv.shape[0]), dy if facts.residual else None
        dx, of_qkv = onepass.backward(module, dqkv, Kept(tiles, scale), qkv_values, facts.qkv, norm, add)
        found = [dx.view(ctx.shape), *of_qkv[:2], *of_out, *(of_qkv[2:] or (None, None))]
        return *(g if need else None for g, need in zip(found, ctx.needs_input_grad[:7], strict=True)), None, None, None


def _norm(weight: Tensor | None, bias: Tensor | None, eps: float) -> Norm | None:
    return None if weight is None or bias is None else Norm(weight, bias, eps)
