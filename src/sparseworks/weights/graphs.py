"""Random graphs as the connectivity of a network: small worlds and hubs, oriented into a directed acyclic graph."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.core.errors import BudgetError

Edges = list[tuple[int, int]]


def watts_strogatz(nodes: int, neighbours: int, rewire: float, seed: int = 0) -> Edges:
    """A ring in which every node knows `neighbours` others, each edge moved to a random end with probability `rewire`.

    Source: Watts and Strogatz, 1998.

    Raises:
        BudgetError: an odd number of neighbours, or as many as nodes.
    """
    if neighbours % 2 or not 0 < neighbours < nodes:
        raise BudgetError(f"A ring of {nodes} takes an even number of neighbours below that, got {neighbours}.")
    draw, edges = random.Random(seed), set()
    for step in range(1, neighbours // 2 + 1):
        for a in range(nodes):
            edges.add(_pair(a, (a + step) % nodes))
    for a, b in sorted(edges):
        free = [c for c in range(nodes) if c != a and _pair(a, c) not in edges]
        if free and draw.random() < rewire:
            edges.remove((a, b))
            edges.add(_pair(a, draw.choice(free)))
    return sorted(edges)


def barabasi_albert(nodes: int, each: int, seed: int = 0) -> Edges:
    """Every new node joins `each` older ones, drawn in proportion to their degree (Barabási and Albert, 1999).

    Raises:
        BudgetError: `each` is not in [1, nodes).
    """
    if not 1 <= each < nodes:
        raise BudgetError(f"A new node joins between 1 and {nodes - 1} others, got {each}.")
    draw, ends, edges = random.Random(seed), list(range(each)), []
    for node in range(each, nodes):
        joined: set[int] = set()
        while len(joined) < each:
            joined.add(draw.choice(ends))
        edges += [(other, node) for other in sorted(joined)]
        ends += [*joined, *[node] * each]
    return edges


class GraphNet(nn.Module):
    """A network with one unit a node: h_v = relu(sum over edges (u, v), u < v, of w_uv h_u + inputs of v + b_v).

    Edges run from the lower number to the higher, so the graph has no cycle; a node's layer is one more than the deepest of
    those it reads. Nodes that read none take the inputs, those that no one reads give the outputs; nodes of one layer are one
    masked matrix product.

    Source: Stier, Darji and Granitzer, 2021, "Experiments on properties of hidden structures of sparse neural networks".
    """

    mask: Tensor

    def __init__(self, edges: Sequence[tuple[int, int]], inputs: int, outputs: int):
        super().__init__()
        if not edges:
            raise BudgetError("A network needs edges.")
        nodes = 1 + max(max(e) for e in edges)
        self.layers = depths(edges, nodes)
        mask = torch.zeros(nodes, nodes, dtype=torch.bool)
        for a, b in edges:
            mask[max(a, b), min(a, b)] = True
        self.register_buffer("mask", mask)
        self.weight = nn.Parameter(
            torch.randn(nodes, nodes) * mask / mask.sum(1, keepdim=True).clamp(min=1).sqrt() * 2**0.5
        )
        self.bias = nn.Parameter(torch.zeros(nodes))
        self.first = [v for v in range(nodes) if not mask[v].any()]
        self.last = [v for v in range(nodes) if not mask[:, v].any()]
        self.read = nn.Linear(inputs, len(self.first))
        self.write = nn.Linear(len(self.last), outputs)

    def forward(self, x: Float[Tensor, "n inputs"]) -> Float[Tensor, "n outputs"]:
        """Layer after layer of nodes."""
        weight, h = self.weight * self.mask, x.new_zeros(len(x), len(self.bias))
        h = h.index_copy(1, torch.tensor(self.first, device=x.device), self.read(x).relu())
        for members in self.layers[1:]:
            at = torch.tensor(members, device=x.device)
            h = h.index_copy(1, at, (h @ weight[at].T + self.bias[at]).relu())
        return self.write(h[:, self.last])


def depths(edges: Sequence[tuple[int, int]], nodes: int) -> list[list[int]]:
    """Nodes by layer: one more than the deepest node they read; layer 0 reads none."""
    before: list[list[int]] = [[] for _ in range(nodes)]
    for a, b in edges:
        before[max(a, b)].append(min(a, b))
    depth: list[int] = []
    for v in range(nodes):
        depth.append(1 + max((depth[u] for u in before[v]), default=-1))
    return [[v for v in range(nodes) if depth[v] == d] for d in range(max(depth) + 1)]


def _pair(a: int, b: int) -> tuple[int, int]:
    return (min(a, b), max(a, b))
