"""Ladder: which packed form and kernel runs from how many rows on; written as one string, so that one op carries it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from math import inf
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import KernelError
from sparseworks.exec.format import Packed, name_of
from sparseworks.exec.kernel import KERNELS, Call, Kernel

Route = Callable[[Tensor, Tensor | None, Sequence[Tensor]], Tensor]
_Key = tuple[int, torch.dtype, bool | str]
_MAX_ROUTES = 4096
DENSE = "dense"


@dataclass(frozen=True)
class Rung:
    """From `min_rows` rows on, `kernel` reads `packed`."""

    min_rows: int
    kernel: str
    packed: Packed


def write_spec(rungs: Sequence[Rung], density: float) -> tuple[str, list[Packed]]:
    """The string form of a ladder, and its distinct packed forms in the order in which their parts are handed over.

    Raises:
        KernelError: no rungs, unsorted rungs, forms of different shapes, or a kernel that reads another format.
    """
    if not rungs or rungs[0].min_rows > 1 or any(a.min_rows >= b.min_rows for a, b in pairwise(rungs)):
        raise KernelError("A ladder needs rungs in ascending order of min_rows, the first at 0 or 1 rows.")
    forms: list[Packed] = []
    for rung in rungs:
        kernel = KERNELS.get(rung.kernel)
        if kernel.format != rung.packed.format:
            raise KernelError(
                f"Kernel {rung.kernel!r} reads {kernel.format!r}, not {rung.packed.format!r}; pack it so."
            )
        if rung.packed.shape != rungs[0].packed.shape:
            raise KernelError(f"Rungs of one layer differ in shape: {rung.packed.shape}, {rungs[0].packed.shape}.")
        if not any(form is rung.packed for form in forms):
            forms.append(rung.packed)
    spec = {
        "shape": list(rungs[0].packed.shape),
        "density": round(density, 6),
        "forms": [
            {"format": f.format, "dtype": name_of(f.dtype), "parts": list(f.parts), "meta": f.meta} for f in forms
        ],
        "rungs": [[r.min_rows, r.kernel, next(i for i, f in enumerate(forms) if f is r.packed)] for r in rungs],
    }
    return json.dumps(spec, sort_keys=True, separators=(",", ":")), forms


@dataclass(frozen=True)
class _Form:
    format: str
    dtype: torch.dtype
    shape: tuple[int, int]
    names: tuple[str, ...]
    meta: dict[str, Any]
    span: slice

    def packed(self, parts: Sequence[Tensor]) -> Packed:
        """The form over `parts`; built at every call, so without the five checked assignments of a frozen dataclass."""
        made = object.__new__(Packed)
        made.__dict__.update(
            format=self.format,
            shape=self.shape,
            dtype=self.dtype,
            parts=dict(zip(self.names, parts[self.span], strict=True)),
            meta=self.meta,
        )
        return made


def dense_kernel(dtype: torch.dtype) -> str | None:
    """The kernel that stands for the dense layer in a ladder: torch's own product in `dtype`."""
    return next((n for n, k in KERNELS.items() if k.dense_layer and k.value_dtype == dtype), None)


