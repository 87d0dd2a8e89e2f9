"""A device that does not exist, for machines without one: its tensors compute on the CPU, and refuse to meet tensors that lie there.

`with pretended(): check_device(method, PRETENDED)` finds what was made on the CPU beside a model that lies elsewhere. Where torch's own code makes
tensors unseen by dispatch (gradients of an indexed tensor, for one) it takes them for the CPU's: then a GPU has the last word.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from sparseworks.exec import triton

PRETENDED = torch.device("cuda:0")


class Elsewhere(Tensor):
    """A tensor that says it lies on `PRETENDED`, around one on the CPU; to torch's own code it is on the CPU, which has no such device."""

    held: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Elsewhere:  # noqa: D102
        made: Any = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype, requires_grad=False,
        )  # fmt: skip
        made.held = inner
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where it says it is."""
        return PRETENDED

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        """Yes: what only a CPU can do must not be tried."""
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        """No."""
        return False

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Moves to the CPU, which torch would take for no move at all."""
        kwargs = kwargs or {}
        if func is Tensor.tolist:
            return args[0].held.tolist()
        if func is Tensor.untyped_storage:
            return args[0].held.untyped_storage()
        if func is Tensor.new_tensor:
            return torch.tensor(args[1], dtype=kwargs.get("dtype", args[0].dtype), device=PRETENDED)
        if func is F.one_hot:
            classes = kwargs.get("num_classes", args[1] if len(args) > 1 else int(args[0].max()) + 1)
            return (args[0].unsqueeze(-1) == torch.arange(classes, device=PRETENDED)).long()
        if func in (Tensor.repeat_interleave, torch.repeat_interleave) and len(args) == 3 and isinstance(args[1], int):
            dim = args[2] % args[0].dim()  # its gradient is made where dispatch does not see it
            return (
                args[0]
                .unsqueeze(dim + 1)
                .expand(*args[0].shape[: dim + 1], args[1], *args[0].shape[dim + 1 :])
                .flatten(dim, dim + 1)
            )
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if func is Tensor.numpy:
            raise TypeError(f"A tensor of {PRETENDED} cannot become an array: copy it to the CPU first.")
        if func is Tensor.cpu or (func is Tensor.to and _target(args, kwargs) == "cpu"):
            other = next((a.dtype for a in args[1:] if isinstance(a, Tensor)), None)
            dtype = kwargs.get("dtype") or next((a for a in args[1:] if isinstance(a, torch.dtype)), other)
            here = _Back.apply(args[0])
            return here if dtype is None else here.to(dtype)
        if func is Tensor.to and not isinstance(args[0], Elsewhere) and isinstance(args[1], Elsewhere):
            return args[0].to(PRETENDED, args[1].dtype)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        """The values, and that they are elsewhere."""
        return f"Elsewhere({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See `_Pretending`."""
        return run(func, args, kwargs or {})


class _Back(torch.autograd.Function):
    """The copy on the CPU; gradients go the other way."""

    @staticmethod
    def forward(ctx: Any, x: Elsewhere) -> Tensor:
        """A copy."""
        return x.held.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """A copy."""
        return Elsewhere(grads[0])


def _target(args: Any, kwargs: dict[str, Any]) -> str | None:
    """The device that `to` names."""
    named = kwargs.get("device", args[1] if len(args) > 1 else kwargs.get("other"))
    if isinstance(named, Tensor):
        return named.device.type
    return torch.device(named).type if isinstance(named, str | torch.device) else None


def _attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """torch's, which makes its causal mask where dispatch does not see it; without dropout."""
    del dropout_p
    if enable_gqa:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        scores = scores.masked_fill(scores.new_ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype is torch.bool else scores + attn_mask
    return scores.softmax(-1) @ v


class _Pretending(TorchDispatchMode):
    """Tensors that are asked for on the device are made on the CPU and wrapped."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


@contextmanager
def pretended() -> Iterator[torch.device]:
    """Inside, tensors can be made on and moved to `PRETENDED`; a module that moves gets new parameters, so optimisers come after."""
    overwrite, lift = torch.__future__.get_overwrite_module_params_on_conversion(), torch._C._only_lift_cpu_tensors()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # values cannot be exchanged inside a parameter
    torch._C._set_only_lift_cpu_tensors(
        True
    )  # `torch.tensor` makes numbers here, and moves them where dispatch sees it
    begin, torch.cuda._lazy_init = torch.cuda._lazy_init, lambda: None
    missing, triton.why_missing = triton.why_missing, lambda: "the device is pretended"
    try:
        with _Pretending():
            yield PRETENDED
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
        torch._C._set_only_lift_cpu_tensors(lift)
        torch.cuda._lazy_init, triton.why_missing = begin, missing


_MOVES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default, torch.ops.aten.set_.source_Tensor}
_INDEXED = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default, torch.ops.aten._index_put_impl_.default}  # fmt: skip


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation on what is inside.

    Raises:
        RuntimeError: tensors of both devices meet, as a GPU would say it. Numbers of no dimension may, and indices that are on the CPU.
    """
    given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    there = [t for t in given if isinstance(t, Elsewhere)]
    # Indices may lie on the CPU, as on a GPU: only what is indexed and what is put there must be together.
    meets = [t for t in tree_leaves((args[0], args[2:])) if isinstance(t, Tensor)] if func in _INDEXED else given
    apart = [t for t in meets if not isinstance(t, Elsewhere) and t.dim()]
    if (
        there and apart and func not in _MOVES and func.namespace != "sparseworks"
    ):  # our own kernels look after their operands
        raise RuntimeError(
            f"{func} was given tensors of {PRETENDED} and of the CPU: {[tuple(t.shape) for t in there]} there, {[tuple(t.shape) for t in apart]} here."
        )
    if func in _INDEXED and not isinstance(args[0], Elsewhere) and there:
        raise RuntimeError(f"{func}: a tensor of the CPU was indexed by one of {PRETENDED}.")
    wanted = kwargs.get("device")
    # What torch's own code says of the device of such a tensor is wrong; moves to the CPU do not come by here.
    on = (
        bool(there)
        if wanted is None or (func is torch.ops.aten._to_copy.default and there)
        else torch.device(wanted).type == PRETENDED.type
    )
    if func is torch.ops.aten.copy_.default or func in _INDEXED:
        on = isinstance(args[0], Elsewhere)
    if wanted is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    inside = tree_map_only(Elsewhere, lambda t: t.held, (args, kwargs))
    out = func(*inside[0], **inside[1])
    if not on:
        return out
    same = {id(t.held): t for t in there}
    return tree_map_only(Tensor, lambda t: same.get(id(t)) if id(t) in same else Elsewhere(t), out)
