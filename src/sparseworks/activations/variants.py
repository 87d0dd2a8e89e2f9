"""Variants: masked layers in a model whose rules are set and tried, and how far the model or a block is from the dense one."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sparseworks.activations.cut import InputCut
from sparseworks.activations.place import GateOutputs
from sparseworks.core.histogram import InputHistogram
from sparseworks.core.site import Site
from sparseworks.exec.masked import InputRule, MaskedLinear, MaskedOutput
from sparseworks.stream.outputs import logits_of
from sparseworks.stream.padding import Padding, real_tokens
from sparseworks.stream.tree import call

OPEN = InputRule(threshold=0.0)


@dataclass(frozen=True)
class Target:
    """One masked vector.

    Attributes:
        site: its name, and as entries the weights that masking saves.
        inputs: entries of the vector.
        factor: constant per input of the score; None = 1.
        relu: an activation function of this target becomes max(0, .).
    """

    site: Site
    inputs: int
    factor: Float[Tensor, " in"] | None = None
    relu: bool = False

    @classmethod
    def of(cls, site: Site, place: Any, factor: Tensor | None) -> Target:
        """The target of a place."""
        inputs = site.shape[1] if not isinstance(place, GateOutputs) else site.shape[0]
        return cls(site, inputs, factor, getattr(place, "relu", False))


class Variants:
    """The model with masked layers at `targets`; `set` changes one, `close` takes them all out again.

    Attributes:
        histograms: of the scores, by site; filled while data are streamed.
    """

    def __init__(self, model: nn.Module, targets: Sequence[Target], cut: InputCut, batches: Sequence[Any] = ()):
        self.model, self.cut, self.batches = model, cut, batches
        self.targets = {t.site.name: t for t in targets}
        self.histograms: dict[str, InputHistogram] = {}
        self._dense: list[Tensor] = []
        self._padding = Padding(model)

    def install(self, names: Sequence[str]) -> None:
        """Put masked layers that keep everything in the place of the dense ones."""
        for name in names:
            target = self.targets[name]
            found = self.model.get_submodule(target.site.module)
            if isinstance(found, MaskedLinear | MaskedOutput):
                found.rule = OPEN
            elif isinstance(found, nn.Linear):
                self.model.set_submodule(
                    target.site.module, MaskedLinear.from_linear(found, OPEN, factor=target.factor)
                )
            else:
                self.model.set_submodule(target.site.module, MaskedOutput(found, OPEN, relu=target.relu))

    def layer(self, name: str) -> MaskedLinear | MaskedOutput:
        """The masked layer of a site."""
        found = self.model.get_submodule(self.targets[name].site.module)
        assert isinstance(found, MaskedLinear | MaskedOutput)
        return found

    def rule(self, name: str, density: float) -> InputRule:
        """The rule by which a site keeps this share of its inputs."""
        if density >= 1.0:
            return OPEN
        return self.cut.rule(density, self.targets[name].inputs, self.histograms.get(name))

    def set(self, densities: Mapping[str, float]) -> None:
        """Shares of the inputs that sites keep from now on."""
        for name, density in densities.items():
            self.layer(name).rule = self.rule(name, density)

    # -- how far from dense ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def learn(self) -> None:
        """Note the logits of the model as it is, for `trial`."""
        self._dense = [self._logits(b).cpu() for b in self.batches]

    @torch.no_grad()
    def trial(self, tokens: int, draw: int = 0) -> float:
        """Mean KL(dense || variant) in nats over about so many tokens of whole batches drawn with a seed."""
        total, count = 0.0, 0
        for i in self._drawn(tokens, draw):
            found, target = self._logits(self.batches[i]).float(), self._dense[i].float()
            total += float(
                F.kl_div(found.log_softmax(-1).cpu(), target.log_softmax(-1), log_target=True, reduction="sum")
            )
            count += len(target)
        return total / max(count, 1)

    def _logits(self, batch: Any) -> Float[Tensor, "tokens classes"]:
        self._padding.begin(batch)
        logits = real_tokens(logits_of(call(self.model, batch)), self._padding.mask("decoder"))
        return logits.reshape(-1, logits.shape[-1])

    def _drawn(self, tokens: int, draw: int) -> list[int]:
        held = [len(t) for t in self._dense]
        if tokens >= sum(held):
            return list(range(len(held)))
        order, taken = random.Random(draw).sample(range(len(held)), len(held)), []
        while sum(held[i] for i in taken) < tokens:
            taken.append(order[len(taken)])
        return taken


Run = Callable[[int], Tensor]
"""`run(i)`: output of a block (or of the model) for batch i."""


class BlockError:
    """`error(counts, tokens)`: mean over the last quarter of the tokens of ||y - y_dense||_2, y the block's output.

    Source: Liu et al., 2024, arXiv 2408.14690.
    """

    def __init__(self, variants: Variants, sites: Sequence[Site], run: Run, count: int):
        self.variants, self.sizes, self.run, self.count = variants, {s.name: s.size for s in sites}, run, count
        self.dense: dict[int, Tensor] = {}

    @torch.no_grad()
    def __call__(self, counts: Mapping[str, int], tokens: int) -> float:
        """The error when sites read so many of their weights."""
        self.variants.set({name: counts[name] / size for name, size in self.sizes.items()})
        total, seen, rows = 0.0, 0, 0
        for i in range(self.count):
            if rows >= tokens:
                break
            target = self._target(i)
            y = _last_quarter(self.run(i))
            total += float((y.float() - target.float()).norm(dim=-1).sum())
            seen, rows = seen + target[..., 0].numel(), rows + 4 * target[..., 0].numel()
        return total / max(seen, 1)

    def _target(self, i: int) -> Tensor:
        if i not in self.dense:
            names = list(self.sizes)
            now = {n: self.variants.layer(n).rule for n in names}
            self.variants.set(dict.fromkeys(names, 1.0))
            self.dense[i] = _last_quarter(self.run(i)).clone()
            for n, rule in now.items():
                self.variants.layer(n).rule = rule
        return self.dense[i]


def _last_quarter(y: Float[Tensor, "*lead width"]) -> Float[Tensor, "*lead width"]:
    """Of the tokens of a sequence; all rows of what has no sequences."""
    return y[..., y.shape[-2] - max(1, y.shape[-2] // 4) :, :] if y.dim() > 2 else y
