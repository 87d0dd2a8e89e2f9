"""Whole layers: an encoder layer whose six matrices are packed as `pairs` runs in one call of the compiled extension.

Between sparse products a transformer layer spends its time on attention, GELU, norms and on bringing activations from token-major
to the feature-major tiles that the kernels read and back. One call keeps them in tiles from the first product to the last. The
model keeps its modules and its names; only the `forward` of such a layer is replaced, and it goes back to the modules for every
call that the extension does not take.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sparseworks.exec.between import GatedForward, NormForward, join, untouched
from sparseworks.exec.decoder import SparseTransformerLayer, dense_layer, join_decoders
from sparseworks.exec.kernels.cpu import NativeKernel
from sparseworks.exec.modules import SparseLinear
from sparseworks.exec.native import native
from sparseworks.exec.ops import plain

KERNEL = "pairs-int16"
"""What all six matrices of a layer must run with."""

_FORMAT = "pairs"
_ACTIVATIONS = {
    "GELUActivation": 0, "GELU": 0, "NewGELUActivation": 1, "GELUTanh": 1, "PytorchGELUTanh": 1, "ReLU": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Anatomy:
    """Where a layer class keeps the parts of norm2(h + down act(up h)), h = norm1(x + out attention(query, key, value))."""

    attention: str
    query: str
    key: str
    value: str
    out: str
    norm1: str
    up: str
    activation: str
    down: str
    norm2: str
    heads: str

    @property
    def matrices(self) -> tuple[str, ...]:
        """The six linear layers in the order of the extension."""
        return self.query, self.key, self.value, self.out, self.up, self.down


BERT = Anatomy(
    attention="attention.self",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    out="attention.output.dense",
    norm1="attention.output.LayerNorm",
    up="intermediate.dense",
    activation="intermediate.intermediate_act_fn",
    down="output.dense",
    norm2="output.LayerNorm",
    heads="attention.self.num_attention_heads",
)
ANATOMIES: dict[str, Anatomy] = dict.fromkeys(
    ("BertLayer", "RobertaLayer", "XLMRobertaLayer", "CamembertLayer", "ElectraLayer"), BERT
)
"""Layer classes of transformers, by name."""


def fuse(model: nn.Module) -> nn.Module:
    """Let every layer that can run in one call do so; returns the model, whose modules and names stay as they are.

    `Plan.apply` and `sw.load` do this. A layer qualifies if its class is one of transformers (5 or later) in `ANATOMIES`, its six
    matrices are `SparseLinear` with a `pairs` form, its norms and activation are of a known kind, and nobody else has replaced its
    `forward`. Results equal the modules' within the rounding of the inputs to the levels of 16-bit fixed point.

    Hooks on modules inside a layer send it back to the modules for as long as they are there; transformers leaves such hooks in place
    once attentions were asked for (`output_attentions=True`).

    In decoders (LLaMA and its relatives) norms and gated activations become one pass each, see `exec.between`, and a layer runs one
    token with a cache in few calls, see `exec.decoder`.
    """
    for name, matrices in whole_layers(model).items():
        layer = model.get_submodule(name)
        free = isinstance(layer.__dict__.get("forward"), FusedForward | None)
        if free and all(_runs_pairs(layer.get_submodule(m)) for m in matrices):
            layer.forward = FusedForward(layer, ANATOMIES[type(layer).__name__])
    return join_decoders(join(model))


def whole_layers(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Layer -> the names of its six matrices within it, for every layer that runs in one call once these are packed as `pairs`."""
    if native() is None:
        return {}
    known = ((name, m, _anatomy(m)) for name, m in model.named_modules())
    return {name: anatomy.matrices for name, m, anatomy in known if anatomy is not None and _fits(m, anatomy)}


def _anatomy(module: nn.Module) -> Anatomy | None:
    return ANATOMIES.get(type(module).__name__) if _of_transformers(module) else None


def _of_transformers(module: Any) -> bool:
    return type(module).__module__.startswith("transformers.")


def unfuse(model: nn.Module) -> nn.Module:
    """Undo `fuse`."""
    for layer in model.modules():
        if isinstance(layer.__dict__.get("forward"), FusedForward | NormForward | GatedForward):
            del layer.forward
        if isinstance(layer, SparseTransformerLayer):
            dense_layer(layer)
    return model


