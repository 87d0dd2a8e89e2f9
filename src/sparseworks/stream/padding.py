"""Leave padding out of statistics: which vectors a module received belong to real tokens."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from sparseworks.stream.tree import map_tensors

_CROSS = ("encdec", "encoder_attn", "cross")
_READ_ENCODER = ("k", "v", "k_proj", "v_proj", "key", "value", "c_attn")


def token_masks(batch: Any) -> dict[str, Bool[Tensor, "batch tokens"]]:
    """The two-dimensional padding masks of a batch: `attention_mask` and `decoder_attention_mask`, True = a real token."""
    masks = {}
    for key in ("attention_mask", "decoder_attention_mask"):
        mask = batch[key] if hasattr(batch, "keys") and key in batch.keys() else None  # noqa: SIM118
        if isinstance(mask, Tensor) and mask.dim() == 2:
            masks[key] = mask.bool()
    return masks


def real_tokens(x: Tensor, mask: Tensor | None) -> Tensor:
    """Vectors of tokens that are not padding, where `x` still has the mask's shape (also flattened); otherwise `x`."""
    if mask is None or bool(mask.all()):
        return x
    if x.dim() >= 3 and x.shape[:2] == mask.shape:
        return x[mask.to(x.device)]
    if x.dim() == 2 and x.shape[0] == mask.numel() and mask.shape[1] > 1:
        return x[mask.reshape(-1).to(x.device)]
    return x


class Padding:
    """The padding masks of the batch that is running, and which of them speaks of a module's inputs."""

    def __init__(self, model: nn.Module):
        self._two_sided = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
        self._masks: dict[str, Tensor] = {}

    def begin(self, batch: Any, piece: slice | None = None) -> None:
        """From now on `batch` runs, or the rows `piece` of it."""
        self._masks = {k: m[piece] if piece else m for k, m in token_masks(batch).items()}

    def mask(self, name: str) -> Bool[Tensor, "batch tokens"] | None:
        """The mask of what the module `name` receives; a decoder without a mask of its own has none."""
        parts = name.lower().split(".")
        decodes = "decoder" in parts and (self._two_sided or "decoder_attention_mask" in self._masks)
        if decodes and parts[-1] in _READ_ENCODER and any(c in p for p in parts for c in _CROSS):
            decodes = False  # keys and values of cross attention are made from the encoder's tokens
        return self._masks.get("decoder_attention_mask" if decodes else "attention_mask")

    def around(self, name: str, module: nn.Module) -> list[Any]:
        """Hooks that run a module that works on flattened tokens (an expert stack) on the real ones only.

        Its outputs at padding become zero, which nothing that counts looks at.
        """
        ran: list[Tensor | None] = []

        def before(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            mask = self.mask(name)
            rows = None if mask is None or bool(mask.all()) else mask.reshape(-1)
            ran.append(rows)
            if rows is None:
                return args, kwargs
            return map_tensors((args, kwargs), lambda x: x[rows.to(x.device)] if _flat(x, rows) else x)

        def after(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
            rows = ran.pop()
            return output if rows is None else map_tensors(output, lambda x: _put_back(x, rows))

        return [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after, with_kwargs=True),
        ]


def _flat(x: Tensor, rows: Tensor) -> bool:
    return x.dim() >= 1 and x.shape[0] == rows.numel()


def _put_back(x: Tensor, rows: Tensor) -> Tensor:
    if x.dim() < 1 or x.shape[0] != int(rows.sum()):
        return x
    whole = torch.zeros(rows.numel(), *x.shape[1:], dtype=x.dtype, device=x.device)
    whole[rows.to(x.device)] = x
    return whole
