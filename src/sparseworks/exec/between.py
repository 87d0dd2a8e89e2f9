"""Between sparse products of a decoder layer: the norm and the gated activation as one pass each.

With one token and sparse matrices, the small operations of a LLaMA block's norms and activation cost about as much as one of its
products (`benchmarks/kernels/decoder.py`). The model keeps its modules and names; only `forward` of a norm and of a gated MLP is replaced, and goes back to
torch wherever the extension does not apply.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.core.errors import DtypeError, ShapeError, UnknownNameError
from sparseworks.exec.modules import SparseLinear
from sparseworks.exec.native import native
from sparseworks.exec.ops import plain

NUMBERS = {"gelu": 0, "gelu_tanh": 1, "relu": 2, "silu": 3}
_TORCH = {
    "gelu": nn.functional.gelu,
    "gelu_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "relu": nn.functional.relu,
    "silu": nn.functional.silu,
}
ACTIVATIONS = {
    "SiLU": "silu", "SiLUActivation": "silu", "GELUActivation": "gelu", "GELUTanh": "gelu_tanh", "PytorchGELUTanh": "gelu_tanh",
    "ReLU": "relu",
}  # fmt: skip
_FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3", "Olmo2", "SmolLM3", "Granite")
GATED = tuple(f"{family}MLP" for family in (*_FAMILIES, "Gemma"))
"""Classes of transformers whose forward is down(act(gate(x)) * up(x)), by name."""
NORMS = tuple(f"{family}RMSNorm" for family in (*_FAMILIES, "Mixtral", "Phi3"))
"""Classes of transformers whose forward is weight * x / sqrt(mean(x^2) + eps), by name. Gemma's adds 1 to the weight."""


def rms_norm(
    x: Float[Tensor, "*lead features"], weight: Float[Tensor, " features"], eps: float = 1e-6
) -> Float[Tensor, "*lead features"]:
    """weight * x / sqrt(mean(x^2) + eps) over the last dimension (Zhang and Sennrich, 2019, arXiv 1910.07467).

    One pass of the extension for plain float32 inference on the CPU, torch otherwise.

    Raises:
        ShapeError: the weight does not fit.
    """
    _check_norm(x, weight)
    module = native()
    if module is None or not (_runs(x, weight) and x.numel()):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)
    x, weight = x.contiguous(), weight.contiguous()
    y = torch.empty_like(x)
    module.rms_norm(x.data_ptr(), 0, weight.data_ptr(), 0, y.data_ptr(), *_sizes(x), eps, torch.get_num_threads())
    return y


def add_rms_norm(
    x: Float[Tensor, "*lead features"],
    added: Float[Tensor, "*lead features"],
    weight: Float[Tensor, " features"],
    eps: float = 1e-6,
) -> tuple[Float[Tensor, "*lead features"], Float[Tensor, "*lead features"]]:
    """x + added, and the `rms_norm` of that: the residual sum and the norm behind it in one pass.

    Raises:
        ShapeError: the weight does not fit, or x and what is added differ in shape.
        DtypeError: the two differ in type or device.
    """
    _check_norm(x, weight)
    _check_alike("x", x, "what is added", added)
    module = native()
    if module is None or not (_runs(x, weight) and plain(added, None) and x.numel()):
        total = x + added
        return total, rms_norm(total, weight, eps)
    x, added, weight = x.contiguous(), added.contiguous(), weight.contiguous()
    total, y = torch.empty_like(x), torch.empty_like(x)
    read, written = (x.data_ptr(), added.data_ptr(), weight.data_ptr()), (total.data_ptr(), y.data_ptr())
    module.rms_norm(*read, *written, *_sizes(x), eps, torch.get_num_threads())
    return total, y


def _check_norm(x: Tensor, weight: Tensor) -> None:
    if weight.dim() != 1 or x.dim() == 0 or x.shape[-1] != len(weight):
        raise ShapeError(f"A norm of {tuple(weight.shape)} weights does not fit an input of shape {tuple(x.shape)}.")


