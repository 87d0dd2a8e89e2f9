"""What goes into and comes out of the sites while a model trains, for scores that need it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sparseworks.core.site import Site
from sparseworks.core.stats import Stat, Stats
from sparseworks.stream.gather import site_inputs, site_outputs
from sparseworks.stream.tree import first_tensor

SEEN = ("input", "output", "layer")
"""Sources of statistics that training gives: inputs, outputs, and both beside each other (tokens x (cols + rows))."""


class Watch:
    """Hooks that feed statistics of every site in training passes; padding counts as tokens.

    Attributes:
        stats: site name -> statistics since the last `reset`.
    """

    def __init__(self, model: nn.Module, sites: Sequence[Site], kinds: frozenset[type[Stat]]):
        """Nothing is hooked before `start`, nor where no statistic is asked for."""
        self.model, self.sites = model, list(sites)
        self.kinds = frozenset(k for k in kinds if k.source in SEEN)
        self._handles: list[RemovableHandle] = []
        self.reset()

    def start(self, open: Callable[[], bool]) -> None:
        """Feed from now on, in training passes while `open()`."""
        owners = {s.module: self.model.get_submodule(s.module) for s in self.sites} if self.kinds else {}
        self._handles = [m.register_forward_hook(self._hook(n, open), with_kwargs=True) for n, m in owners.items()]

    def reset(self) -> None:
        """Forget what was seen."""
        self.stats = {s.name: Stats.collecting(self.kinds, s.shape, site=s.name) for s in self.sites}

    def agree(self) -> None:
        """Take in what every rank has seen of its share of the batch, so that all choose the same supports."""
        if not self.kinds or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            return
        for stat in (stat for stats in self.stats.values() for stat in stats):
            ranks: list[dict[str, Tensor]] = [{} for _ in range(dist.get_world_size())]
            dist.all_gather_object(ranks, {name: tensor.cpu() for name, tensor in stat.state().items()})
            stat.load(ranks[0])
            for other in ranks[1:]:
                twin = type(stat)(stat.rows, stat.cols)
                twin.load(other)
                stat.merge(twin)

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, owner: str, open: Callable[[], bool]):
        members = [s for s in self.sites if s.module == owner]

        @torch.no_grad()
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
            x, y = first_tensor((*args, *kwargs.values())), first_tensor(output)
            if not module.training or x is None or y is None or not open():
                return
            for site in members:
                self._feed(site, site_inputs(module, site, x.detach()), site_outputs(y.detach(), site))

        return hook

    def _feed(self, site: Site, x: Tensor, y: Tensor) -> None:
        stats = self.stats[site.name]
        stats.feed("input", x)
        stats.feed("output", y)
        stats.feed("layer", torch.cat([x, y], dim=1))
