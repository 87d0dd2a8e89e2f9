"""Keys and values in few bits: whole numbers with a scale and a zero point per token, several to a byte."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from sparseworks.core.errors import DtypeError
from sparseworks.exec.int4 import from_int4, to_int4

BITS = (2, 4, 8)


def encode(x: Float[Tensor, "*tokens d"], bits: int = 4) -> dict[str, Tensor]:
    """codes (*tokens, d bits / 8), scale (*tokens) in float16, zero (*tokens): asymmetric, scale = (max - min) / (2^bits - 1).

    The range of a token reaches to 0, as `exec.int4.to_int4` has it.

    Raises:
        DtypeError: bits other than 2, 4 and 8, or a head size that does not fill bytes.
    """
    _check(x.shape[-1], bits)
    code, scale, zero = to_int4(x.detach().flatten(0, -2), (1 << bits) - 1)
    lead = x.shape[:-1]
    return {"codes": packed(code, bits).view(*lead, -1), "scale": scale.view(lead), "zero": zero.view(lead)}


def decode(parts: dict[str, Tensor], bits: int = 4) -> Float[Tensor, "*tokens d"]:
    """scale (code - zero), float32."""
    lead = parts["scale"].shape
    code = unpacked(parts["codes"].flatten(0, -2), bits)
    return from_int4(code, parts["scale"].flatten(), parts["zero"].flatten()).view(*lead, -1)


def packed(code: UInt8[Tensor, "tokens d"], bits: int) -> UInt8[Tensor, "tokens bytes"]:
    """8 / bits codes a byte, the first in the lowest bits."""
    some = code.unflatten(-1, (-1, 8 // bits))
    out = some[..., 0].clone()
    for i in range(1, 8 // bits):
        out |= some[..., i] << (i * bits)
    return out


def unpacked(code: UInt8[Tensor, "tokens bytes"], bits: int) -> UInt8[Tensor, "tokens d"]:
    """Inverse of `packed`."""
    return torch.stack([(code >> (i * bits)) & ((1 << bits) - 1) for i in range(8 // bits)], -1).flatten(-2)


def _check(d: int, bits: int) -> None:
    if bits not in BITS or d * bits % 8:
        raise DtypeError(f"Codes have 2, 4 or 8 bits and fill whole bytes; got {bits} bits for heads of {d}.")
