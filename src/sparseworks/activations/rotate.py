"""Rotated inputs: matrices of a decoder get orthogonal columns, and the model computes what it did."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.activations.score import ActivationScore, InputMagnitude
from sparseworks.activations.transform import TRANSFORMS, ModelTransform
from sparseworks.core.errors import ModelError
from sparseworks.exec.masked import MaskedLinear, Rotated
from sparseworks.stream import blocks

_SUBLAYERS = (
    ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.k_proj"),
    ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj"), "mlp.gate_proj"),
)
"""Norm, what reads it, and the matrix whose columns become orthogonal."""


@TRANSFORMS.register("rotate_inputs")
@dataclass(frozen=True)
class RotateInputs(ModelTransform):
    """n(x) -> Q^T n(x) and W -> W Q for all W that read it, Q the right singular vectors of W_k (attention) and W_gate (feed-forward).

    W_k Q = U S has orthogonal columns, so that the dropped scores |x_j| ||W_:j|| are the exact output error. Scales of norms are
    folded into the weights first. Keys and gates are scored by contribution, the others by |x_j|.

    Source: Chen et al., 2025, arXiv 2505.19427. Departure: there the residual stream itself is rotated and every sublayer
    turns it by Q_1^T Q_2; here the norm's output is turned by Q, the same product of width x width a sublayer, which no budget
    of weights counts.
    """

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> list[str]:
        """Rotate every block in place; a block that is rotated already is left as it is.

        Raises:
            ModelError: no decoder block of the LLaMA kind was found.
        """
        done = []
        for path, norm, readers, lead in _sublayers(model):
            if not isinstance(norm, Rotated):
                rotation = rotated(norm, readers, readers[lead])
                model.set_submodule(path, Rotated(norm, rotation))
            done.append(lead)
        if not done:
            raise ModelError(
                "Inputs can be rotated in decoders whose blocks have input_layernorm, self_attn, post_attention_layernorm "
                "and mlp as LLaMA's have; none was found."
            )
        return done

    def score(self, asked: ActivationScore, orthogonal: bool) -> ActivationScore:
        """The method's for matrices with orthogonal columns, |x_j| for the others."""
        return asked if orthogonal else InputMagnitude()


@torch.no_grad()
def rotated(norm: nn.Module, readers: dict[str, nn.Linear], lead: nn.Linear) -> Float[Tensor, "width width"]:
    """Fold the scale of `norm` into its readers, turn them in place by the right singular vectors of `lead`, and return these."""
    scale = _scale(norm)
    if scale is not None:
        for linear in readers.values():
            linear.weight.mul_(scale.to(linear.weight))
        norm.get_parameter("weight").fill_(1.0)
    turn = torch.linalg.svd(lead.weight.double(), full_matrices=True).Vh.T
    for linear in readers.values():
        linear.weight.copy_(linear.weight.double() @ turn)
    return turn.to(lead.weight.dtype)


def _scale(norm: nn.Module) -> Tensor | None:
    """The weight of a norm that multiplies by it and adds nothing, found by trying; None for others."""
    weight = getattr(norm, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.dim() != 1:
        return None
    held = weight.detach().clone()
    x = torch.randn(4, len(held), generator=torch.Generator().manual_seed(0)).to(held)
    before = norm(x)
    weight.fill_(1.0)
    alike = torch.allclose(norm(x) * held, before, rtol=1e-2 if held.dtype != torch.float32 else 1e-5, atol=1e-5)
    weight.copy_(held)
    return held if alike else None


def _sublayers(model: nn.Module) -> Iterator[tuple[str, nn.Module, dict[str, nn.Linear], str]]:
    for block in blocks(model):
        named = dict(block.module(model).named_modules())
        if "pre_feedforward_layernorm" in named or block.name == "":
            continue
        for norm, readers, lead in _SUBLAYERS:
            found = {f"{block.name}.{r}": named.get(r) for r in readers}
            if norm in named and all(type(m) in (nn.Linear, MaskedLinear) for m in found.values()):
                yield f"{block.name}.{norm}", named[norm], found, f"{block.name}.{lead}"  # type: ignore[misc]