class Ladder:
    """A parsed spec, ready to run: chooses the rung by the number of rows and falls back to the reference."""

    def __init__(self, spec: str):
        try:
            data = json.loads(spec)
            self.shape: tuple[int, int] = (int(data["shape"][0]), int(data["shape"][1]))
            ends = list(accumulate((len(f["parts"]) for f in data["forms"]), initial=0))
            self.forms = [
                _Form(f["format"], getattr(torch, f["dtype"]), self.shape, tuple(f["parts"]), f["meta"], slice(a, b))
                for f, a, b in zip(data["forms"], ends, ends[1:], strict=False)
            ]
            rungs = [(int(least), str(name), self.forms[form]) for least, name, form in data["rungs"]]
            if not rungs or any(form < 0 for _, _, form in data["rungs"]):
                raise ValueError("no rungs, or a rung without form")
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise KernelError(f"Not a kernel ladder: {spec[:80]!r} ({error}); build it with `write_spec`.") from None
        self.density = float(data.get("density", 1.0))
        self.rungs: list[tuple[int, Kernel, _Form]] = [(least, KERNELS.get(name), form) for least, name, form in rungs]
        self._routes: dict[_Key, Route] = {}

    def __call__(self, x: Float[Tensor, "*lead in"], bias: Tensor | None, parts: Sequence[Tensor]) -> Tensor:
        """`x @ W.T + bias` by the rung for the number of rows of `x`."""
        tokens = x if x.dim() == 2 else x.reshape(-1, self.shape[1])
        key = (
            tokens.shape[0],
            x.dtype,
            x.is_cpu or x.device.type,
        )  # the name of a device costs more than this question
        route = self._routes.get(key)
        if route is None:
            route = self._find(key, x)
        y = route(tokens.contiguous(), bias, parts)
        return y if x.dim() == 2 else y.reshape(*x.shape[:-1], self.shape[0])

    def rung(self, rows: int) -> tuple[Kernel, _Form]:
        """The kernel chosen for `rows` rows, and the packed form it reads."""
        return next(((k, f) for least, k, f in reversed(self.rungs) if rows >= least), self.rungs[0][1:])

    def input_gradient(self, grad: Float[Tensor, "*lead out"], parts: Sequence[Tensor]) -> Float[Tensor, "*lead in"]:
        """`grad @ W` by the kernel for the number of rows of `grad`."""
        rows = grad.reshape(grad.shape[:-1].numel(), self.shape[0])
        kernel, form = self.rung(rows.shape[0])
        dx = kernel.input_gradient(rows.contiguous(), form.packed(parts))
        return dx.reshape(*grad.shape[:-1], self.shape[1])

    def dense_rows(self) -> list[tuple[int, float, int]]:
        """`(least, limit, form)`: for `least <= rows < limit` the plain dense product runs, on the form of that index."""
        limits = [least for least, _, _ in self.rungs[1:]] + [inf]
        return [
            (least, limit, self.forms.index(form))
            for (least, kernel, form), limit in zip(self.rungs, limits, strict=True)
            if kernel.name == dense_kernel(form.dtype)
        ]

    def _find(self, key: _Key, x: Tensor) -> Route:
        if len(self._routes) >= _MAX_ROUTES:  # a server may see every length once
            self._routes.clear()
        rows = key[0]
        call = Call(rows, self.shape, self.density, x.dtype, torch.get_num_threads(), x.device.type)
        blank = rows == 0 or x.is_meta
        route = self._routes[key] = _empty(self.shape[0]) if blank else self._take(call)
        return route

    def _take(self, call: Call) -> Route:
        chosen = self.rung(call.rows)
        others = [(k, f) for _, k, f in self.rungs if k is not chosen[0]]
        for kernel, form in [chosen, *others]:
            if kernel.refuses(call) is None:
                return _direct(kernel, form, call.dtype)
            if refusal(kernel, call) is None:
                return _widened(kernel, form)
        return _reference(*chosen)


def refusal(kernel: Kernel, call: Call) -> str | None:
    """Why a ladder would not run `kernel` for `call`, or None; half-precision inputs may be widened to float32 on the way."""
    said = kernel.refuses(call)
    if said is not None and call.dtype in (torch.bfloat16, torch.float16):
        return kernel.refuses(replace(call, dtype=torch.float32))
    return said


def _direct(kernel: Kernel, form: _Form, dtype: torch.dtype) -> Route:
    packed = form.packed

    def run(x: Tensor, bias: Tensor | None, parts: Sequence[Tensor]) -> Tensor:
        if bias is not None and bias.dtype is not dtype:
            bias = bias.to(dtype)
        return kernel(x, packed(parts), bias)

    return run


def _widened(kernel: Kernel, form: _Form) -> Route:
    direct = _direct(kernel, form, torch.float32)
    return lambda x, bias, parts: direct(x.float(), bias, parts).to(x.dtype)


def _reference(kernel: Kernel, form: _Form) -> Route:
    def run(x: Tensor, bias: Tensor | None, parts: Sequence[Tensor]) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        y = kernel.reference(x.to(wide), form.packed(parts), None if bias is None else bias.to(wide))
        return y.to(x.dtype)

    return run


def _empty(out_features: int) -> Route:
    return lambda x, bias, parts: x.new_empty(x.shape[0], out_features)


_LADDERS: dict[str, Ladder] = {}


def ladder(spec: str) -> Ladder:
    """The parsed ladder of `spec`; parsed once per process.

    Raises:
        KernelError: the text is not a ladder.
        UnknownNameError: it names a kernel that is not registered.
    """
    found = _LADDERS.get(spec)
    if found is None:
        found = _LADDERS[spec] = Ladder(spec)
    return found
