"""`sparseworks::decode`: sums of k dictionary rows, with gradients to the values, the dictionary and the bias."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.codes import Codes
from sparseworks.core.errors import DtypeError, KernelError, ShapeError
from sparseworks.exec.native import native

_LIBRARY = torch.library.Library("sparseworks", "FRAGMENT")
_LIBRARY.define("decode(Tensor values, Tensor indices, Tensor dictionary, Tensor? bias) -> Tensor")
_LIBRARY.define("decode_values(Tensor grad, Tensor indices, Tensor dictionary) -> Tensor")
_LIBRARY.define("decode_dictionary(Tensor grad, Tensor values, Tensor indices, int width) -> Tensor")


def decode(
    codes: Codes, dictionary: Float[Tensor, "width features"], bias: Float[Tensor, " features"] | None = None
) -> Float[Tensor, "rows features"]:
    """z D + b for sparse codes z: sum_j values[i, j] D[indices[i, j]] + b; differentiable in values, D (densely) and b.

    Raises:
        ShapeError: the dictionary or the bias does not fit the codes.
        DtypeError: operands of different types or devices.
        KernelError: indices were overwritten with some outside the dictionary.
    """
    if dictionary.dim() != 2 or len(dictionary) != codes.width:
        raise ShapeError(f"Codes of width {codes.width} need that many dictionary rows, got {tuple(dictionary.shape)}.")
    if bias is not None and bias.shape != dictionary.shape[1:]:
        raise ShapeError(f"The bias must have shape ({dictionary.shape[1]},), not {tuple(bias.shape)}.")
    for t in (dictionary,) if bias is None else (dictionary, bias):
        if t.dtype != codes.values.dtype or t.device != codes.values.device:
            raise DtypeError(f"Codes are {codes.values.dtype} on {codes.values.device}, not {t.dtype} on {t.device}.")
    if codes.is_whole:
        return codes.values @ dictionary if bias is None else torch.addmm(bias, codes.values, dictionary)
    return torch.ops.sparseworks.decode(codes.values, codes.indices, dictionary, bias)


def _decode(values: Tensor, indices: Tensor, dictionary: Tensor, bias: Tensor | None) -> Tensor:
    indices = _inside(indices, len(dictionary))
    if not _fast(values, dictionary):
        y = torch.einsum("rk,rkf->rf", values, dictionary[indices])
        return y if bias is None else y + bias
    values, dictionary = values.contiguous(), dictionary.contiguous()
    bias = None if bias is None else bias.contiguous()
    y = values.new_empty(len(values), dictionary.shape[1])
    native().codes_decode(  # pyright: ignore[reportOptionalMemberAccess]
        *_coded(indices, *dictionary.shape), values.data_ptr(), dictionary.data_ptr(),
        0 if bias is None else bias.data_ptr(), y.data_ptr(),
    )  # fmt: skip
    return y


def _decode_values(grad: Tensor, indices: Tensor, dictionary: Tensor) -> Tensor:
    indices = _inside(indices, len(dictionary))
    if not _fast(grad, dictionary):
        return torch.einsum("rf,rkf->rk", grad, dictionary[indices])
    grad, dictionary = grad.contiguous(), dictionary.contiguous()
    out = grad.new_empty(indices.shape)
    native().codes_grad_values(  # pyright: ignore[reportOptionalMemberAccess]
        *_coded(indices, *dictionary.shape), grad.data_ptr(), dictionary.data_ptr(), out.data_ptr()
    )
    return out


def _decode_dictionary(grad: Tensor, values: Tensor, indices: Tensor, width: int) -> Tensor:
    indices = _inside(indices, width)
    out = grad.new_zeros(width, grad.shape[1])
    if not _fast(grad, values):
        spread = values.unsqueeze(2) * grad.unsqueeze(1)
        return out.index_add(0, indices.flatten(), spread.flatten(0, 1))
    grad, values = grad.contiguous(), values.contiguous()
    native().codes_grad_dictionary(  # pyright: ignore[reportOptionalMemberAccess]
        *_coded(indices, width, grad.shape[1]), grad.data_ptr(), values.data_ptr(), out.data_ptr()
    )
    return out


def _coded(indices: Tensor, width: int, features: int) -> tuple[int, ...]:
    return indices.data_ptr(), *indices.shape, width, features, torch.get_num_threads()


def _fast(*operands: Tensor) -> bool:
    return native() is not None and all(t.is_cpu and t.dtype is torch.float32 for t in operands)


def _inside(indices: Tensor, width: int) -> Tensor:
    """Contiguous int64 indices, every one below `width`: tensors can be written to after codes were built (GPUs check that themselves)."""
    if indices.numel() and indices.is_cpu:
        low, high = indices.aminmax()
        if int(low) < 0 or int(high) >= width:
            raise KernelError(f"Codes are damaged: indices outside [0, {width}). Encode anew.")
    return indices.long().contiguous()


def _save(ctx, inputs, output):
    values, indices, dictionary, _ = inputs
    ctx.save_for_backward(values, indices, dictionary)


def _grad(ctx, grad):
    values, indices, dictionary = ctx.saved_tensors
    need = ctx.needs_input_grad
    return (
        torch.ops.sparseworks.decode_values(grad, indices, dictionary) if need[0] else None,
        None,
        torch.ops.sparseworks.decode_dictionary(grad, values, indices, len(dictionary)) if need[2] else None,
        grad.sum(0) if need[3] else None,
    )


_LIBRARY.impl("decode", _decode, "CompositeExplicitAutograd")
_LIBRARY.impl("decode_values", _decode_values, "CompositeExplicitAutograd")
_LIBRARY.impl("decode_dictionary", _decode_dictionary, "CompositeExplicitAutograd")
torch.library.register_fake("sparseworks::decode", lambda v, i, d, b: v.new_empty(v.shape[0], d.shape[1]), lib=_LIBRARY)
torch.library.register_fake("sparseworks::decode_values", lambda g, i, d: g.new_empty(i.shape), lib=_LIBRARY)
torch.library.register_fake(
    "sparseworks::decode_dictionary", lambda g, v, i, width: g.new_empty(width, g.shape[1]), lib=_LIBRARY
)
torch.library.register_autograd("sparseworks::decode", _grad, setup_context=_save, lib=_LIBRARY)
