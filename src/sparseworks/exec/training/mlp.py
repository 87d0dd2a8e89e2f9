"""TrainableSparseMLP: two trainable sparse layers and the activation between them in one pass over tiles of tokens.

The hidden layer is several times as wide as what goes in and out. Layer by layer it is written as a matrix, read by the
activation, written, read again; here it stays in the cache, and of the forward pass only what enters the activation is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sparseworks.core.errors import ModelError, ShapeError
from sparseworks.exec.native import native
from sparseworks.exec.training.cut import Cut
from sparseworks.exec.training.index import SparseIndex
from sparseworks.exec.training.linear import TrainableSparseLinear
from sparseworks.exec.training.products import LIBRARY, index_facts, read_index, tile_floats

_COMPILED = native() is not None
ACTIVATIONS = {"gelu": 0, "gelu_tanh": 1, "relu": 2, "silu": 3}
"""Activations with their number in the extension; GELU is the exact one."""

_TWO = "Tensor[] up, Tensor[] down, int[] sizes, int[] blocks, int activation"
LIBRARY.define(
    f"mlp(Tensor x, Tensor up_values, Tensor up_bias, Tensor down_values, Tensor down_bias, {_TWO}, bool keep)"
    " -> (Tensor, Tensor)"
)
LIBRARY.define(f"mlp_backward(Tensor dy, Tensor kept, Tensor up_values, Tensor down_values, {_TWO}) -> Tensor[]")


class TrainableSparseMLP(nn.Module):
    """y = down(activation(up(x))) with two trainable sparse layers, which stay modules of their own.

    float32 on the CPU runs in one compiled pass; everything else, and layers with hooks, run one after the other.

    Attributes:
        up, down: the layers; both need a bias.
        activation: "gelu", "gelu_tanh", "relu" or "silu".
    """

    def __init__(self, up: TrainableSparseLinear, activation: str, down: TrainableSparseLinear):
        """The two layers, which are taken over as they are.

        Raises:
            ShapeError: the outputs of `up` are not the inputs of `down`, or a layer has no bias.
            ModelError: an unknown activation.
        """
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ModelError(f"Activations of a sparse MLP are {', '.join(ACTIVATIONS)}; got {activation!r}.")
        if up.out_features != down.in_features:
            raise ShapeError(f"{up.out_features} hidden outputs do not fit {down.in_features} inputs.")
        if up.bias is None or down.bias is None:
            raise ShapeError("Both layers of a sparse MLP need a bias; a bias of zeros costs nothing.")
        self.up, self.down, self.activation = up, down, activation

    def forward(self, x: Float[Tensor, "*lead in"]) -> Float[Tensor, "*lead out"]:
        """`down(activation(up(x)))`.

        Raises:
            ShapeError: `x` has another number of features.
        """
        if not self._in_one_pass(x):
            return self.down(_activate(self.up(x), self.activation))
        a, b = self.up, self.down
        keep = torch.is_grad_enabled() and any(t.requires_grad for t in (x, a.values, b.values, a.bias, b.bias))  # type: ignore[union-attr]
        weights = (a.values, a.bias, b.values, b.bias)
        facts = _facts(a.index, b.index, ACTIVATIONS[self.activation])
        y, _ = torch.ops.sparseworks.mlp(x.reshape(-1, x.shape[-1]), *weights, *facts, keep)
        return y.reshape(*x.shape[:-1], b.out_features)

    def _in_one_pass(self, x: Tensor) -> bool:
        layers = (self.up, self.down)
        hooked = any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in layers)
        tensors = (x, *(p for m in layers for p in m.parameters()))
        plain = all(t.dtype is torch.float32 and t.is_cpu for t in tensors) and not torch.is_autocast_enabled("cpu")
        return plain and not hooked and x.shape[-1:] == (self.up.in_features,) and _COMPILED

    def extra_repr(self) -> str:
        """The activation."""
        return f"activation={self.activation}"


def _activate(x: Tensor, name: str) -> Tensor:
    if name == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    return {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}[name](x)


def _facts(up: SparseIndex, down: SparseIndex, activation: int):
    a, width_out_a, width_in_a, blocks_a = index_facts(up)
    b, out, _, blocks_b = index_facts(down)
    return a, b, [width_in_a, width_out_a, out], [*blocks_a, *blocks_b], activation


def _read(up: Sequence[Tensor], down: Sequence[Tensor], sizes: Sequence[int], blocks: Sequence[int]):
    width, wide, out = sizes
    pair = read_index(up, wide, width, blocks[:2]), read_index(down, out, wide, blocks[2:])
    for index in pair:
        index.ensure_safe()
    return pair


def _extension():
    module = native()
    if module is None:
        raise ModelError("The fused sparse MLP needs the compiled extension; call the module, which does without.")
    return module


def _mlp(x, up_values, up_bias, down_values, down_bias, up, down, sizes, blocks, activation, keep):
    module, (a, b) = _extension(), _read(up, down, sizes, blocks)
    x, weights = x.contiguous(), [t.contiguous() for t in (up_values, up_bias, down_values, down_bias)]
    if any(t.shape != (n,) for t, n in zip(weights, (a.count, sizes[1], b.count, sizes[2]), strict=True)):
        raise ShapeError("Values and biases do not fit the two layers.")
    y, kept = torch.empty(x.shape[0], sizes[2]), torch.empty(_kept(x.shape[0], sizes) if keep else 0)
    at = (x.data_ptr(), y.data_ptr(), kept.data_ptr() if keep else 0, x.shape[0], activation, torch.get_num_threads())
    module.mlp(*at, [*a.forward.addresses, *b.forward.addresses], [t.data_ptr() for t in weights])
    return y, kept


def _mlp_backward(dy, kept, up_values, down_values, up, down, sizes, blocks, activation):
    module, (a, b), threads = _extension(), _read(up, down, sizes, blocks), torch.get_num_threads()
    dy, dx = dy.contiguous(), torch.empty(dy.shape[0], sizes[0])
    parts = [a.count, sizes[1], b.count, sizes[2]]
    gradients = torch.zeros(threads, sum(parts))
    moved = [_in_order(module, v.contiguous(), i.order, threads) for v, i in ((up_values, a), (down_values, b))]
    cuts: tuple[Cut, ...] = (a.forward, b.forward, a.backward, b.backward)
    at = (dy.data_ptr(), kept.data_ptr(), dx.data_ptr(), gradients.data_ptr(), dy.shape[0], activation, threads)
    module.mlp_gradient(*at, [n for c in cuts for n in c.addresses], [v.data_ptr() for v in moved])
    total = gradients[0] if threads == 1 else gradients.sum(dim=0)
    return [dx, *(g.clone() for g in total.split(parts))]


def _in_order(module, values: Tensor, order: Tensor, threads: int) -> Tensor:
    moved = torch.empty_like(values)
    module.reorder(values.data_ptr(), order.data_ptr(), moved.data_ptr(), values.numel(), threads)
    return moved


def _kept(tokens: int, sizes: Sequence[int]) -> int:
    return tile_floats(tokens, sizes[0] + sizes[1])


def _fake_mlp(x, up_values, up_bias, down_values, down_bias, up, down, sizes, blocks, activation, keep):
    return x.new_empty(x.shape[0], sizes[2]), x.new_empty(_kept(x.shape[0], sizes) if keep else 0)


def _fake_backward(dy, kept, up_values, down_values, up, down, sizes, blocks, activation):
    dx = dy.new_empty(dy.shape[0], sizes[0])
    return [
        dx,
        torch.empty_like(up_values),
        dy.new_empty(sizes[1]),
        torch.empty_like(down_values),
        dy.new_empty(sizes[2]),
    ]


def _save(ctx, inputs, output):
    _, up_values, _, down_values, _, up, down, *ctx.statics, _ = inputs
    ctx.split = len(up)
    ctx.save_for_backward(output[1], up_values, down_values, *up, *down)


def _grad(ctx, dy, _):
    kept, up_values, down_values, *tensors = ctx.saved_tensors
    up, down = tensors[: ctx.split], tensors[ctx.split :]
    found = torch.ops.sparseworks.mlp_backward(dy, kept, up_values, down_values, up, down, *ctx.statics)
    needed = [g if need else None for g, need in zip(found, ctx.needs_input_grad[:5], strict=True)]
    return *needed, [None] * len(up), [None] * len(down), None, None, None, None


LIBRARY.impl("mlp", _mlp, "CompositeExplicitAutograd")
LIBRARY.impl("mlp_backward", _mlp_backward, "CompositeExplicitAutograd")
torch.library.register_fake("sparseworks::mlp", _fake_mlp, lib=LIBRARY)
torch.library.register_fake("sparseworks::mlp_backward", _fake_backward, lib=LIBRARY)
torch.library.register_autograd("sparseworks::mlp", _grad, setup_context=_save, lib=LIBRARY)