class FusedForward:
    """What stands for `layer.forward`: one call of the extension, or the layer's own modules."""

    def __init__(self, layer: nn.Module, anatomy: Anatomy):
        self.layer = layer
        self.attention = _at(layer, anatomy.attention)
        self.heads = int(_at(layer, anatomy.heads))
        self.activation = _ACTIVATIONS[type(_at(layer, anatomy.activation)).__name__]
        self.matrices: list[SparseLinear] = [_at(layer, name) for name in anatomy.matrices]
        self.norms: list[nn.LayerNorm] = [_at(layer, anatomy.norm1), _at(layer, anatomy.norm2)]
        self.links = [(m._modules, name, child) for m in layer.modules() for name, child in m._modules.items()]

    def __call__(self, hidden_states: Tensor, attention_mask: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the layer's own `forward`; whatever else is passed and set goes to the modules."""
        asked = [value for value in (*args, *kwargs.values()) if value is not None and value is not False]
        if not asked and self._takes(hidden_states, attention_mask):
            y = self._run(hidden_states, attention_mask)
            if y is not None:
                return y
        return type(self.layer).forward(self.layer, hidden_states, attention_mask, *args, **kwargs)

    def _takes(self, x: Tensor, mask: Tensor | None) -> bool:
        """Plain float32 inference on the CPU, with the modules inside that were fused, as they were, neither hooked nor patched."""
        return (
            plain(x, None)
            and x.dtype is torch.float32
            and x.is_cpu
            and x.dim() == 3
            and x.numel() > 0
            and (mask is None or (type(mask) is Tensor and mask.is_cpu))
            and not (torch.is_grad_enabled() and self._learns(mask))
            and not self.layer.training
            and not getattr(self.attention, "is_causal", False)
            and getattr(self.attention.config, "_attn_implementation", None) in ("sdpa", "eager")
            and all(untouched(children, name, child) for children, name, child in self.links)
            and all(_plain_norm(norm, x.shape[2]) for norm in self.norms)
        )

    def _learns(self, mask: Tensor | None) -> bool:
        return (mask is not None and mask.requires_grad) or any(p.requires_grad for p in self.layer.parameters())

    def _run(
        self, x: Float[Tensor, "batch tokens features"], mask: Tensor | None
    ) -> Float[Tensor, "batch tokens features"] | None:
        batch, tokens, _ = x.shape
        numbers = [self._numbers(matrix, batch * tokens) for matrix in self.matrices]
        keys = None if mask is None else _key_mask(mask, batch, tokens)
        module = native()
        if module is None:  # copied here from a machine with the extension
            return None
        if any(n is None for n in numbers) or (keys is None) != (mask is None):
            return None
        x = x.contiguous()
        y = torch.empty_like(x)
        first, second = self.norms
        module.encoder(
            x.data_ptr(), y.data_ptr(), 0 if keys is None else keys.data_ptr(),
            batch, tokens, torch.get_num_threads(),
            self.heads, self.attention.scaling,
            [n for row in numbers for n in row or ()],
            [t.data_ptr() for norm in self.norms for t in (norm.weight, norm.bias)],
            first.eps, second.eps, self.activation,
        )  # fmt: skip
        return y

    @staticmethod
    def _numbers(matrix: SparseLinear, rows: int) -> Sequence[int] | None:
        """Sizes and addresses of a matrix if its ladder runs `pairs` at so many rows."""
        kernel, packed = matrix.reading(rows)
        bias = matrix.bias
        if packed.format != _FORMAT or not isinstance(kernel, NativeKernel):
            return None
        if bias is not None and not _plain_vector(bias, matrix.out_features):
            return None
        return *kernel.arguments(packed), 0 if bias is None else bias.data_ptr()


def _key_mask(
    mask: Bool[Tensor, "#batch #heads #queries keys"] | Float[Tensor, "#batch #heads #queries keys"],
    batch: int,
    tokens: int,
) -> Float[Tensor, "batch keys"] | None:
    """What to add to the scores of each key, or None if the mask is not one for keys alone."""
    if (
        mask.dim() != 4
        or mask.shape[1] != 1
        or mask.shape[3] != tokens
        or mask.dtype not in (torch.bool, torch.float32)
    ):
        return None
    row = mask[:, 0, :1]
    if mask.shape[2] > 1 and mask.stride(2) != 0 and not torch.equal(mask[:, 0], row.expand_as(mask[:, 0])):
        return None
    keys = row[:, 0]
    if keys.dtype is torch.bool:
        keys = torch.zeros(keys.shape, dtype=torch.float32, device="cpu").masked_fill_(~keys, float("-inf"))
    return keys.expand(batch, tokens).contiguous()


def _runs_pairs(matrix: nn.Module) -> bool:
    return isinstance(matrix, SparseLinear) and any(form.format == _FORMAT for form in matrix.forms)


def _fits(layer: nn.Module, anatomy: Anatomy) -> bool:
    try:
        matrices = [_at(layer, name) for name in anatomy.matrices]
        norms = [_at(layer, anatomy.norm1), _at(layer, anatomy.norm2)]
        activation, heads = _at(layer, anatomy.activation), int(_at(layer, anatomy.heads))
    except AttributeError:
        return False
    if not all(isinstance(m, SparseLinear | nn.Linear) for m in matrices):
        return False
    query, key, value, out, up, down = matrices
    width = query.in_features
    fits = (
        query.out_features == key.out_features == value.out_features == out.in_features
        and query.out_features % heads == 0
        and all(m.in_features == width for m in (key, value, up))
        and all(m.out_features == width for m in (out, down))
        and up.out_features == down.in_features
    )
    return fits and all(_plain_norm(n, width) for n in norms) and _known(activation) and _returns_tensor(layer)


def _plain_norm(norm: Any, width: int) -> bool:
    return (
        type(norm) is nn.LayerNorm
        and norm.normalized_shape == (width,)
        and norm.bias is not None
        and all(_plain_vector(t, width) for t in (norm.weight, norm.bias))
    )


def _plain_vector(t: Tensor, size: int) -> bool:
    return t.dtype is torch.float32 and t.is_cpu and t.shape == (size,) and t.is_contiguous()


def _known(activation: Any) -> bool:
    from_torch = type(activation).__module__.startswith("torch.nn.")
    exact = type(activation) is not nn.GELU or activation.approximate == "none"
    return type(activation).__name__ in _ACTIVATIONS and (from_torch or _of_transformers(activation)) and exact


def _returns_tensor(layer: nn.Module) -> bool:
    """Layers of transformers before version 5 return a tuple, and are left alone."""
    import transformers

    return int(transformers.__version__.split(".")[0]) >= 5 and not getattr(layer, "is_decoder", False)


def _at(module: nn.Module, path: str) -> Any:
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name)
    return found
