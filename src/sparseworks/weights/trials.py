"""Trials: how far a variant of a model, put together from stored weights, is from the dense one."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparseworks.core.errors import CalibrationError
from sparseworks.core.site import Site
from sparseworks.weights.distill import Logits, Outputs, Recorder

Make = Callable[[str, Float[Tensor, "rows cols"], int], Float[Tensor, "rows cols"]]
"""`make(site, dense weight, level) -> weight`."""


@dataclass
class LevelDatabase:
    """Weights of sites at levels, made when they are asked for the first time.

    Attributes:
        folder: where they are kept, one file each; None = in memory. A file that is there is not made again.
    """

    make: Make
    folder: Path | None = None
    known: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def weight(self, name: str, dense: Float[Tensor, "rows cols"], level: int) -> Float[Tensor, "rows cols"]:
        """The site's weight at a level."""
        if self.folder is None:
            if (name, level) not in self.known:
                self.known[name, level] = self.make(name, dense, level)
            return self.known[name, level]
        path = self.folder / f"{sha256(name.encode()).hexdigest()[:16]}_{level}.safetensors"
        try:
            return load_file(path)["weight"]
        except (OSError, SafetensorError, KeyError):  # not there yet, or cut off while it was written
            pass
        found = self.make(name, dense, level).contiguous()
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        save_file({"weight": found}, partial)
        partial.replace(path)
        return found


class Trials:
    """`trials(levels, tokens, draw)`: KL(dense || variant) on about `tokens` tokens of whole batches drawn with a seed.

    The dense logits of all batches are kept, in the type of the model. While trials are made the model holds the last
    variant; as a context manager the dense weights come back at the end.

    Args:
        model: the dense model.
        sites: what the variants are made of.
        make: the weight of a site at a level, made once.
        batches: calibration data; small batches let small numbers of tokens be drawn.
        folder: where made weights are kept; None = in memory.

    Raises:
        CalibrationError: no batches.
    """

    def __init__(
        self, model: nn.Module, sites: Sequence[Site], make: Make, batches: Sequence[Any], folder: Path | None = None
    ):
        if not batches:
            raise CalibrationError("Trials compare logits on calibration data, and there are no batches.")
        self.model, self.sites, self.batches = model, {s.name: s for s in sites}, batches
        self.levels = LevelDatabase(make, folder)
        self.dense = {s.name: s.read(model).clone() for s in sites}
        self.now: dict[str, int] = {}
        self.recorder = Recorder(model)
        with torch.no_grad():
            self.target = [self.recorder.run(b).logits.to(next(iter(self.dense.values())).dtype) for b in batches]

    def __enter__(self) -> Trials:
        return self

    def __exit__(self, *_: object) -> None:
        self.recorder.close()
        for name, weight in self.dense.items():
            self.sites[name].write(self.model, weight)
        self.now = {}

    @torch.no_grad()
    def __call__(self, levels: Mapping[str, int], tokens: int, draw: int = 0) -> float:
        """Mean KL over the tokens drawn."""
        for name, level in levels.items():
            if self.now.get(name) != level:
                self.sites[name].write(
                    self.model, self.levels.weight(name, self.dense[name], level).to(self.dense[name])
                )
                self.now[name] = level
        total, count = 0.0, 0
        for i in self._drawn(tokens, draw):
            found = self.recorder.run(self.batches[i])
            total += float(kl(found.logits, self.target[i].float())) * len(self.target[i])
            count += len(self.target[i])
        return total / count

    def fitness(self, choice: Sequence[int], tokens: int, draw: int) -> float:
        """The same for the levels of all sites in their order, as `evolve` asks for it."""
        return self(dict(zip(self.sites, choice, strict=True)), tokens, draw)

    def _drawn(self, tokens: int, draw: int) -> list[int]:
        """Batches in a seeded order until they hold `tokens`; all of them in their own order where that is not enough."""
        if tokens >= sum(len(t) for t in self.target):
            return list(range(len(self.batches)))
        order = random.Random(draw).sample(range(len(self.batches)), len(self.batches))
        held = 0
        for place, i in enumerate(order):
            held += len(self.target[i])
            if held >= tokens:
                return order[: place + 1]
        return order


def kl(student: Float[Tensor, "tokens classes"], teacher: Float[Tensor, "tokens classes"]) -> Float[Tensor, ""]:
    """KL(softmax(teacher) || softmax(student)), averaged over tokens."""
    return Logits()(Outputs(student), Outputs(teacher))
