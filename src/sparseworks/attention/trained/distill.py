"""The loss that brings a model with gates back to what it was without them."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def distillation(
    student: Float[Tensor, "*tokens vocabulary"], teacher: Float[Tensor, "*tokens vocabulary"]
) -> Float[Tensor, ""]:
    """Mean over tokens of KL(teacher || student), both given as logits; the teacher has no gradient."""
    log_p, log_q = teacher.detach().float().log_softmax(-1), student.float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()
