"""What does a detector keep of its precision and of its time when its channels are pruned, and what does distillation bring back?

A small detector of heat maps on synthetic blobs (`sparseworks.evaluate.Blobs`) is trained, made sparse by L1 on the factors of its
norms, cut to a share of its parameters by one threshold or by one a section, and fine-tuned on few images for equal steps: alone, or
towards the detector it comes from by the error of its neck's features, by channel-wise distillation, or by attention maps. Average
precision in per cent, mean and deviation over seeds; then time of an image, cut beside whole.

    python benchmarks/weights/detector.py --threads 1 --json detector
"""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, pstdev

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from common import arguments, line, show, store, table
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import BudgetError
from sparseworks.evaluate import BlobNet, Blobs, Detecting
from sparseworks.exec.measure import Comparison, compare
from sparseworks.stream import dependency_groups
from sparseworks.weights import ChannelWise, MapError, SpatialAttention, Task, Term, recover
from sparseworks.weights.train import ThresholdGammas

NECK = ("net.neck",)
PENALTY = 1e-2
CUTS = {
    "one threshold, floor 10 %": ThresholdGammas(rate=PENALTY),
    "one threshold": ThresholdGammas(rate=PENALTY, floor=0.0),
    "a threshold a module": ThresholdGammas(rate=PENALTY, floor=0.0, sections="modules"),
}
REPAIRS: Mapping[str, tuple[Term, ...]] = {
    "none": (),
    "feature error": (MapError(NECK, 10.0),),
    "channel-wise": (ChannelWise(NECK, 10.0, 1.0),),
    "attention maps": (SpatialAttention(NECK, 10.0),),
}


@dataclass(frozen=True)
class Size:
    """How long everything takes."""

    images: int
    few: int
    test: int
    train: int
    sparse: int
    tune: int
    share: tuple[float, ...]


def trained(
    net: nn.Module,
    data: Blobs,
    steps: int,
    seed: int,
    run: sw.Sparsifier | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> nn.Module:
    """`steps` of AdamW on batches of 32, the rate in one cycle."""
    g, whole = torch.Generator().manual_seed(seed), Detecting(net).train()
    optimizer = optimizer or torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=1e-4)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, optimizer.param_groups[0]["lr"], total_steps=steps)
    for _ in range(steps):
        at = torch.randint(len(data.images), (32,), generator=g)
        optimizer.zero_grad()
        whole(data.images[at], data.heat[at]).loss.backward()
        optimizer.step()
        rate.step()
        if run is not None:
            run.step()
    return net


def sparse(net: nn.Module, data: Blobs, steps: int, seed: int) -> nn.Module:
    """The net after training with L1 on its factors, before anything is cut."""
    made = copy.deepcopy(net)
    optimizer = torch.optim.AdamW(made.parameters(), lr=5e-3, weight_decay=1e-4)
    method = sw.method("yolov8_cwd", density=0.5, train=CUTS["one threshold, floor 10 %"])
    run = sw.Sparsifier(
        made, method, optimizer, steps=steps + 1, couplings=groups(made, data)
    )  # the cut would be one later
    return trained(made, data, steps, seed, run, optimizer)


def groups(net: nn.Module, data: Blobs) -> list:
    """All channels but those of the neck that the head reads, on which student and teacher are compared."""
    return [c for c in dependency_groups(net, data.images[:2]) if not c.name.startswith("neck")]


def cut(net: nn.Module, data: Blobs, regime: ThresholdGammas, share: float) -> nn.Module:
    """The largest cut net with at most `share` of the parameters."""
    low, high, best, most = 0.0, 1.0, None, share * parameters(net)
    for _ in range(10):
        density = (low + high) / 2
        small = copy.deepcopy(net)
        method = sw.method("yolov8_cwd", density=density, train=regime)
        optimizer = torch.optim.SGD(small.parameters(), lr=0.0)
        try:
            run = sw.Sparsifier(small, method, optimizer, steps=1, couplings=groups(small, data))
            run.finish()
        except BudgetError:  # the floors keep more than that
            low = density
            continue
        run.slice()
        if parameters(small) <= most:
            low, best = density, small
        else:
            high = density
    if best is None:
        raise SystemExit(f"No density leaves {share:.0%} of the parameters.")
    return best


def parameters(net: nn.Module) -> int:
    """How many there are."""
    return sum(p.numel() for p in net.parameters())


def faster(small: nn.Module, whole: nn.Module, x: torch.Tensor, rounds: int) -> Comparison:
    """Time of a batch, cut beside whole."""
    small.eval()
    whole.eval()
    with torch.no_grad():
        return compare({"cut": lambda: small(x), "whole": lambda: whole(x)}, rounds=rounds)


def tuned(
    small: nn.Module, teacher: nn.Module, few: Blobs, terms: tuple[Term, ...], steps: int, seed: int
) -> nn.Module:
    """A fine-tuned copy."""
    student = Detecting(copy.deepcopy(small))
    recover(
        student, Detecting(teacher), few.batches(16), supports={}, terms=[Task(), *terms], steps=steps, lr=5e-3,
        normalise=True, seed=seed, progress=False,
    )  # fmt: skip
    return student.net


def main() -> None:
    """Both tables."""
    given = arguments(
        (__doc__ or "").splitlines()[0], seeds={"type": int, "default": 3, "help": "seeds of each figure"}
    )
    size = Size(96, 32, 48, 20, 10, 5, (0.3,)) if given.quick else Size(2000, 64, 400, 400, 200, 30, (0.3, 0.2))
    seeds = 1 if given.quick else given.seeds
    data, test, few = Blobs.draw(size.images, 1), Blobs.draw(size.test, 2), Blobs.draw(size.few, 3)
    found: dict[tuple[float, str, str], list[float]] = {}
    lines = []

    def note(share: float, name: str, repair: str, net: nn.Module) -> None:
        found.setdefault((share, name, repair), []).append(test.average_precision(net))

    for seed in range(seeds):
        torch.manual_seed(seed)
        teacher = trained(BlobNet(), data, size.train, seed)
        thinned = sparse(teacher, data, size.sparse, seed)
        note(1.0, "whole", "before", teacher)
        note(1.0, "sparse factors, not cut", "before", thinned)
        for share, (name, regime) in itertools.product(size.share, CUTS.items()):
            small = cut(thinned, data, regime, share)
            note(share, name, "before", small)
            for repair, terms in REPAIRS.items():
                note(share, name, repair, tuned(small, teacher, few, terms, size.tune, seed))
            if seed == 0:
                timings = faster(small, teacher, data.images[:32], given.rounds)
                lines.append(line(f"{share:.0%} of parameters, {name}", timings, "cut", "whole"))
    columns = ("before", *REPAIRS)
    rows = []
    for share, name in dict.fromkeys((s, n) for s, n, _ in found):
        cells = [found.get((share, name, c), []) for c in columns]
        rows.append([f"{share:.0%}", name, *(f"{mean(c):.1f} ± {pstdev(c):.1f}" if c else "" for c in cells)])
    table(f"Average precision, % ({seeds} seeds)", ("parameters", "cut by", *columns), rows)
    show(lines, "Time of 32 images")
    figures = [{"share": s, "cut": n, "repair": r, "precision": v} for (s, n, r), v in found.items()]
    store("detector", lines, given.json, precision=figures)


if __name__ == "__main__":
    main()