def _check_alike(first: str, a: Tensor, second: str, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ShapeError(f"{first} of shape {tuple(a.shape)} does not fit {second} of shape {tuple(b.shape)}.")
    if a.dtype != b.dtype or a.device != b.device:
        raise DtypeError(f"{first} is {a.dtype} on {a.device}, {second} {b.dtype} on {b.device}; make them equal.")


def _sizes(x: Tensor) -> tuple[int, int]:
    return x.numel() // x.shape[-1], x.shape[-1]


def gated(
    gate: Float[Tensor, "*lead features"], up: Float[Tensor, "*lead features"], activation: str = "silu"
) -> Float[Tensor, "*lead features"]:
    """activation(gate) * up (Shazeer, 2020, arXiv 2002.05202).

    One pass of the extension for plain float32 inference on the CPU, torch otherwise.

    Args:
        activation: "silu", "gelu", "gelu_tanh" or "relu".

    Raises:
        ShapeError: the two differ in shape.
        DtypeError: the two differ in type or device.
        UnknownNameError: another activation.
    """
    if activation not in NUMBERS:
        raise UnknownNameError("activation", activation, NUMBERS)
    _check_alike("A gate", gate, "the values", up)
    module = native()
    if module is None or not _runs(gate, up):
        return _TORCH[activation](gate) * up
    gate, up = gate.contiguous(), up.contiguous()
    y = torch.empty_like(gate)
    module.gated(gate.data_ptr(), up.data_ptr(), y.data_ptr(), y.numel(), NUMBERS[activation], torch.get_num_threads())
    return y


def _runs(*operands: Tensor) -> bool:
    return plain(operands[0], operands[1]) and all(
        type(t) in (Tensor, nn.Parameter) and t.is_cpu and t.dtype is torch.float32 for t in operands
    )


class NormForward:
    """What stands for `norm.forward`: `rms_norm` with the module's weight."""

    def __init__(self, norm: nn.Module):
        self.norm: Any = norm

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """As the module's own `forward`."""
        weight = self.norm.weight
        if hidden_states.dtype is not torch.float32 or weight.dtype is not torch.float32:
            return type(self.norm).forward(self.norm, hidden_states)
        return rms_norm(hidden_states, weight, self.norm.variance_epsilon)


class GatedForward:
    """What stands for `mlp.forward`: its three products, with the activation and the gate in one pass between them."""

    def __init__(self, mlp: nn.Module):
        self.mlp: Any = mlp

    def __call__(self, x: Tensor) -> Tensor:
        """As the module's own `forward`; hooks on its matrices run, one on its activation sends it back to the modules."""
        mlp, activation = self.mlp, _activation(self.mlp.act_fn)
        if activation is None:
            return type(mlp).forward(mlp, x)
        return mlp.down_proj(gated(mlp.gate_proj(x), mlp.up_proj(x), activation))


def join(model: nn.Module) -> nn.Module:
    """Replace `forward` of the norms and gated MLPs of a model with sparse layers; `exec.fuse` does this.

    Gated MLPs need a `SparseLinear` among their matrices, norms one anywhere in the model. A `forward` that somebody else has
    replaced stays.
    """
    sparse = any(isinstance(m, SparseLinear) for m in model.modules())
    for module in list(model.modules()) if sparse else ():
        name = type(module).__name__
        if "forward" in module.__dict__ or not type(module).__module__.startswith("transformers."):
            continue
        if name in NORMS and hasattr(module, "variance_epsilon"):
            module.forward = NormForward(module)
        elif name in GATED and any(isinstance(m, SparseLinear) for m in module.children()):
            module.forward = GatedForward(module)
    return model


def untouched(children: dict[str, Any], name: str, child: nn.Module | None) -> bool:
    """Whether a module is still where it was, in evaluation, and neither hooked nor patched by anybody else."""
    if children.get(name) is not child:
        return False
    if child is None:
        return True
    own = child.__dict__.get("forward")
    return not (child.training or child._forward_hooks or child._forward_pre_hooks) and (
        own is None or isinstance(own, NormForward | GatedForward)
    )


def _activation(module: nn.Module) -> str | None:
    """Its name here, if it is one of torch or transformers that nobody has hooked or patched."""
    home, own = type(module).__module__, type(module).__name__
    if not home.startswith(("torch.nn.", "transformers.")) or module._forward_hooks or module._forward_pre_hooks:
        return None
    if "forward" in module.__dict__ or (type(module) is nn.GELU and module.approximate != "none"):
        return None
    return ACTIVATIONS.get(own)
