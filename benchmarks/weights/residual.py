"""What do methods that make a network sparse in training reach on a ResNet-20 with CIFAR-10? One study a method, each beside what its paper compares it to.

- `nested`: DRESS, three levels in one weight, beside nets trained for one level alone, and pruned without training.
- `bidirectional`: BDWP at 2:8 beside SR-STE and dense, from the trained network and from new weights.
- `fan_in`, `fan_in_90`: SRigL beside RigL and beside itself without ablation, at 95, 99 and 90 %.
- `thresholds`, `thresholds_low`: AutoSparse from several first thresholds, its gradient of masked weights annealed, constant, or none.
- `penalties`: HyperSparse at 99 % beside L1 and L2 at several rates, before the cut, after it, and fine-tuned.
- `search`: a cell searched by the loss of the masked network beside one searched dense, both trained sparse at 95 %.
- `flow`: feature flow beside plain training: half of the inner channels cut without fine-tuning, and filters near zero.

Networks are trained from new weights, or come trained; all see the same 6000 images, flipped and moved. Test images are 1000.

    python benchmarks/weights/residual.py --data data --device cuda --studies nested bidirectional --json residual
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from cell_search import Network, found
from cifar import Course, Images, accuracy, images, resnet, trained
from common import DEVICE, arguments
from rows import Row, Rows, journals, record_of
from torch import nn

import sparseworks as sw
from sparseworks.core.method import Method
from sparseworks.core.schedule import Annealing, Constant
from sparseworks.stream import dependency_groups
from sparseworks.weights import keep_support
from sparseworks.weights.train import FanInDropGrow, LearnedThreshold, Nested, Penalised

LEVELS = (0.5, 0.2, 0.1)
ENDS = ("conv1", "linear")
"""The first and the last layer: their inputs or outputs are not divisible by 8."""
THRESHOLDS = {"annealed": (-2.0, -1.5), "constant": (-2.0, -1.5), "none": (-2.5, -2.0)}
LOW = {"annealed": (-2.5,), "none": (-3.25,)}
PENALTIES = {"hyper_sparse": (5e-3, 2e-2), "l1": (1e-3, 3e-3), "l2": (2e-2, 6e-2)}
FLOWS = (0.1, 0.3, 1.0)
Cell = tuple[str, Callable[[int], Row | list[Row]]]
"""Its key, and the rows of a seed."""


@dataclass(frozen=True)
class Bench:
    """Data, networks, and how long they are trained.

    Attributes:
        short: course of networks that come trained.
        long: course of new ones.
    """

    data: Images
    folder: Path
    short: Course
    long: Course

    def network(self, seed: int, *, new: bool) -> nn.Module:
        """On the device of the images."""
        torch.manual_seed(seed)
        return resnet(None if new else self.folder).to(self.data.x.device)

    def row(
        self, label: str, density: float, seed: int, model: nn.Module, method: Method | None,
        supports: Mapping[str, sw.Support], *, course: Course | None, new: bool, value: float | None = None, **more: Any,
    ) -> Row:  # fmt: skip
        """The accuracy of `model` now, or `value`; `more` are further figures."""
        epochs = course.epochs if course else 0
        record = record_of(
            method, supports, model, task=f"CIFAR-10, {'new' if new else 'trained'} ResNet-20", metric="test accuracy, %",
            value=accuracy(self.data, model) if value is None else value, epochs=epochs, examples=len(self.data.x), seed=seed,
            data=f"{epochs} epochs from {'new' if new else 'trained'} weights", more=more,
        )  # fmt: skip
        return Row(label, round(density, 6), record)

    def fitted(self, method: Method, seed: int, *, new: bool, skip: tuple[str, ...] = ()) -> tuple[nn.Module, Any]:
        """A network trained by a method, and its supports."""
        model = self.network(seed, new=new)
        course = self.long if new else self.short
        run = trained(
            model, self.data, course, seed, lambda o, n: sw.Sparsifier(model, method, o, steps=n, skip=skip, seed=seed)
        )
        return model, run.finish()


def nested(bench: Bench) -> Iterator[Cell]:
    """All levels together, each alone, and levels of the network as it came."""

    def rows(label: str, levels: tuple[float, ...], course: Course | None, seed: int) -> list[Row]:
        model = bench.network(seed, new=False)
        made = lambda o, n: Nested(model, levels)  # noqa: E731
        found: Nested = trained(model, bench.data, course, seed, made) if course else Nested(model, levels)
        found.calibrate(bench.data.x.split(500))
        model.eval()
        listed = []
        for i, level in enumerate(levels):
            method = sw.method("magnitude", pattern="fan-in", density=level).with_(name="dress")
            with found.at_level(i):
                listed.append(bench.row(label, level, seed, model, method, found.supports(i), course=course, new=False))
        return listed

    yield "together", lambda s: rows("DRESS, three levels", LEVELS, bench.short, s)
    for level in LEVELS:
        yield f"alone {level}", lambda s, p=level: rows("one level", (p,), bench.short, s)
    yield "after", lambda s: rows("levels of the trained network", LEVELS, None, s)


def bidirectional(bench: Bench) -> Iterator[Cell]:
    """2:8 in one or two directions, and dense."""

    def one(name: str, new: bool, seed: int) -> Row:
        if name == "dense":
            model = bench.network(seed, new=new)
            trained(model, bench.data, bench.long if new else bench.short, seed)
            method, supports = None, {}
        else:
            method = sw.method(name, pattern="2:8")
            model, supports = bench.fitted(method, seed, new=new, skip=ENDS)
        course = bench.long if new else bench.short
        return bench.row(name, 1.0 if method is None else 0.25, seed, model, method, supports, course=course, new=new)

    for new in (False, True):
        for name in ("sr_ste", "bdwp") if new else ("sr_ste", "bdwp", "dense"):
            yield f"{name} {'new' if new else 'trained'}", lambda s, n=name, w=new: one(n, w, s)


def fan_in(bench: Bench, densities: tuple[float, ...] = (0.05, 0.01)) -> Iterator[Cell]:
    """RigL with and without equal numbers of inputs; with few, weak neurons go early ("half") or never."""
    every = max(1, bench.long.steps(bench.data) // bench.long.epochs)

    def one(label: str, density: float, seed: int) -> Row:
        method = sw.method(label.partition(",")[0].lower(), density=density)
        told = {"every": every, "rescale": True}
        if isinstance(method.train, FanInDropGrow):
            told["ablate"] = {"SRigL": 0.3, "SRigL, no ablation": 0.0, "SRigL, half": 0.5}[label]
        method = method.with_(train=replace(method.train, **told))
        model, supports = bench.fitted(method, seed, new=True)
        living = sum(float(s.mask().any(dim=1).float().mean()) for s in supports.values()) / len(supports)
        return bench.row(
            label, density, seed, model, method, supports, course=bench.long, new=True, living_neurons=living
        )

    for density in densities:
        for label in ("SRigL", "SRigL, no ablation", "RigL", *(["SRigL, half"] if density < 0.05 else [])):
            yield f"{label} {density}", lambda s, n=label, p=density: one(n, p, s)


def fan_in_90(bench: Bench) -> Iterator[Cell]:
    """The same at 90 %."""
    return fan_in(bench, (0.1,))


def thresholds(bench: Bench, firsts: Mapping[str, tuple[float, ...]] = THRESHOLDS) -> Iterator[Cell]:
    """Learned thresholds: where the density ends follows from the first."""
    shares = {"annealed": Annealing(), "constant": Constant(0.75), "none": Constant(0.0)}

    def one(kind: str, first: float, seed: int) -> Row:
        stop = 1.0 if kind == "constant" else 0.75
        method = sw.method("autosparse", schedule=shares[kind], train=LearnedThreshold(first=first, stop=stop))
        model, supports = bench.fitted(method, seed, new=True)
        kept = sum(s.count for s in supports.values()) / sum(s.size for s in supports.values())
        label = f"AutoSparse, {kind}, from {first:g}"
        return bench.row(label, kept, seed, model, method, supports, course=bench.long, new=True, kept_share=kept)

    for kind in firsts:
        for first in firsts[kind]:
            yield f"{kind} {first}", lambda s, k=kind, f=first: one(k, f, s)


def thresholds_low(bench: Bench) -> Iterator[Cell]:
    """From lower ones."""
    return thresholds(bench, LOW)


def penalties(bench: Bench) -> Iterator[Cell]:
    """A growing penalty, the cut, fine-tuning with the support held."""
    every = max(1, bench.short.steps(bench.data) // bench.short.epochs)

    def three(kind: str, rate: float, seed: int) -> list[Row]:
        model = bench.network(seed, new=False)
        penalty = Penalised(kind=kind, rate=rate, growth=1.15, epoch=every, warmup=0)  # type: ignore[arg-type]
        method = sw.method("hyper_sparse", density=0.01, train=penalty)
        course = bench.short
        run = trained(model, bench.data, course, seed, lambda o, n: sw.Sparsifier(model, method, o, steps=n))
        before, supports = accuracy(bench.data, model), run.finish()
        after = accuracy(bench.data, model)
        sites = sw.sites(model)
        holding = trained(model, bench.data, course, seed + 100, lambda o, n: keep_support(o, model, sites, supports))
        holding.remove()
        tuned = course._replace(epochs=2 * course.epochs)
        return [
            bench.row(
                f"{kind}, rate {rate:g}", 0.01, seed, model, method, supports, course=tuned, new=False, before_cut=before,
                after_cut=after,
            )
        ]  # fmt: skip

    for i in range(2):
        for kind, rates in PENALTIES.items():
            yield f"{kind} {rates[i]}", lambda s, k=kind, r=rates[i]: three(k, r, s)


def flow(bench: Bench) -> Iterator[Cell]:
    """Plain training and that with a penalty on the way of the features; the cut is after the last step."""

    def one(strength: float, seed: int) -> list[Row]:
        model = bench.network(seed, new=True)
        name = "ffr" if strength else "group_magnitude"
        method = sw.method(name, density=0.5)
        told = {"cut": 1.0, **({"length": strength, "bending": strength} if strength else {})}
        method = method.with_(train=replace(method.train, **told))  # type: ignore[arg-type]
        listed = dependency_groups(model, bench.data.x[:2], whole=("layer2.0", "layer3.0"))
        run = trained(
            model, bench.data, bench.long, seed,
            lambda o, n: sw.Sparsifier(model, method, o, steps=n + 1, couplings=listed, seed=seed),
        )  # fmt: skip
        label = f"feature flow, {strength:g}" if strength else "plain"
        own: dict[str, Any] = {"course": bench.long, "new": True}
        whole = bench.row(label, 1.0, seed, model, None, {}, **own, **small(model))
        supports = run.finish()
        return [whole, bench.row(label, 0.5, seed, model, method, supports, **own)]

    for strength in (0.0, *FLOWS):
        yield f"{strength}", lambda s, k=strength: one(k, s)


@torch.no_grad()
def small(model: nn.Module) -> dict[str, Any]:
    """Shares of the channels of all blocks whose factor is below 1/1000, 1/100 and 1/10 of the largest of their norm."""
    norms = [m.weight.abs() / m.weight.abs().max() for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    sizes = torch.cat(norms)
    return {f"below_{limit:g}": float((sizes < limit).float().mean()) for limit in (1e-3, 1e-2, 1e-1)}


def search(bench: Bench) -> Iterator[Cell]:
    """A cell that was searched for masked or dense, then trained sparse; its network is a small one of its own."""

    def one(masked: bool, seed: int) -> Row:
        steps = (1, 1, 2) if len(bench.data.x) < 1000 else (150, 75, 250)
        made = found(bench.data, masked, 0.05, seed, steps)
        label = f"DASS, searched {'masked' if masked else 'dense'}"
        chosen: dict[str, Any] = {f"{e.start}-{e.end}": e.operation for e in made.genotype}
        row = bench.row(
            label, 0.05, seed, made.model, sw.method("dass", density=0.05), made.supports, course=None, new=True, **chosen
        )  # fmt: skip
        told = f"{sum(steps)} steps of search, {sum(steps)} of training"
        space = sum(p.numel() for p in Network().parameters())  # one for all, though what was chosen differs in size
        return replace(row, record=replace(row.record, task="CIFAR-10, a cell", data=told, parent=space))

    for second in (0, 100):  # searches vary much: two a seed
        for masked in (True, False):
            yield f"{masked} {second}", lambda s, m=masked, n=second: one(m, s + n)


STUDIES: dict[str, Callable[[Bench], Iterator[Cell]]] = {
    f.__name__: f
    for f in (nested, bidirectional, fan_in, fan_in_90, thresholds, thresholds_low, flow, search, penalties)
}


def main() -> None:
    """Every study, seed by seed."""
    given = arguments(
        (__doc__ or "").split("\n")[0],
        data={"type": Path, "required": True, "help": "folder with the CIFAR-10 images and networks"},
        studies={"nargs": "+", "choices": tuple(STUDIES), "default": tuple(STUDIES), "help": "which"},
        seeds={"type": int, "default": 3, "help": "runs a cell"},
        short={"type": int, "default": 12, "help": "epochs of a network that comes trained"},
        long={"type": int, "default": 30, "help": "epochs of a new network"},
        device=DEVICE,
    )
    torch.backends.cudnn.benchmark = True
    seeds, short, long = (1, 1, 1) if given.quick else (given.seeds, given.short, given.long)
    data = images(given.data, 32 if given.quick else 6000, given.device)
    batch = 16 if given.quick else 128
    bench = Bench(data, given.data, Course(short, 0.05, batch=batch), Course(long, 0.2, batch=batch))
    setting = {"short": short, "long": long, "images": len(data.x)}
    rows = Rows("residual", setting, quick=given.quick, folder=journals(given.json))
    for study in given.studies:
        for seed in range(seeds):
            for key, make in STUDIES[study](bench):
                rows.add(f"{study} {key} {seed}", lambda m=make, s=seed: m(s))
    rows.rows = averaged(rows.rows)
    rows.show()
    rows.store(given.json)


def averaged(rows: list[Row]) -> list[Row]:
    """Densities that followed from training: their means over the seeds, by which tables have their columns."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if "kept_share" in row.record.more:
            found.setdefault(row.label, []).append(row.record.more["kept_share"])
    return [
        replace(row, density=round(sum(found[row.label]) / len(found[row.label]), 4)) if row.label in found else row
        for row in rows
    ]


if __name__ == "__main__":
    main()
