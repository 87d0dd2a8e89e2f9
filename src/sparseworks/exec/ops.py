"""`sparseworks::linear`: the one op through which packed weights multiply, with fake, autograd, autocast and vmap rules.

y = x W^T + b for a packed W. Registered with `Library.define` / `impl`: the `custom_op` decorator costs several times more
per call. Packed weights are constants: gradients flow to `x` and `bias`, never to `parts`. Train the dense, masked weight and
pack afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import DtypeError, KernelError, ShapeError
from sparseworks.exec.ladder import ladder

_LIBRARY = torch.library.Library("sparseworks", "FRAGMENT")
_ARGS = "Tensor[] parts, str kernel, int out_features, int in_features"
_LIBRARY.define(f"linear(Tensor x, Tensor? bias, {_ARGS}) -> Tensor")
_LIBRARY.define(f"linear_backward(Tensor grad, {_ARGS}) -> Tensor")

_functorch_level: Callable[[], Any] = getattr(
    getattr(torch._C, "_functorch", None), "peek_interpreter_stack", lambda: None
)
_functorch_stack: Callable[[], Any] = getattr(
    getattr(torch._C, "_functorch", None), "get_interpreter_stack", lambda: None
)
_dispatch_modes: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)
_tracing: Callable[[], Any] = torch._C._get_tracing_state
_any_autocast: Callable[[], bool] = getattr(
    torch._C, "_is_any_autocast_enabled", lambda: any(map(torch.is_autocast_enabled, ("cpu", "cuda")))
)
TRANSFORMS = (_dispatch_modes, _functorch_level, _tracing, _any_autocast)
"""Functions whose results are all false where none of torch's transforms is at work."""


def _linear(
    x: Float[Tensor, "*lead in"],
    bias: Tensor | None,
    parts: Sequence[Tensor],
    kernel: str,
    out_features: int,
    in_features: int,
) -> Float[Tensor, "*lead out"]:
    if x.shape[-1] != in_features:
        raise ShapeError(f"This layer takes {in_features} features, got an input of shape {tuple(x.shape)}.")
    if not x.is_floating_point():  # the weights would be cut to whole numbers
        raise DtypeError(f"This layer takes floating point inputs, got {x.dtype}; convert them with `x.float()`.")
    return ladder(kernel)(x, bias, parts)


def _linear_backward(
    grad: Float[Tensor, "*lead out"], parts: Sequence[Tensor], kernel: str, out_features: int, in_features: int
) -> Float[Tensor, "*lead in"]:
    return ladder(kernel).input_gradient(grad, parts)


_LIBRARY.impl("linear", _linear, "CompositeExplicitAutograd")
_LIBRARY.impl("linear_backward", _linear_backward, "CompositeExplicitAutograd")

_linear_op = torch.ops.sparseworks.linear.default
_backward_op = torch.ops.sparseworks.linear_backward.default


def linear(
    x: Float[Tensor, "*lead in"],
    bias: Float[Tensor, " out"] | None,
    parts: Sequence[Tensor],
    kernel: str,
    out_features: int,
    in_features: int,
) -> Float[Tensor, "*lead out"]:
    """`x @ W.T + bias` with W packed in `parts`; `kernel` is a spec from `ladder.write_spec`.

    Plain eager inference calls the kernel directly, everything else (autograd, compile, export, autocast, vmap, dispatch
    modes) goes through the registered op: two passes through the dispatcher cost more than a small product.

    Under autocast the product is made in float32 on the CPU, in the autocast type on a GPU, and returned in the autocast type.

    Raises:
        ShapeError: `x` has another number of features.
        DtypeError: `x` holds whole or complex numbers.
        KernelError: the spec is not a ladder, or torch.func's grad or jvp is at work.
    """
    if plain(x, bias):
        return _linear(x, bias, parts, kernel, out_features, in_features)
    if not torch.compiler.is_compiling():
        _refuse_transforms()
    return _linear_op(x, bias, parts, kernel, out_features, in_features)


