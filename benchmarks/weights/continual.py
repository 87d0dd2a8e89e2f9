"""How well do sparse learners of streams remember: CL-DST, SparCL, SHARP and APP beside their own baselines? Three seeds a cell.

Accuracy in the layout of the papers, methods x densities, with forgetting, training FLOPs, memory or errors over the stream beside it.
Five tasks of two classes each, or a stream in eight megabatches: perceptrons on scikit-learn's digits, or with `--data` (a folder with
`vision/cifar10_*.npz` and `vision/fashion_mnist.npz`) SparCL and APP with six convolutions on CIFAR-10 or perceptrons on Fashion-MNIST.

    python benchmarks/weights/continual.py --threads 1 --json continual
    python benchmarks/weights/continual.py --data DATA --device cuda --parts rehearsal megabatches --json continual_cifar10
    python benchmarks/weights/continual.py --data DATA --images fashion --parts rehearsal megabatches --threads 1 --json continual_fashion
    python benchmarks/weights/continual.py --width 32 --parts told --densities 0.2 0.1 0.05 --growth random gradient --threads 1 --json continual_wide
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import DEVICE, arguments
from images import Images, cifar, fashion
from megabatches import anytime
from rehearsal import class_incremental, rehearsals
from replaying import maturing, replaying
from rows import Rows
from task_streams import digits, stream_of
from told_tasks import GROWTH, task_incremental

PARTS = ("told", "rehearsal", "replay", "megabatches")


def main() -> None:
    given = arguments(
        (__doc__ or "").split("\n")[0],
        device=DEVICE,
        data={"type": Path, "default": None, "help": "folder with vision/; default: digits"},
        images={"choices": ("cifar10", "fashion"), "default": "cifar10", "help": "those of `data`"},
        parts={
            "nargs": "+",
            "default": PARTS,
            "choices": PARTS,
            "help": "tables to make; with images rehearsal and megabatches",
        },
        width={"type": int, "default": 8, "help": "of the convolutions of tasks that are told"},
        densities={"nargs": "+", "type": float, "default": [0.5, 0.2, 0.1, 0.05], "help": "of tasks that are told"},
        growth={
            "nargs": "+",
            "default": [*GROWTH],
            "choices": [*GROWTH],
            "help": "scores to grow by, of tasks that are told",
        },
        seeds={"type": int, "default": 3, "help": "runs a cell"},
        steps={"type": int, "default": 100, "help": "steps a task (epochs are a fifth of it)"},
    )
    seeds, steps = (1, 10) if given.quick else (given.seeds, given.steps)
    setting = {"steps": steps} | ({"width": given.width} if given.width != 8 else {})
    where = {"folder": given.json.parent / "journals"} if given.json and given.json.parent != Path() else {}
    if given.data is not None:
        rows = Rows(f"continual_{given.images}", setting, quick=given.quick, **where)
        images = (cifar if given.images == "cifar10" else fashion)(given.data).to(given.device)
        images = (
            images
            if given.images == "cifar10"
            else images._replace(x=images.x.flatten(1), x_test=images.x_test.flatten(1))
        )
        images = images.first(200) if given.quick else images
        photographs(rows, images, given.parts, seeds, steps, given.quick)
    else:
        rows = Rows("continual" if given.width == 8 else "continual_wide", setting, quick=given.quick, **where)
        if "told" in given.parts:
            told(rows, given, seeds, steps)
        handwriting(rows, given.parts, seeds, steps, given.quick)
    rows.show()
    rows.store(given.json)


def photographs(rows: Rows, images: Images, parts: Sequence[str], seeds: int, steps: int, quick: bool) -> None:
    """SparCL and APP on images; "longer" trains SparCL for as many FLOPs as RigL costs."""
    stream, epochs, batch = stream_of(*images), max(steps // 5, 2), 64
    every = max(5 * epochs * len(images.x) // (5 * 50 * batch), 2)  # five of fifty epochs
    for seed in range(seeds):
        for density in ((0.25,) if quick else (0.25, 0.1)) if "rehearsal" in parts else ():
            ways = rehearsals(density, every)
            for name in ("dense", "sparcl", "sparcl, longer", "sparcl, all gradients", "rigl", "snip"):
                how, asked = ways[name.removesuffix(", longer")], 1.0 if name == "dense" else density
                long = round(epochs * 4 / 3) if "longer" in name else epochs
                make = partial(class_incremental, stream, name, how, asked, seed, long, 200, batch)
                if asked < 1 or density == 0.25:
                    rows.add(f"rehearsal {name} {asked} {seed}", make)
        if "megabatches" in parts:
            for size in (8,) if quick else (400,):
                for name in ("dense", "snip", "app"):
                    make = partial(anytime, stream, name, seed, max(epochs * 3 // 5, 2), 8, size)
                    rows.add(f"{name} {size} {seed}", make)


def told(rows: Rows, given: Namespace, seeds: int, steps: int) -> None:
    """CL-DST on digits."""
    stream, quick = digits(), given.quick
    for seed in range(seeds):
        for density in (0.2,) if quick else given.densities:
            for allocate in ("erk", "uniform"):
                for growth in ("random",) if quick else given.growth:
                    make = partial(task_incremental, stream, allocate, growth, density, seed, steps, given.width)
                    rows.add(f"cl_dst {allocate} {growth} {density} {seed}", make)


def handwriting(rows: Rows, parts: Sequence[str], seeds: int, steps: int, quick: bool) -> None:
    """The other tables on digits."""
    stream, epochs, every = digits(), max(steps // 5, 2), max(steps // 3, 2)
    for seed in range(seeds):
        for density in ((0.25,) if quick else (0.25, 0.1)) if "rehearsal" in parts else ():
            for name, how in rehearsals(density, every).items():
                asked = density if how.method is not None else 1.0
                make = lambda s=seed, d=asked, n=name, h=how: class_incremental(stream, n, h, d, s, epochs)  # noqa: E731
                if asked < 1 or density == 0.25:
                    rows.add(f"sparcl {name} {asked} {seed}", make)
        if "replay" in parts:
            matured = [
                rows.add(f"sharp {d} {seed}", lambda s=seed, d=d: maturing(stream, d, s, steps))[0] for d in (0, 1)
            ]
            nbytes = matured[0].record.more["memory_bytes"]
            rows.add(f"replay {seed}", lambda s=seed, n=nbytes: replaying(stream, n, s, steps))
        for size in ((20,) if quick else (20, 60, 140)) if "megabatches" in parts else ():
            for name in ("dense", "snip", "app"):
                rows.add(f"{name} {size} {seed}", lambda s=seed, m=name, n=size: anytime(stream, m, s, epochs, 8, n))


if __name__ == "__main__":
    main()
