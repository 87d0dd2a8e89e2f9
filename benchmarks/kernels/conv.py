"""How much faster than torch's convolution (oneDNN, the better of its memory formats) is a sparse one?"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from common import Line, arguments, line, show, store
from torch import nn

import sparseworks as sw
from sparseworks.exec import measure
from sparseworks.exec.kernel import Call

LAYERS = [  # input channels, output channels, kernel, stride, side of the map
    (64, 64, 3, 1, 56), (128, 128, 3, 1, 28), (256, 256, 3, 1, 14), (512, 512, 3, 1, 7), (256, 256, 3, 2, 28),
    (1024, 256, 1, 1, 14), (256, 1024, 1, 1, 14), (16, 16, 3, 1, 32), (32, 32, 3, 1, 16), (64, 64, 3, 1, 8),
]  # fmt: skip
DENSITIES = (0.2, 0.1, 0.05)


def main() -> None:
    """One line per layer and share of kept weights; the ceiling is what bandwidth and arithmetic allow."""
    given = arguments(
        __doc__ or "",
        only={"type": int, "default": None, "help": "number of the one layer to run"},
        images={"type": int, "default": 1},
    )
    layers = LAYERS if given.only is None else [LAYERS[given.only]]
    lines = []
    for layer in layers[-1:] if given.quick else layers:
        for density in DENSITIES[1:2] if given.quick else DENSITIES:
            lines.append(compare(layer, density, given.images, 3 if given.quick else given.rounds))
    show(lines, f"sparse convolution, {given.images} image(s), {given.threads} thread(s)")
    store("conv", lines, given.json)


@torch.inference_mode()
def compare(layer: tuple[int, int, int, int, int], density: float, images: int, rounds: int) -> Line:
    """One layer with random supports."""
    c, out, kernel, stride, side = layer
    name = f"{c}-{out} {kernel}x{kernel}/{stride} {side}x{side} kept {density:.0%}"
    conv = nn.Conv2d(c, out, kernel, stride, kernel // 2)
    last = nn.Conv2d(c, out, kernel, stride, kernel // 2)
    last.load_state_dict(conv.state_dict())
    last = last.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    support = sw.Support.from_mask(torch.rand(out, kernel * kernel * c) < density)
    sparse = sw.SparseConv2d.from_conv(conv, support)
    runs = {"sparse": sparse, "channels first": conv, "channels last": last}
    if kernel == 1:
        runs["rows"] = sw.SparseConv1x1.from_conv(conv, support, batch=images * side * side)
    x = torch.randn(images, c, side, side)
    y = x.to(memory_format=torch.channels_last)
    times = measure.compare(
        {kind: lambda run=run, kind=kind: run(y if kind == "channels last" else x) for kind, run in runs.items()},
        rounds=rounds,
    )
    print(name, ", ".join(f"{k} {t.us:.0f} us" for k, t in times.items()), file=sys.stderr)
    peer = min((k for k in runs if k != "sparse"), key=lambda k: times[k].us)
    call = Call(images * (side // stride) ** 2, (out, c), density, threads=torch.get_num_threads())
    ceiling = measure.bound_us(call, 8 * support.count, support.count)
    return line(name, times, "sparse", peer, ceiling)


if __name__ == "__main__":
    main()
