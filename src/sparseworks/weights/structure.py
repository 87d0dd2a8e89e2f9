"""What the graph of a network looks like in numbers, and how well accuracy can be told from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparseworks.core.errors import BudgetError
from sparseworks.weights.graphs import depths

Edges = Sequence[tuple[int, int]]


def graph_features(edges: Edges) -> dict[str, float]:
    """What a predictor of accuracy may look at: sizes, degrees, layers, clustering, and paths, mean and variance where there is one a node.

    Degrees, clustering and paths are those of the graph without directions, paths those between nodes that one joins;
    layers, sources and sinks those of the network, whose edges run from the lower number to the higher.
    """
    joined = adjacency(edges)
    degree, paths, layers = joined.sum(1).float(), hops(joined), depths(edges, len(joined))
    forward = torch.triu(joined)
    reached = paths[paths > 0].float()
    farthest = paths.max(1).values.float()
    widths = torch.tensor([float(len(x)) for x in layers])
    return {
        "nodes": float(len(joined)),
        "edges": float(len(edges)),
        "density": len(edges) / (len(joined) * (len(joined) - 1) / 2),
        **_moments("degree", degree),
        "degree_largest": float(degree.max()),
        "layers": float(len(layers)),
        "layer_widest": float(widths.max()),
        **_moments("layer_width", widths),
        "sources": float((~forward.any(0)).sum()),
        "sinks": float((~forward.any(1)).sum()),
        **_moments("clustering", clustering(joined)),
        **_moments("path", reached),
        **_moments("eccentricity", farthest),
        "diameter": float(paths.max()),
    }


def adjacency(edges: Edges) -> Bool[Tensor, "nodes nodes"]:
    """Which nodes an edge joins, in either direction.

    Raises:
        BudgetError: no edges.
    """
    if not edges:
        raise BudgetError("A graph without edges has no features; give its edges as pairs of node numbers.")
    nodes = 1 + max(max(e) for e in edges)
    joined = torch.zeros(nodes, nodes, dtype=torch.bool)
    at = torch.tensor(edges)
    joined[at[:, 0], at[:, 1]] = True
    return joined | joined.T


def hops(joined: Bool[Tensor, "nodes nodes"]) -> Int[Tensor, "nodes nodes"]:
    """Edges of the shortest path between any two nodes: 0 from a node to itself, -1 where there is no path."""
    reached = torch.eye(len(joined), dtype=torch.bool)
    found, step = reached.long() - 1, 0
    while True:
        step += 1
        new = ((reached.float() @ joined.float()) > 0) & ~reached
        if not new.any():
            return found
        found[new] = step
        reached |= new


def clustering(joined: Bool[Tensor, "nodes nodes"]) -> Float[Tensor, " nodes"]:
    """Of every node the share of pairs of its neighbours that an edge joins; 0 with fewer than two (Watts and Strogatz, 1998)."""
    a = joined.float()
    degree = a.sum(1)
    return torch.einsum("ij,jk,ki->i", a, a, a) / (degree * (degree - 1)).clamp(min=1)


@dataclass(frozen=True)
class Predicted:
    """How well the structure tells the quality.

    Attributes:
        r2: of predictions for graphs that the forest did not see, 1 - sum (y - p)^2 / sum (y - mean y)^2.
        predictions: for every graph, by the forest of the folds without it.
        importance: feature -> share of the reduction of variance it gave, in a forest of all graphs; the largest first.
    """

    r2: float
    predictions: Float[Tensor, " graphs"]
    importance: dict[str, float]


def predict_quality(
    features: Sequence[Mapping[str, float]],
    quality: Sequence[float],
    *,
    folds: int = 10,
    trees: int = 200,
    seed: int = 0,
) -> Predicted:
    """A random forest's prediction of quality from structure, each graph by trees that saw the other folds only.

    Needs scikit-learn (`pip install "sparseworks[eval]"`).

    Source: Stier, Darji and Granitzer, 2021, arXiv 2107.12917.

    Raises:
        BudgetError: not one quality a graph, fewer graphs than folds, or all of one quality.
    """
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.metrics import r2_score
    from sklearn.model_selection import KFold, cross_val_predict

    if len(features) != len(quality) or len(quality) < folds:
        raise BudgetError(
            f"{folds} folds need as many graphs or more, each with a quality; got {len(features)} graphs and {len(quality)} qualities."
        )
    if len(set(quality)) < 2:
        raise BudgetError("All graphs have one quality: there is nothing to predict. Train them on a harder task.")
    names = list(features[0])
    x, y = [[f[n] for n in names] for f in features], list(quality)
    forest = RandomForestRegressor(trees, random_state=seed)
    told = cross_val_predict(forest, x, y, cv=KFold(folds, shuffle=True, random_state=seed))
    weights = dict(zip(names, map(float, forest.fit(x, y).feature_importances_), strict=True))
    ordered = dict(sorted(weights.items(), key=lambda item: -item[1]))
    return Predicted(float(r2_score(y, told)), torch.from_numpy(told).float(), ordered)


def _moments(name: str, values: Float[Tensor, " n"]) -> dict[str, float]:
    return {f"{name}_mean": float(values.mean()), f"{name}_variance": float(values.var(correction=0))}
