"""What every format must hold."""

from __future__ import annotations

import torch

from sparseworks.core.errors import KernelError, ShapeError
from sparseworks.core.patterns import EXAMPLES, parse
from sparseworks.core.support import Support
from sparseworks.exec.format import Format
from sparseworks.testing.examples import example, random_weight, refused, require
from sparseworks.testing.repair import supports

SHAPES = ((16, 32), (32, 16), (48, 64), (5, 7), (64, 64))


def cases() -> list[tuple[str, Support]]:
    """Named supports of many shapes: irregular ones, and one of every kind of pattern."""
    made = [(f"{name} {r}x{c}", s) for r, c in SHAPES for name, s in supports(r, c).items()]
    for text in (*EXAMPLES, "8:16", "4x2:4", "16x2:4", "block:16x1", "block:1x16", "block:1x2"):
        pattern, shape = parse(text), (64, 64)
        chosen = pattern.select(random_weight(*shape), pattern.counts(shape, 0.25))
        made.append((f"{text} 64x64", chosen))
    return made


def check_format(format: type[Format] | Format) -> None:
    """Exact inverse on every support it does not refuse, bytes known before packing, refusals with a reason.

    A format packs the support it is given: kept zeros stay kept, what lies outside is never looked at.

    Raises:
        AssertionError: with a sentence that names the format and what broke.
    """
    subject: Format = example(format)
    name = subject.registered_name
    taken = 0
    for dtype in (*subject.dtypes, torch.complex64):
        for what, support in cases():
            taken += _one(subject, f"{name} with {what} in {dtype}", support, dtype)
    require(taken > 0, f"{name} refuses every support.")
    square = Support.full((16, 16))
    if subject.refuses(square) is None:
        refused(
            lambda: subject.pack(torch.zeros(16, 8), square),
            ShapeError,
            f"{name} must refuse a weight of another shape.",
        )
    reason = subject.refuses(Support.full((2, 4, 4)))
    require(bool(reason), f"{name} must refuse what is not a matrix.")


def _one(format: Format, what: str, support: Support, dtype: torch.dtype) -> bool:
    rows, cols = support.shape
    weight = random_weight(rows, cols)
    weight[:, ::5] = 0.0  # kept entries that happen to be zero
    weight[~support.mask()] = float("nan")  # nobody may look here
    reason = format.refuses(support, dtype)
    if reason is not None:
        require(isinstance(reason, str) and len(reason) > 5, f"{what} is refused without a reason: {reason!r}.")
        refused(
            lambda: format.pack(weight, support, dtype=dtype), KernelError, f"{what} is refused, so pack must raise."
        )
        return False
    packed = format.pack(weight, support, dtype=dtype)
    unpacked, again = format.unpack(packed)
    expected = format.rounded(torch.where(support.mask(), weight, 0.0), dtype)
    require(unpacked.dtype == expected.dtype and torch.equal(unpacked, expected), f"{what} unpacks to other values.")
    require(again == support, f"{what} unpacks to another support: {again!r} instead of {support!r}.")
    bytes_known = format.nbytes(support, dtype)
    require(bytes_known == packed.nbytes, f"{what} takes {packed.nbytes} bytes and says {bytes_known} before packing.")
    require(packed.format == format.registered_name, f"{what} is packed as {packed.format!r}.")
    require(packed.shape == (rows, cols) and packed.dtype == dtype, f"{what} forgets its shape or type.")
    contiguous = all(t.is_contiguous() for t in packed.parts.values())
    require(contiguous, f"{what} has parts that are not contiguous; kernels read raw memory.")
    return True
