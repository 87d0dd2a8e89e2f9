"""Find the repeated blocks of a model by structure alone: the longest outermost lists of modules of one class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from sparseworks.core.site import Site
from sparseworks.stream.sites import sites as find_sites


@dataclass(frozen=True)
class Block:
    """One repeated block.

    Attributes:
        name: dotted name of its module ("" = the whole model).
        index: position over all stacks, in order of registration.
        stack: dotted name of the list it lies in.
    """

    name: str
    index: int
    stack: str

    def module(self, model: nn.Module) -> nn.Module:
        """The block's module."""
        return model.get_submodule(self.name)

    def holds(self, name: str) -> bool:
        """Whether the module, parameter or site called `name` lies inside."""
        return self.name == "" or name == self.name or name.startswith((self.name + ".", self.name + "["))


def blocks(model: nn.Module, sites: Sequence[Site] | None = None) -> list[Block]:
    """The repeated blocks of `model`, stack after stack; one block, the whole model, where nothing repeats.

    A stack is a ModuleList or Sequential of at least two modules of one class that have submodules of their own. The
    outermost is taken, so experts inside a layer are not blocks. Stacks must hold at least half of the sites together.
    """
    sites = find_sites(model) if sites is None else sites
    found = [(stack, child) for stack, children in _stacks("", model) for child in children]
    listed = [Block(name, i, stack) for i, (stack, name) in enumerate(found)]
    inside = [s for s in sites if any(b.holds(s.parameter) for b in listed)]
    if not listed or 2 * len(inside) < len(sites):
        return [Block("", 0, "")]
    return listed


def block_of(name: str, listed: Sequence[Block]) -> int:
    """Index of the block that holds the parameter or site `name`, -1 outside all of them."""
    return next((b.index for b in listed if b.name and b.holds(name)), -1)


def _stacks(path: str, module: nn.Module) -> Iterator[tuple[str, list[str]]]:
    children = list(module.named_children())
    if isinstance(module, nn.ModuleList | nn.Sequential) and _repeats([c for _, c in children]):
        yield path, [f"{path}.{name}" if path else name for name, _ in children]
        return
    for name, child in children:
        yield from _stacks(f"{path}.{name}" if path else name, child)


def _repeats(children: Sequence[nn.Module]) -> bool:
    return (
        len(children) >= 2
        and len({type(c) for c in children}) == 1
        and len({id(c) for c in children}) == len(children)
        and all(any(True for _ in c.children()) and any(True for _ in c.parameters()) for c in children)
    )
