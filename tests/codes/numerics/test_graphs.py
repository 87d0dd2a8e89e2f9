from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from sparseworks.codes.numerics.graphs import DynamicSparsifier, Graph
from sparseworks.core.errors import BudgetError, ShapeError

SIDE = 24


def grid(side=SIDE, extra=0, seed=0):
    rng = np.random.default_rng(seed)
    at = lambda r, c: r * side + c  # noqa: E731
    edges = [(at(r, c), at(r, c + 1), 1.0) for r in range(side) for c in range(side - 1)]
    edges += [(at(r, c), at(r + 1, c), 1.0) for r in range(side - 1) for c in range(side)]
    return edges + between(rng, side * side, extra, {(u, v) for u, v, _ in edges})


def between(rng, nodes, count, taken):
    """Random short and long edges that are not there yet; most are short, so that many are redundant."""
    found = []
    while len(found) < count:
        u = int(rng.integers(nodes))
        v = int(rng.integers(nodes)) if rng.random() < 0.15 else u + int(rng.choice([SIDE + 1, SIDE - 1, 2, 2 * SIDE]))
        edge = (min(u, v), max(u, v))
        if edge[0] != edge[1] and edge[1] < nodes and edge not in taken:
            taken.add(edge)
            found.append((*edge, float(rng.uniform(0.5, 2))))
    return found


def laplacian(graph):
    u, v, w = (np.array(x) for x in zip(*graph.edges(), strict=True))
    a = coo_matrix((w, (u, v)), (graph.nodes, graph.nodes)).toarray()
    a += a.T
    return np.diag(a.sum(1)) - a


def condition(g, p):
    """Largest over smallest generalised eigenvalue of (L_G, L_P), the constant vector taken out."""
    values = scipy.linalg.eigvalsh(laplacian(g)[1:, 1:], laplacian(p)[1:, 1:])
    return values[-1] / values[0]


def connected(graph):
    u, v, w = zip(*graph.edges(), strict=True)
    return connected_components(coo_matrix((w, (u, v)), (graph.nodes,) * 2), directed=False)[0] == 1


def few_cycles(edges, seed):
    """A spanning tree and a tenth as many of the other edges: what a sparsifier looks like."""
    rng, nodes = np.random.default_rng(seed), SIDE * SIDE
    u, v, w = (np.array(x) for x in zip(*edges, strict=True))
    tree = minimum_spanning_tree(coo_matrix((rng.uniform(1, 1.01, len(w)) / w, (u, v)), (nodes, nodes))).tocoo()
    on = {(int(a), int(b)) for a, b in zip(tree.row, tree.col, strict=True)}
    rest = [e for e in edges if e[:2] not in on]
    return [e for e in edges if e[:2] in on] + [rest[i] for i in rng.permutation(len(rest))[: nodes // 10]]


@pytest.mark.parametrize("seed", [0, 1])
def test_insertions_keep_what_matters_and_few_of_the_rest(seed):
    edges, nodes = grid(seed=seed), SIDE * SIDE
    start = few_cycles(edges, seed)
    new = between(np.random.default_rng(seed), nodes, 60, {(u, v) for u, v, _ in edges})
    dynamic = DynamicSparsifier(Graph(nodes, edges), Graph(nodes, start), distortion=40.0)
    taken = sum(dynamic.insert(*e) for e in new)
    assert 0 < taken <= 0.2 * len(new)
    chance = []
    for draw in range(4):
        random = Graph(nodes, start)
        for i in np.random.default_rng(draw).permutation(len(new))[:taken]:
            random.add(*new[i])
        chance.append(condition(dynamic.graph, random))
    assert condition(dynamic.graph, dynamic.sparsifier) < 0.9 * np.mean(chance)


def test_deletions_leave_the_sparsifier_connected():
    rng = np.random.default_rng(0)
    edges = grid(extra=80, seed=1)
    nodes = SIDE * SIDE
    # The sparsifier begins as a tree: a deletion of any of its edges cuts it.
    tree = minimum_spanning_tree(
        coo_matrix(
            (1 / np.array([w for *_, w in edges]), ([u for u, *_ in edges], [v for _, v, _ in edges])), (nodes,) * 2
        )
    ).tocoo()
    graph = Graph(nodes, edges)
    sparse = Graph(
        nodes, [(int(u), int(v), graph.weight_of(int(u), int(v))) for u, v in zip(tree.row, tree.col, strict=True)]
    )
    dynamic = DynamicSparsifier(graph, sparse, walkers=128)
    mended = 0
    for _ in range(40):
        u, v, _ = sparse.edges()[int(rng.integers(len(sparse.edges())))]
        mended += bool(dynamic.delete(u, v))
        assert connected(sparse)
        assert all(edge[:2] in graph for edge in sparse.edges())
    assert mended >= 35  # paths bring cycles, whose edges need no mending
    u, v, _ = next(e for e in graph.edges() if e[:2] not in sparse)
    assert dynamic.delete(u, v) == []


def test_an_edge_that_is_there_grows_in_graph_and_sparsifier():
    edges = [(0, 1, 1.0), (1, 2, 1.0), (0, 2, 1.0)]
    kept = DynamicSparsifier(Graph(3, edges), Graph(3, edges[:2]))
    assert kept.insert(0, 1, 0.5) and kept.graph.weight_of(0, 1) == kept.sparsifier.weight_of(0, 1) == 1.5
    assert not kept.insert(0, 2, 0.5) and kept.graph.weight_of(0, 2) == 1.5 and (0, 2) not in kept.sparsifier


def test_walkers_do_not_turn_back():
    path = Graph(4, [(0, 1, 1.0), (1, 2, 1.0), (2, 3, 1.0)])
    dynamic = DynamicSparsifier(path, path, walkers=16)
    assert dynamic._walk(path, 0, 3, np.inf, first=True).tolist() == [0, 1, 2, 3]
    assert dynamic._walk(path, 0, 3, 2.5, first=True) is None  # its resistance is 3
    star = Graph(5, [(0, i, 1.0) for i in range(1, 5)])
    draws = dynamic._draw(star, np.zeros(4000, dtype=np.int64), np.full(4000, 2))
    counts = np.bincount(star.near[0, draws], minlength=5)
    assert counts[2] == 0 and min(counts[[1, 3, 4]]) > 1200


def test_graphs_grow_and_shrink():
    g = Graph(30, [(0, i, float(i)) for i in range(1, 20)])
    g.add(5, 0, 2.0)
    assert g.weight_of(0, 5) == 7 and g.weight_of(5, 0) == 7 and (0, 25) not in g
    assert g.remove(0, 3) == 3 and (3, 0) not in g and len(g.edges()) == 18
    for bad in ((1, 1, 1.0), (0, 30, 1.0), (-1, 2, 1.0)):
        with pytest.raises(ShapeError):
            g.add(*bad)
    with pytest.raises(BudgetError):
        g.add(1, 2, 0.0)
    with pytest.raises(ShapeError):
        g.remove(1, 2)
    with pytest.raises(BudgetError):
        DynamicSparsifier(g, g, distortion=0.0)
    with pytest.raises(ShapeError):
        DynamicSparsifier(g, Graph(3))
