"""Gather statistics of sites by forward hooks: inputs as tokens, padding left out, inputs that are shared counted once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.core.errors import CalibrationError, NonFiniteError, ShapeError
from sparseworks.core.site import Site
from sparseworks.core.stats import Stat, Stats
from sparseworks.stream.matmuls import Matmuls
from sparseworks.stream.padding import Padding, real_tokens
from sparseworks.stream.tree import call, first_tensor

Needs = frozenset[type[Stat]] | Mapping[str, frozenset[type[Stat]]]


def site_inputs(module: nn.Module, site: Site, x: Tensor) -> Float[Tensor, "tokens cols"]:
    """What the site's view is multiplied with: tokens x cols, convolution inputs unfolded channels-last, group by group."""
    if not site.kernel:
        return site.inputs(x)
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    if site.groups > 1 and site.rows is not None:
        each = x.shape[1] // site.groups if x.dim() == len(site.kernel) + 2 else x.shape[0] // site.groups
        g = site.rows[0] * site.groups // module.out_channels
        x = x.narrow(x.dim() - len(site.kernel) - 1, g * each, each)
    return unfolded(module, x)


def unfolded(module: nn.Conv1d | nn.Conv2d, x: Tensor) -> Float[Tensor, "positions kernel_in"]:
    """Patches of a convolution's input as rows, (kernel positions, channels) with the channels last."""
    x = x if x.dim() == len(module.kernel_size) + 2 else x.unsqueeze(0)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    size, stride, dilation = module.kernel_size, module.stride, module.dilation
    if len(size) == 1:
        x, size, stride, dilation = x.unsqueeze(2), (1, *size), (1, *stride), (1, *dilation)
    columns = F.unfold(x, size, dilation=dilation, stride=stride)
    per = columns.reshape(x.shape[0], x.shape[1], size[0] * size[1], -1)
    return per.permute(0, 3, 2, 1).reshape(-1, per.shape[2] * per.shape[1])


@dataclass
class _Feed:
    """One hooked module and the sites that share its input."""

    name: str
    module: nn.Module
    sites: list[Site]
    leader: str | None = None

    @property
    def grouped(self) -> bool:
        """Whether the sites see different channels of the input."""
        return any(s.kernel and s.groups > 1 for s in self.sites)


