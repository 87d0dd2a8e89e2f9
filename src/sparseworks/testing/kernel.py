"""What every kernel must hold."""

from __future__ import annotations

from itertools import product
from math import prod

import torch

from sparseworks.core.support import Support
from sparseworks.exec.format import FORMATS
from sparseworks.exec.kernel import Call, Kernel, Maps
from sparseworks.exec.window import Window
from sparseworks.testing.examples import example, random_weight, require
from sparseworks.testing.format import cases

ROWS = (0, 1, 2, 3, 5, 8, 17, 33)
_SIZE = (3, 4)
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def check_kernel(kernel: type[Kernel] | Kernel, *, device: str = "cpu") -> None:
    """Equal to its torch reference over rows, shapes, supports, input types and biases; refusals are sentences.

    Raises:
        AssertionError: with a sentence that names the kernel and what broke.
    """
    subject: Kernel = example(kernel)
    format, value = FORMATS.get(subject.format), subject.value_dtype
    require(value in format.dtypes, f"{subject.name} reads {value}, which {subject.format} does not store.")
    for what, support in cases():
        if format.refuses(support, value) is None:
            _one(subject, f"{subject.name} with {what}", support, device)


def _one(kernel: Kernel, what: str, support: Support, device: str) -> None:
    out, width = support.shape
    weight = random_weight(out, width)
    packed = FORMATS.get(kernel.format).pack(weight, support, dtype=kernel.value_dtype)
    for rows, dtype, with_bias in product(ROWS, (torch.float32, torch.bfloat16), (False, True)):
        reason = kernel.refuses(call_of(kernel, rows, (out, width), support.density, dtype, device))
        if reason is not None:
            require(len(reason) > 5, f"{what} refuses {rows} rows of {dtype} without a reason.")
            continue
        x = input_of(kernel, rows, width, seed=rows).to(device, dtype)
        bias = random_weight(1, out, seed=1)[0].to(device, dtype) if with_bias else None
        _compare(kernel, f"{what}, {rows} rows of {dtype}{' and a bias' if with_bias else ''}", x, packed, bias)


def call_of(
    kernel: Kernel,
    rows: int,
    shape: tuple[int, int],
    density: float = 1.0,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Call:
    """A call with so many rows, or images for a kernel of maps, whose window has one tap."""
    maps = Maps(rows, _SIZE, Window((1, 1))) if kernel.of_maps else None
    rows = rows if maps is None else maps.positions
    return Call(rows, shape, density, dtype, torch.get_num_threads(), device, maps)


def input_of(kernel: Kernel, rows: int, width: int, seed: int = 0) -> torch.Tensor:
    """A random input for `call_of`."""
    if kernel.of_maps:
        return random_weight(rows, width * prod(_SIZE), seed=seed).view(rows, width, *_SIZE)
    return random_weight(rows, width, seed=seed)


def _compare(kernel: Kernel, what: str, x: torch.Tensor, packed, bias: torch.Tensor | None) -> None:
    got, expected = kernel(x, packed, bias), kernel.reference(x, packed, bias)
    require(got.shape == expected.shape, f"{what} gives shape {tuple(got.shape)}, not {tuple(expected.shape)}.")
    require(got.dtype == expected.dtype, f"{what} gives {got.dtype}, not {expected.dtype}.")
    if not got.numel():
        return
    scale = float(expected.double().abs().max()) + 1.0
    apart = float((got.double() - expected.double()).abs().max()) / scale
    require(apart <= TOLERANCE[x.dtype], f"{what} is {apart:.1e} from its reference.")
