"""Cells of a search space: between any two nodes all candidate operations, mixed by learned weights, until one is chosen."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.core.errors import ModelError

Operations = Mapping[str, Callable[[], nn.Module]]
"""Name -> builds a candidate that keeps the shape of its input."""


class Edge(NamedTuple):
    """A chosen operation from node `start` to node `end`; node 0 is the input of the cell."""

    start: int
    end: int
    operation: str


Genotype = tuple[Edge, ...]


class Zero(nn.Module):
    """0 * x: no connection. Candidates of this class are never chosen."""

    def forward(self, x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch channels *space"]:
        """Zeros."""
        return torch.zeros_like(x)


class Cell(nn.Module):
    """x_j = sum_{i<j} sum_o softmax(alpha_ij)_o o(x_i); the output is x_1 ... x_{n-1} side by side along the channels.

    Source: Liu, Simonyan and Yang, 2019, arXiv 1806.09055 (DARTS).

    Attributes:
        alpha: the architecture, one row an edge in the order (0, 1), (0, 2), (1, 2), (0, 3) ...
    """

    def __init__(self, operations: Operations, nodes: int = 3):
        """All candidates of all edges.

        Args:
            operations: the candidates.
            nodes: of the graph, its input among them.

        Raises:
            ModelError: fewer than two nodes, or nothing to choose from.
        """
        super().__init__()
        if nodes < 2 or len(operations) < 2:
            raise ModelError(f"A cell has at least 2 nodes and 2 operations, got {nodes} and {len(operations)}.")
        self.operations, self.nodes = dict(operations), nodes
        self.pairs = [(i, j) for j in range(1, nodes) for i in range(j)]
        self.edges = nn.ModuleList(nn.ModuleDict({n: build() for n, build in operations.items()}) for _ in self.pairs)
        self.alpha = nn.Parameter(1e-3 * torch.randn(len(self.pairs), len(operations)))

    def forward(self, x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch width *space"]:
        """Width: channels * (nodes - 1)."""
        found, shares = [x], self.alpha.softmax(dim=1)
        for (i, j), edge, share in zip(self.pairs, self.edges, shares, strict=True):
            assert isinstance(edge, nn.ModuleDict)
            for s, operation in zip(share, edge.values(), strict=True):
                _add(found, j, s * operation(found[i]))
        return torch.cat(found[1:], dim=1)

    @torch.no_grad()
    def genotype(self, inputs: int = 2) -> Genotype:
        """The strongest operation of an edge, and the `inputs` strongest edges into every node; `Zero` is never chosen."""
        shares = self.alpha.softmax(dim=1)
        names = list(self.operations)
        built = next(iter(self.edges))
        assert isinstance(built, nn.ModuleDict)
        shares[:, [k for k, n in enumerate(names) if isinstance(built[n], Zero)]] = -1.0
        strength, best = shares.max(dim=1)
        chosen: list[Edge] = []
        for j in range(1, self.nodes):
            into = sorted((e for e, pair in enumerate(self.pairs) if pair[1] == j), key=lambda e: -float(strength[e]))
            chosen += [Edge(*self.pairs[e], names[int(best[e])]) for e in sorted(into[:inputs])]
        return tuple(chosen)


class Chosen(nn.Module):
    """A cell with one operation an edge, newly drawn: x_j = sum over the edges into j of o(x_i)."""

    def __init__(self, operations: Operations, genotype: Genotype):
        """Build the operations.

        Raises:
            ModelError: a node has no edge into it.
        """
        super().__init__()
        ends = {e.end for e in genotype}
        if not ends or ends != set(range(1, max(ends) + 1)):
            raise ModelError(f"Every node of a cell needs an edge into it, got {genotype}.")
        self.genotype = tuple(sorted(genotype, key=lambda e: (e.end, e.start)))
        self.edges = nn.ModuleList(operations[e.operation]() for e in self.genotype)

    def forward(self, x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch width *space"]:
        """As `Cell.forward`."""
        found = [x]
        for edge, operation in zip(self.genotype, self.edges, strict=True):
            _add(found, edge.end, operation(found[edge.start]))
        return torch.cat(found[1:], dim=1)


def cells(model: nn.Module) -> dict[str, Cell]:
    """Name -> cell of everything in `model` that is still to be chosen."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Cell)}


def derive(model: nn.Module, genotypes: Mapping[str, Genotype]) -> nn.Module:
    """A copy of `model` whose cells are replaced by what was chosen, on their device; everything that can be is drawn anew.

    Raises:
        ModelError: a cell has no genotype, or an operation is not of its space.
    """
    found = cells(model)
    missing = [name for name in found if name not in genotypes]
    if missing:
        raise ModelError(f"Cell {missing[0]!r} has no genotype; give one for every cell.")
    derived = copy.deepcopy(model)
    for name, cell in found.items():
        unknown = [e.operation for e in genotypes[name] if e.operation not in cell.operations]
        if unknown:
            raise ModelError(f"Cell {name!r} has no operation {unknown[0]!r}; it has {', '.join(cell.operations)}.")
        parent, _, leaf = name.rpartition(".")
        chosen = Chosen(cell.operations, genotypes[name]).to(cell.alpha.device, cell.alpha.dtype)
        setattr(derived.get_submodule(parent), leaf, chosen)
    for module in derived.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    return derived


def _add(found: list[Tensor], node: int, value: Tensor) -> None:
    if node == len(found):
        found.append(value)
    else:
        found[node] = found[node] + value
