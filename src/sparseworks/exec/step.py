"""One token through one decoder layer, on addresses: its products and what lies between them, in one piece of memory.

At one token a product of a small or very sparse matrix takes as long as a few operations of torch, whose code and data the weights
have just driven out of the caches. Here no tensor is made between the layer's input and its output.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.exec.between import ACTIVATIONS, NUMBERS, untouched
from sparseworks.exec.modules import SparseLinear
from sparseworks.exec.native import native

if TYPE_CHECKING:
    from sparseworks.exec.attention import KeyValueCache

_ALIGNED = 16  # floats of a cache line


class Step:
    """A layer's modules, and where the results of each lie, for `batch` sequences.

    Attributes:
        batch, heads, kv_heads, d: sizes.
        index: the layer's number, by which it finds its keys and values in a cache.
    """

    def __init__(self, layer: Any, batch: int):
        attention, mlp = layer.self_attn, layer.mlp
        self.batch, self.d, self.index, self.scale = batch, attention.head_dim, attention.layer_idx, attention.scaling
        self.linears: list[Any] = [
            attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj,
        ]  # fmt: skip
        query, key, _, _, gate, _, down = (m.out_features for m in self.linears)
        self.heads, self.kv_heads = query // self.d, key // self.d
        self.norms = [layer.input_layernorm, layer.post_attention_layernorm]
        self.head_norms = [attention.q_norm, attention.k_norm] if hasattr(attention, "q_norm") else []
        self.activation = NUMBERS[ACTIVATIONS[type(mlp.act_fn).__name__]]
        self.links = [(m._modules, name, child) for m in layer.modules() for name, child in m._modules.items()]
        self.runs = [_addressed(m, batch) for m in self.linears]
        #  norm, q, k, v, attended, gate, up, what is added to the residual
        self.sizes = [batch * n for n in (down, query, key, key, query, gate, gate, down)]
        self.offsets = [0, *accumulate(n + -n % _ALIGNED for n in self.sizes)]

    def valid(self) -> bool:
        """Whether the modules are still those, unhooked, and their norms plain."""
        return all(untouched(*link) for link in self.links) and all(
            _vector(norm.weight, n)
            for norms, n in ((self.norms, self.sizes[0] // self.batch), (self.head_norms, self.d))
            for norm in norms
        )

    def run(
        self,
        x: Float[Tensor, "batch 1 features"],
        store: KeyValueCache,
        angles: tuple[Float[Tensor, "#batch 1 d"], Float[Tensor, "#batch 1 d"]],
        mask: Float[Tensor, "batch tokens+1"] | None,
    ) -> Float[Tensor, "batch 1 features"]:
        """The layer's output; the token's key and value are then in `store`."""
        module, threads = cast("Any", native()), torch.get_num_threads()
        x = x.contiguous()
        y, memory = torch.empty_like(x), x.new_empty(self.offsets[-1])
        base, first, last = memory.data_ptr(), x.data_ptr(), y.data_ptr()
        h, q, k, v, a, g, u, o = (base + 4 * n for n in self.offsets[:-1])
        before, behind = self.norms
        rows = self.batch, self.sizes[0] // self.batch

        module.rms_norm(first, 0, before.weight.data_ptr(), 0, h, *rows, before.variance_epsilon, threads)
        for i, place in enumerate((1, 2, 3)):
            self._multiply(i, 0, place, memory, base)
        for norm, to, heads in zip(self.head_norms, (q, k), (self.heads, self.kv_heads), strict=False):
            sizes = self.batch * heads, self.d
            module.rms_norm(to, 0, norm.weight.data_ptr(), 0, to, *sizes, norm.variance_epsilon, threads)
        cos, sin = angles
        read = q, k, v, cos.data_ptr(), sin.data_ptr(), 0 if mask is None else mask.data_ptr()
        store.attend_at(read, a, self.heads, len(cos), self.scale)
        self._multiply(3, 4, 7, memory, base)

        module.rms_norm(first, o, behind.weight.data_ptr(), last, h, *rows, behind.variance_epsilon, threads)
        self._multiply(4, 0, 5, memory, base)
        self._multiply(5, 0, 6, memory, base)
        module.gated(g, u, g, self.sizes[5], self.activation, threads)
        self._multiply(6, 5, 7, memory, base)
        module.add(o, last, self.sizes[7])
        return y

    def _multiply(self, which: int, source: int, target: int, memory: Tensor, base: int) -> None:
        """A product from one place of `memory` to another."""
        run = self.runs[which]
        if run is not None and run(base + 4 * self.offsets[source], base + 4 * self.offsets[target]):
            return
        linear = self.linears[which]
        self._at(target, memory).copy_(linear(self._at(source, memory)))
        self.runs[which] = _addressed(linear, self.batch)

    def _at(self, place: int, memory: Tensor) -> Tensor:
        start, size = self.offsets[place], self.sizes[place]
        return memory[start : start + size].view(self.batch, 1, -1)


class Steps(dict[int, Step]):
    """Number of sequences -> step. Copies and pickles are empty: addresses are those of one layer in one process."""

    def __reduce__(self) -> tuple[type[Steps], tuple[()]]:
        return Steps, ()


def _addressed(linear: nn.Module, batch: int) -> Any:
    if type(linear) is not SparseLinear or "forward" in linear.__dict__:
        return None
    return linear.at_addresses(torch.Size((batch, 1, linear.in_features)))


def _vector(t: Tensor, size: int) -> bool:
    return t.dtype is torch.float32 and t.is_cpu and t.shape == (size,) and t.is_contiguous()