def plain(x: Tensor, bias: Tensor | None) -> bool:
    """Whether a call needs none of torch's transforms: no gradient, compile, trace, autocast, vmap or tensor subclass."""
    if torch.compiler.is_compiling() or type(x) is not Tensor:
        return False
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return False
    return _dispatch_modes() == 0 and _functorch_level() is None and _tracing() is None and not _any_autocast()


def _refuse_transforms() -> None:
    """Rules of `torch.library.register_autograd` are not seen by torch.func's grad, jvp and their relatives; vmap is."""
    for level in _functorch_stack() or ():
        if level.key().name in ("Grad", "Jvp"):
            raise KernelError(
                f"torch.func ({level.key().name}) cannot differentiate a packed layer; use torch.autograd, or the dense weight "
                "from `layer.dense_weight()`."
            )


def _fake_linear(x, bias, parts, kernel, out_features, in_features):
    torch._check(x.shape[-1] == in_features, lambda: f"This layer takes {in_features} features, got {x.shape}.")
    return x.new_empty(*x.shape[:-1], out_features)


def _fake_backward(grad, parts, kernel, out_features, in_features):
    return grad.new_empty(*grad.shape[:-1], in_features)


def _save(ctx, inputs, output):
    _, bias, parts, *ctx.statics = inputs
    ctx.has_bias = bias is not None
    ctx.bias_dtype = bias.dtype if bias is not None else None
    ctx.save_for_backward(*parts)


def _grad_linear(ctx, grad):
    parts = list(ctx.saved_tensors)
    dx = _backward_op(grad.contiguous(), parts, *ctx.statics) if ctx.needs_input_grad[0] else None
    dbias = None
    if ctx.has_bias and ctx.needs_input_grad[1]:
        dbias = grad.reshape(grad.shape[:-1].numel(), grad.shape[-1]).sum(0).to(ctx.bias_dtype)
    return dx, dbias, [None] * len(parts), None, None, None


def _save_backward(ctx, inputs, output):
    _, parts, *ctx.statics = inputs
    ctx.save_for_backward(*parts)


def _grad_backward(ctx, grad):
    parts = list(ctx.saved_tensors)
    return _linear_op(grad.contiguous(), None, parts, *ctx.statics), [None] * len(parts), None, None, None


def _autocast(device: str) -> Callable[..., Tensor]:
    key = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device.upper()}"))

    def run(x, bias, parts, kernel, out_features, in_features):
        short = torch.get_autocast_dtype(device)
        inner = torch.float64 if x.dtype is torch.float64 else torch.float32 if device == "cpu" else short
        with torch._C._ExcludeDispatchKeyGuard(key):
            y = _linear_op(x.to(inner), bias, parts, kernel, out_features, in_features)
        return y if inner is torch.float64 else y.to(short)

    return run


def _vmap(info, in_dims, x, bias, parts, kernel, out_features, in_features):
    x_dim, bias_dim = in_dims[:2]
    x = x.movedim(x_dim, 0) if x_dim is not None else x.expand(info.batch_size, *x.shape)
    if bias is None or bias_dim is None:
        return _linear_op(x, bias, parts, kernel, out_features, in_features), 0
    y = _linear_op(x, None, parts, kernel, out_features, in_features)
    bias = bias.movedim(bias_dim, 0)
    return y + bias.reshape(bias.shape[0], *[1] * (y.dim() - 2), out_features), 0


torch.library.register_fake("sparseworks::linear", _fake_linear, lib=_LIBRARY)
torch.library.register_fake("sparseworks::linear_backward", _fake_backward, lib=_LIBRARY)
torch.library.register_autograd("sparseworks::linear", _grad_linear, setup_context=_save, lib=_LIBRARY)
torch.library.register_autograd(
    "sparseworks::linear_backward", _grad_backward, setup_context=_save_backward, lib=_LIBRARY
)
torch.library.register_vmap("sparseworks::linear", _vmap, lib=_LIBRARY)
_LIBRARY.impl("linear", _autocast("cpu"), "AutocastCPU")
_LIBRARY.impl("linear", _autocast("cuda"), "AutocastCUDA")
