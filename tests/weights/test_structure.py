"""Features of graphs, by hand and beside networkx, and a forest that predicts from them."""

from __future__ import annotations

import pytest
import torch

from sparseworks.core.errors import BudgetError
from sparseworks.weights.graphs import barabasi_albert, watts_strogatz
from sparseworks.weights.structure import adjacency, clustering, graph_features, hops, predict_quality

KITE = [(0, 1), (0, 2), (1, 2), (2, 3), (3, 4)]  # a triangle with a tail


def test_features_of_a_kite_by_hand():
    found = graph_features(KITE)
    assert found["nodes"] == 5 and found["edges"] == 5 and found["density"] == 0.5
    assert found["degree_mean"] == 2 and found["degree_variance"] == pytest.approx((0 + 0 + 1 + 0 + 1) / 5)
    assert found["degree_largest"] == 3
    assert found["layers"] == 5 and found["layer_widest"] == 1 and found["layer_width_variance"] == 0
    assert found["sources"] == 1 and found["sinks"] == 1
    assert found["clustering_mean"] == pytest.approx((1 + 1 + 1 / 3) / 5)
    assert found["path_mean"] == pytest.approx((1 + 1 + 2 + 3 + 1 + 2 + 3 + 1 + 2 + 1) / 10)
    assert found["diameter"] == 3
    assert found["eccentricity_mean"] == pytest.approx((3 + 3 + 2 + 2 + 3) / 5)


def test_features_of_a_star_by_hand():
    found = graph_features([(0, v) for v in range(1, 5)])
    assert found["layers"] == 2 and found["layer_widest"] == 4 and found["layer_width_mean"] == 2.5
    assert found["sources"] == 1 and found["sinks"] == 4 and found["clustering_mean"] == 0
    assert found["path_mean"] == pytest.approx((4 * 1 + 6 * 2) / 10) and found["diameter"] == 2


def test_paths_of_a_graph_in_two_parts():
    found = hops(adjacency([(0, 1), (1, 2), (3, 4)]))
    assert found.tolist() == [
        [0, 1, 2, -1, -1],
        [1, 0, 1, -1, -1],
        [2, 1, 0, -1, -1],
        [-1, -1, -1, 0, 1],
        [-1, -1, -1, 1, 0],
    ]
    assert graph_features([(0, 1), (1, 2), (3, 4)])["path_mean"] == pytest.approx((1 + 2 + 1 + 1) / 4)


@pytest.mark.parametrize("seed", range(4))
def test_features_equal_those_of_networkx(seed):
    nx = pytest.importorskip("networkx")
    for edges in (watts_strogatz(24, 4, 0.4, seed), barabasi_albert(24, 2, seed)):
        graph = nx.Graph(edges)
        joined = adjacency(edges)
        assert clustering(joined).tolist() == pytest.approx([nx.clustering(graph, v) for v in range(24)])
        paths = hops(joined)
        for v, reached in nx.all_pairs_shortest_path_length(graph):
            assert {u: d for u, d in enumerate(paths[v].tolist()) if d >= 0} == reached
        assert graph_features(edges)["density"] == pytest.approx(nx.density(graph))


def test_the_forest_finds_what_matters_and_nothing_in_noise():
    graphs = [barabasi_albert(6 + i % 12, 1 + i % 3, i) for i in range(40)]
    features = [graph_features(g) for g in graphs]
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(40, generator=generator).tolist()
    found = predict_quality(features, [f["edges"] + n for f, n in zip(features, noise, strict=True)], folds=4, trees=15)
    assert found.r2 > 0.8 and next(iter(found.importance)) in ("edges", "nodes")
    assert sum(found.importance.values()) == pytest.approx(1) and found.predictions.shape == (40,)
    assert predict_quality(features, noise, folds=4, trees=15).r2 < 0.2


def test_refuses_what_cannot_be_predicted():
    features = [graph_features(KITE)] * 10
    with pytest.raises(BudgetError):
        graph_features([])
    with pytest.raises(BudgetError):
        predict_quality(features, [1.0] * 9)
    with pytest.raises(BudgetError):
        predict_quality(features[:4], [1.0, 2.0, 3.0, 4.0])
    with pytest.raises(BudgetError):
        predict_quality(features, [1.0] * 10)