class Gatherer:
    """Context that feeds statistics while its hooks are in place.

    Sites whose modules receive the very same tensor (queries, keys, values) share one set of input statistics.

    Args:
        model: the model that holds the sites.
        sites: the sites.
        needs: statistic types, one set for all or per site name.
        share: count a tensor once for all the sites that receive it.
    """

    def __init__(self, model: nn.Module, sites: Sequence[Site], needs: Needs, *, share: bool = True):
        self.model, self.sites, self.share = model, list(sites), share
        self.needs = {s.name: (needs[s.name] if isinstance(needs, Mapping) else needs) for s in sites}
        self._padding = Padding(model)
        self._handles: list[Any] = []
        self._matmuls: Matmuls | None = None
        self.reset()

    def reset(self) -> None:
        """Forget everything seen so far."""
        self.stats = {s.name: self._empty(s) for s in self.sites}
        self._leader: dict[str, str] = {}
        self._started: set[str] = set()
        self._recent: deque[tuple[Tensor, int, _Feed]] = deque(maxlen=4)

    def _empty(self, site: Site) -> Stats:
        usable = [k for k in self.needs[site.name] if k.source in ("input", "output")]
        return Stats.collecting(usable, site.shape, site=site.name)

    def __enter__(self) -> Gatherer:
        feeds: dict[str, _Feed] = {}
        unhookable = []
        for site in self.sites:
            module = self.model.get_submodule(site.module)
            if (
                site.kind == "expert"
                or isinstance(module, nn.MultiheadAttention)
                or _inside_attention(self.model, site)
            ):
                unhookable.append(site)
            elif len(self.stats[site.name]):
                feeds.setdefault(site.module, _Feed(site.module, module, [])).sites.append(site)
        self._handles = [f.module.register_forward_hook(self._hook(f), with_kwargs=True) for f in feeds.values()]
        for owner in sorted({s.module for s in unhookable if s.kind == "expert"}):
            self._handles += self._padding.around(owner, self.model.get_submodule(owner))
        if unhookable:
            self._matmuls = Matmuls(self.model, unhookable, lambda site, x: self._feed(site, "input", x))
            self._matmuls.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._matmuls:
            self._matmuls.__exit__(*error)

    def begin(self, batch: Any = None, piece: slice | None = None) -> None:
        """Start a batch (or some rows of one): its padding masks hold until the next."""
        self._padding.begin(batch, piece)
        self._recent.clear()

    def result(self) -> dict[str, Stats]:
        """Statistics per site; followers of a shared input see their leader's."""
        done = {}
        for site in self.sites:
            leader = self._leader.get(site.name, site.name)
            own = [s for s in self.stats[site.name] if s.source != "input"]
            shared = [s.as_rows(site.shape[0]) for s in self.stats[leader] if s.source == "input"]
            done[site.name] = Stats([*own, *shared], site=site.name)
        return done

    # -- inside ---------------------------------------------------------------------------------------------------

    def _hook(self, feed: _Feed):
        wants_output = any(s.source == "output" for site in feed.sites for s in self.stats[site.name])

        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            x = first_tensor(args)
            x = first_tensor(kwargs) if x is None else x
            if x is None:
                raise CalibrationError(
                    f"Module {feed.name!r} was called without a floating tensor; leave its sites out with `skip`."
                )
            mask = self._padding.mask(feed.name)
            self._take_input(feed, x, mask)
            out = first_tensor(output) if wants_output else None
            if out is not None:
                for site in feed.sites:
                    self._feed(site, "output", site_outputs(real_tokens(out, mask), site))

        return hook

    def _take_input(self, feed: _Feed, x: Tensor, mask: Tensor | None) -> None:
        if feed.grouped or not self._alike(feed):
            for site in feed.sites:
                self._feed(site, "input", site_inputs(feed.module, site, real_tokens(x, mask)))
        elif self._leads(feed, x):
            self._feed(feed.sites[0], "input", site_inputs(feed.module, feed.sites[0], real_tokens(x, mask)))

    def _leads(self, feed: _Feed, x: Tensor) -> bool:
        """Whether `feed` counts this input itself; decided on its first batch and checked on all others."""
        first = feed.sites[0].name
        holder = self._holder(feed, x)
        if feed.name not in self._started:
            self._started.add(feed.name)
            feed.leader = holder.sites[0].name if holder else first
            self._leader.update({s.name: feed.leader for s in feed.sites})
        elif feed.leader != first and (holder is None or holder.sites[0].name != feed.leader):
            raise Unshared
        if feed.leader == first:
            self._recent.append((x, x._version, feed))
        return feed.leader == first

    def _holder(self, feed: _Feed, x: Tensor) -> _Feed | None:
        """The feed that already counted this very tensor, if it wants the same statistics."""
        if not self.share or feed.sites[0].kernel:
            return None
        for seen, version, other in self._recent:
            if seen is x and version == x._version and not other.sites[0].kernel:
                return other if self._wants(other.sites[0]) == self._wants(feed.sites[0]) else None
        return None

    def _alike(self, feed: _Feed) -> bool:
        return all(self._wants(s) == self._wants(feed.sites[0]) for s in feed.sites)

    def _wants(self, site: Site) -> set[type[Stat]]:
        return {k for k in self.needs[site.name] if k.source == "input"}

    def _feed(self, site: Site, source: str, x: Tensor) -> None:
        try:
            self.stats[site.name].feed(source, x)
        except (ShapeError, NonFiniteError) as error:
            raise type(error)(f"Site {site.name!r}: {error}") from None


class Unshared(Exception):  # noqa: N818 - a signal: gather again without sharing
    """Two modules shared an input in one batch and not in another."""


def site_outputs(out: Tensor, site: Site) -> Float[Tensor, "tokens rows"]:
    """What the site's view gives: tokens x rows; of a convolution one token a position."""
    if site.kernel:
        out = out.movedim(-len(site.kernel) - 1, -1)
    out = out.reshape(-1, out.shape[-1])
    return out if site.rows is None else out[:, site.rows[0] : site.rows[1]]


def _inside_attention(model: nn.Module, site: Site) -> bool:
    """torch's MultiheadAttention uses its output projection without calling it."""
    parent = site.module.rpartition(".")[0]
    return bool(site.module) and isinstance(model.get_submodule(parent), nn.MultiheadAttention)


@torch.no_grad()
def gather(model: nn.Module, sites: Sequence[Site], needs: Needs, batches: Iterable[Any]) -> dict[str, Stats]:
    """Statistics of `sites` over whole forward passes of `model`, for the types fed by inputs or outputs.

    Raises:
        CalibrationError: no batches.
    """
    batches = batches if isinstance(batches, Sequence) else list(batches)
    if not batches:
        raise CalibrationError("The calibration set is empty; give at least one batch.")
    for share in (True, False):
        gatherer = Gatherer(model, sites, needs, share=share)
        try:
            with gatherer:
                for batch in batches:
                    gatherer.begin(batch)
                    call(model, batch)
            return gatherer.result()
        except Unshared:
            continue
    raise AssertionError("unreachable: without sharing nothing can be unshared")
