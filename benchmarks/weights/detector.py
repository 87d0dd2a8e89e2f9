"""What does a detector keep of its precision and of its time when its channels are pruned, and what does distillation bring back?

A small detector of heat maps on synthetic blobs (`sparseworks.evaluate.Blobs`) is trained, made sparse by L1 on the factors of its
norms, cut to a share of its parameters by one threshold or by one a section, and fine-tuned on few images for equal steps: alone, or
towards the detector it comes from by the error of its neck's features, by channel-wise distillation, or by attention maps. Average
precision in per cent, by the share of parameters that is left; then time of a batch, cut beside whole.

    python benchmarks/weights/detector.py --threads 1 --times
    python benchmarks/weights/detector.py --threads 1 --json detector
"""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from common import Line, arguments, line
from rows import TIMES, Row, Rows, forward_flops, record_of
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import BudgetError
from sparseworks.core.method import Method
from sparseworks.evaluate import BlobNet, Blobs, Detecting
from sparseworks.exec.measure import compare
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
SUFFIX = {"": "", "none": ", tuned", **{name: f", {name}" for name in list(REPAIRS)[1:]}}
"""Repair, "" = not tuned -> what a label says of it."""


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


class Cut(NamedTuple):
    """A net without the channels that were cut, and by which supports."""

    net: nn.Module
    method: Method
    supports: Mapping[str, sw.Support]


def cut(net: nn.Module, data: Blobs, regime: ThresholdGammas, share: float) -> Cut:
    """The largest cut net with at most `share` of the parameters."""
    low, high, best, most = 0.0, 1.0, None, share * parameters(net)
    for _ in range(10):
        density = (low + high) / 2
        small = copy.deepcopy(net)
        method = sw.method(
            "group_channels" if regime.sections == "modules" else "yolov8_cwd", density=density, train=regime
        )
        optimizer = torch.optim.SGD(small.parameters(), lr=0.0)
        try:
            run = sw.Sparsifier(small, method, optimizer, steps=1, couplings=groups(small, data))
            supports = run.finish()
        except BudgetError:  # the floors keep more than that
            low = density
            continue
        run.slice()
        if parameters(small) <= most:
            low, best = density, Cut(small, method, supports)
        else:
            high = density
    if best is None:
        raise SystemExit(f"No density leaves {share:.0%} of the parameters.")
    return best


def parameters(net: nn.Module) -> int:
    """How many there are."""
    return sum(p.numel() for p in net.parameters())


def tuned(
    small: nn.Module, teacher: nn.Module, few: Blobs, terms: tuple[Term, ...], steps: int, seed: int
) -> nn.Module:
    """A fine-tuned copy."""
    student = Detecting(copy.deepcopy(small))
    recover(
        student, Detecting(teacher) if terms else None, few.batches(16), supports={}, terms=[Task(), *terms], steps=steps, lr=5e-3,
        normalise=True, seed=seed, progress=False,
    )  # fmt: skip
    return student.net


class Bench:
    """The nets of every seed and their rows."""

    def __init__(self, size: Size):
        self.size = size
        self.data, self.test, self.few = Blobs.draw(size.images, 1), Blobs.draw(size.test, 2), Blobs.draw(size.few, 3)
        self.whole = cache(self._whole)
        self.thinned = cache(lambda seed: sparse(self.whole(seed), self.data, size.sparse, seed))
        self.cut = cache(lambda seed, name, share: cut(self.thinned(seed), self.data, CUTS[name], share))

    def _whole(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return trained(BlobNet(), self.data, self.size.train, seed)

    def row(
        self, label: str, density: float, seed: int, net: nn.Module, made: Cut | None, tuned: int, taught: bool
    ) -> Row:
        """Of a net after its `tuned` steps on few images; `made` None = not cut."""
        size, x, whole = self.size, self.data.images[:1], self.whole(seed)
        steps = size.train + (0 if label == "whole" else size.sparse)
        flops = 3 * 32 * steps * forward_flops(whole, x) + 16 * tuned * 3 * forward_flops(net, x)
        if taught:
            flops += 16 * tuned * forward_flops(whole, x)
        record = record_of(
            made.method if made else None, made.supports if made else {}, whole, task="blobs", metric="average precision, %",
            value=self.test.average_precision(net), epochs=32 * steps / size.images, examples=size.images, seed=seed,
            training_flops=flops, more={"parameters": parameters(net)},
            data=f"{steps} steps dense" + (f", {tuned} on {size.few} images after the cut" if tuned else ""),
        )  # fmt: skip
        return Row(label, density, record)

    def after(self, name: str, repair: str, share: float, seed: int) -> Row:
        """A cut net, fine-tuned unless `repair` is empty."""
        small, terms, steps = self.cut(seed, name, share), REPAIRS.get(repair, ()), self.size.tune if repair else 0
        net = tuned(small.net, self.whole(seed), self.few, terms, steps, seed) if repair else small.net
        return self.row(f"{name}{SUFFIX[repair]}", share, seed, net, small, steps, bool(terms))

    def thin(self, seed: int) -> Row:
        """Sparse factors before the cut."""
        found = self.row("sparse factors, not cut", 1.0, seed, self.thinned(seed), None, 0, False)
        return replace(found, record=replace(found.record, method="yolov8_cwd"))

    def faster(self, name: str, share: float, rounds: int) -> Line:
        """Time of 32 images, cut beside whole, of the first seed."""
        x, small, whole = self.data.images[:32], self.cut(0, name, share).net.eval(), self.whole(0).eval()
        with torch.no_grad():
            timings = compare({"cut": lambda: small(x), "whole": lambda: whole(x)}, rounds=rounds)
        return line(f"32 images, {share:.0%} of parameters, {name}", timings, "cut", "whole")

    def cells(self) -> Iterator[tuple[str, str, float]]:
        """Cut, repair, share."""
        for share, name in itertools.product(self.size.share, CUTS):
            yield from ((name, repair, share) for repair in SUFFIX)


def main() -> None:
    """Rows, and times of the first seed."""
    given = arguments(
        (__doc__ or "").splitlines()[0],
        seeds={"type": int, "default": 3, "help": "seeds of each figure"},
        times=TIMES,
    )
    size = Size(96, 32, 48, 20, 10, 5, (0.3,)) if given.quick else Size(2000, 64, 400, 400, 200, 30, (0.3, 0.2))
    seeds, bench = 1 if given.quick else given.seeds, Bench(size)
    rows = Rows("detector", asdict(size), quick=given.quick)
    for seed in range(0 if given.times else seeds):
        rows.add(f"whole {seed}", lambda s=seed: bench.row("whole", 1.0, s, bench.whole(s), None, 0, False))
        rows.add(f"sparse {seed}", lambda s=seed: bench.thin(s))
        for name, repair, share in bench.cells():
            make = lambda n=name, r=repair, p=share, s=seed: bench.after(n, r, p, s)  # noqa: E731
            rows.add(f"{name} {repair} {share} {seed}", make)
    for share, name in itertools.product(size.share, CUTS):
        rows.time(f"{share:.0%} of parameters, {name}", lambda p=share, n=name: bench.faster(n, p, given.rounds))
    rows.show()
    rows.store(None if given.times else given.json)


if __name__ == "__main__":
    main()
