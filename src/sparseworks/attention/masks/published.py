"""The static patterns of published methods, one composition each."""

from __future__ import annotations

from collections.abc import Sequence

from sparseworks.attention.masks.algebra import Intersection
from sparseworks.attention.masks.base import Mask
from sparseworks.attention.masks.columns import Columns, Sink, Stride
from sparseworks.attention.masks.composed import PowerOfTwo
from sparseworks.attention.masks.units import Tiled
from sparseworks.attention.masks.windows import Band, Causal, Full, LastRows, MultiDiagonal, Window


def s2(local: int = 16, stride: int = 8, block: int = 64, shift: int | None = None) -> Intersection:
    """Blocks I - J < local, or (J + h max(1, stride // H) + 1) mod stride = 0: every head its own shard of the past.

    With H >= stride the heads together see everything; with fewer, H of the `stride` residues. `shift=0` is the homogeneous
    stride. Lin et al., 2024, arXiv 2407.17678 (S2-Attention).
    """
    return Tiled(Window(local) | Stride(stride, shift), block) & Causal()


def power_attention(sink: int = 1, local: int = 1, block: int = 64) -> Intersection:
    """Blocks at distance 0 or a power of two, `sink` first ones and a window of `local`: L layers reach sums of L powers.

    Chen et al., 2025, arXiv 2503.03588 (PowerAttention); the sizes of sink and window are our reading.
    """
    return (PowerOfTwo(block) | Tiled(Sink(sink) | Window(local), block)) & Causal()


def triangle(sink: int = 8, local: int = 512, last: int = 128) -> Intersection:
    """j < sink, i - j < local, or i >= n - last: the causal map without its middle, for the deep layers of a prefill.

    He et al., 2025, arXiv 2507.21526 (TriangleMix).
    """
    return (Sink(sink) | Window(local) | LastRows(last)) & Causal()


def sparse_vdit_modes(frame: int, width: int, columns: Sequence[int]) -> dict[str, Mask]:
    """What a head of a video transformer may be: full, skipped, a band, bands at multiples of `frame` tokens, global columns.

    Chen et al., 2025, arXiv 2506.03065 (Sparse-vDiT).
    """
    return {
        "full": Full(),
        "skip": ~Full(),
        "diagonal": Band(width),
        "multi_diagonal": MultiDiagonal(frame, width),
        "stripe": Columns(tuple(columns)),
    }
