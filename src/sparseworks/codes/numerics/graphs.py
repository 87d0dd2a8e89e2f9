"""Keep a sparsifier of a graph under insertions and deletions of edges, by random walks in it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from sparseworks.core.errors import BudgetError, ShapeError

Edge = tuple[int, int, float]
_ROOM = 8


class Graph:
    """An undirected weighted graph whose neighbours lie in padded rows, so that many walkers step at once.

    Args:
        nodes: how many.
        edges: (u, v, weight), weights positive; a repeated edge adds up.

    Raises:
        ShapeError: a node out of range, or a loop.
        BudgetError: a weight that is not positive.
    """

    def __init__(self, nodes: int, edges: Iterable[Edge] = ()):
        self.nodes = nodes
        self.degree = np.zeros(nodes, dtype=np.int64)
        self.near = np.full((nodes, _ROOM), -1, dtype=np.int64)
        self.weight = np.zeros((nodes, _ROOM))
        for u, v, w in edges:
            self.add(u, v, w)

    def add(self, u: int, v: int, weight: float) -> None:
        """Add an edge, or add to its weight."""
        if u == v or not 0 <= min(u, v) <= max(u, v) < self.nodes:
            raise ShapeError(f"({u}, {v}) is no edge of a graph of {self.nodes} nodes.")
        if not 0 < weight < float("inf"):
            raise BudgetError(f"The edge ({u}, {v}) has weight {weight}; weights are positive.")
        for a, b in ((u, v), (v, u)):
            at = self._place(a, b)
            if at is None:
                if self.degree[a] == self.near.shape[1]:
                    self.near = np.pad(self.near, ((0, 0), (0, _ROOM)), constant_values=-1)
                    self.weight = np.pad(self.weight, ((0, 0), (0, _ROOM)))
                at = int(self.degree[a])
                self.near[a, at] = b
                self.degree[a] += 1
            self.weight[a, at] += weight

    def remove(self, u: int, v: int) -> float:
        """Take an edge out; gives its weight.

        Raises:
            ShapeError: there is no such edge.
        """
        weight = 0.0
        for a, b in ((u, v), (v, u)):
            at = self._place(a, b)
            if at is None:
                raise ShapeError(f"({u}, {v}) is not an edge.")
            last = int(self.degree[a]) - 1
            weight = float(self.weight[a, at])
            self.near[a, at], self.weight[a, at] = self.near[a, last], self.weight[a, last]
            self.near[a, last], self.weight[a, last] = -1, 0.0
            self.degree[a] = last
        return weight

    def __contains__(self, edge: tuple[int, int]) -> bool:
        return self._place(*edge) is not None

    def edges(self) -> list[Edge]:
        """Every edge once, u < v."""
        rows, places = np.nonzero(self.near >= 0)
        near = self.near[rows, places]
        once = rows < near
        return list(
            zip(rows[once].tolist(), near[once].tolist(), self.weight[rows, places][once].tolist(), strict=True)
        )

    def weight_of(self, u: int, v: int) -> float:
        """Its weight, 0 if there is no such edge."""
        at = self._place(u, v)
        return 0.0 if at is None else float(self.weight[u, at])

    def _place(self, a: int, b: int) -> int | None:
        at = np.flatnonzero(self.near[a, : self.degree[a]] == b)
        return int(at[0]) if len(at) else None


@dataclass
class DynamicSparsifier:
    """A spectral sparsifier P of a graph G that follows it.

    Insertion (u, v, w): non-backtracking walkers go from u in P; one dies when the resistance sum 1 / w of its path reaches
    `distortion` / w. If one comes to v, the edge is redundant and left out (or folded into that path); else it joins P.
    Deletion of an edge of P: walkers go from u in G; of the paths that reach v the one of least resistance joins P.

    Attributes:
        graph, sparsifier: G and P; P is a subgraph of G with weights of its own.
        distortion: largest w R of an edge that is left out.
        walkers, steps: of one search.
        fold: add a redundant edge's weight to the edges of the path that replaces it; on grids that makes the condition number worse.
        seed: of the walks.

    Source: Yuan, Aghdaei, Zhang and Feng, 2025 (dyGRASS).
    """

    graph: Graph
    sparsifier: Graph
    distortion: float = 10.0
    walkers: int = 512
    steps: int = 100
    fold: bool = False
    seed: int = 0
    _random: np.random.Generator = field(init=False, repr=False)

    def __post_init__(self):
        if self.graph.nodes != self.sparsifier.nodes:
            raise ShapeError(f"The graph has {self.graph.nodes} nodes, its sparsifier {self.sparsifier.nodes}.")
        if self.distortion <= 0 or self.walkers < 1 or self.steps < 1:
            raise BudgetError(
                f"Distortion must be positive, walkers and steps at least 1: {self.distortion}, {self.walkers}, {self.steps}."
            )
        self._random = np.random.default_rng(self.seed)

    def insert(self, u: int, v: int, weight: float) -> bool:
        """Insert an edge into G; whether it was taken into P. An edge that G has grows in both, without a search."""
        known = (u, v) in self.graph
        self.graph.add(u, v, weight)
        if known:
            held = (u, v) in self.sparsifier
            if held:
                self.sparsifier.add(u, v, weight)
            return held
        path = self._walk(self.sparsifier, u, v, self.distortion / weight, first=True)
        if path is None:
            self.sparsifier.add(u, v, weight)
            return True
        if self.fold:
            for a, b in itertools.pairwise(path):
                self.sparsifier.add(int(a), int(b), weight)
        return False

    def delete(self, u: int, v: int) -> list[tuple[int, int]]:
        """Delete an edge from G, and from P if it is there; gives the edges that joined P to mend it.

        Raises:
            ShapeError: G has no such edge.
        """
        self.graph.remove(u, v)
        if (u, v) not in self.sparsifier:
            return []
        self.sparsifier.remove(u, v)
        path = self._walk(self.graph, u, v, np.inf, first=False)
        path = self._shortest(u, v) if path is None else path
        added = []
        for a, b in itertools.pairwise(path):
            if (int(a), int(b)) not in self.sparsifier:
                self.sparsifier.add(int(a), int(b), self.graph.weight_of(int(a), int(b)))
                added.append((int(a), int(b)))
        return added

    def _walk(self, graph: Graph, u: int, v: int, limit: float, first: bool) -> np.ndarray | None:
        """The path of least resistance that a walker found from u to v; with `first` the search ends with the step that reached v."""
        at, before = np.full(self.walkers, u), np.full(self.walkers, -1)
        resistance, trail = np.zeros(self.walkers), np.full((self.steps + 1, self.walkers), u)
        alive = np.arange(self.walkers)
        best, found = np.inf, None
        for step in range(1, self.steps + 1):
            place = self._draw(graph, at[alive], before[alive])
            alive, place = alive[place >= 0], place[place >= 0]
            before[alive], here = at[alive], at[alive]
            resistance[alive] += 1 / graph.weight[here, place]
            at[alive] = graph.near[here, place]
            trail[step, alive] = at[alive]
            alive = alive[resistance[alive] < min(limit, best)]
            home = alive[at[alive] == v]
            if len(home):
                winner = home[resistance[home].argmin()]
                best, found = float(resistance[winner]), trail[: step + 1, winner].copy()
                if first:
                    break
                alive = alive[at[alive] != v]
            if not len(alive):
                break
        return found

    def _draw(self, graph: Graph, at: np.ndarray, before: np.ndarray) -> np.ndarray:
        """The place of a neighbour that is not the one before, uniform; -1 at a dead end.

        Drawn among all but the last place; whoever drew the previous node takes the last place instead.
        """
        degree = graph.degree[at]
        back = before >= 0
        choices = degree - back
        place = (self._random.random(len(at)) * np.maximum(choices, 1)).astype(np.int64)
        place = np.where(back & (graph.near[at, place] == before), degree - 1, place)
        return np.where(choices > 0, place, -1)

    def _shortest(self, u: int, v: int) -> list[int]:
        """Fewest edges from u to v in G, where no walker arrived; only the start if G fell apart."""
        came, ring = {u: u}, [u]
        while ring and v not in came:
            ring = [
                b
                for a in ring
                for b in self.graph.near[a, : self.graph.degree[a]].tolist()
                if came.setdefault(b, a) == a and b != u
            ]
        if v not in came:
            return [u]
        path = [v]
        while path[-1] != u:
            path.append(came[path[-1]])
        return path[::-1]
