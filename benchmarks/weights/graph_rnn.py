"""Can the accuracy of a sparse recurrent network be told from its graph alone?

Watts-Strogatz and Barabási-Albert graphs of 4 to 16 nodes become stacked recurrent networks, one unit a node, that learn to
tell the next symbol of strings of the Reber grammar. Accuracy is the share of steps on unseen strings at which all symbols that may
follow rank before all others, mean over two initialisations. A random forest predicts it from the graph (ten folds): from all features, without
the number of units that give the outputs, from the numbers of nodes and edges alone, and, as a control, accuracies that were shuffled.

    python benchmarks/weights/graph_rnn.py --threads 1 --json graph_rnn
"""

from __future__ import annotations

import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from common import arguments
from rows import Row, Rows, hardware

from sparseworks.evaluate import Record
from sparseworks.evaluate.reber import Reber, told
from sparseworks.weights.graph_rnn import GraphRNNs
from sparseworks.weights.graphs import Edges, barabasi_albert, watts_strogatz
from sparseworks.weights.structure import graph_features, predict_quality

NODES, LONGEST, STRINGS, TRAINED_ON = (4, 16), 16, 200, 150
BATCH, RATE = 32, 0.02
TASK, METRIC = "Reber grammar, next symbols", "R² of accuracy from structure"


def random_graphs(count: int, seed: int, nodes: tuple[int, int] = NODES) -> list[Edges]:
    """Both families in turn: 2, 4 or 6 neighbours and any share rewired; 1 to 4 edges a new node."""
    draw, graphs = random.Random(seed), list[Edges]()
    for i in range(count):
        n, own = draw.randint(*nodes), draw.randrange(2**31)
        if i % 2:
            graphs.append(watts_strogatz(n, draw.choice([k for k in (2, 4, 6) if k < n]), draw.random(), own))
        else:
            graphs.append(barabasi_albert(n, draw.choice([m for m in (1, 2, 3, 4) if m < n]), own))
    return graphs


def accuracies(graphs: Sequence[Edges], seed: int, steps: int, copies: int) -> list[float]:
    """Of every graph, trained by Adam; graphs of like depth beside each other, since layers are padded."""
    strings = Reber.draw(2 * STRINGS, longest=LONGEST, seed=seed)
    strings = strings[strings.valid == 1]
    train, test = strings[:TRAINED_ON], strings[TRAINED_ON:]
    layers = [graph_features(g)["layers"] for g in graphs]
    order = sorted(range(len(graphs)), key=lambda i: layers[i])
    found = [0.0] * len(graphs)
    for part in torch.tensor(order).tensor_split(max(1, len(graphs) // 20)):
        at = part.tolist()
        torch.manual_seed(seed)
        networks = GraphRNNs([graphs[i] for i in at] * copies, 7, 7)
        fit(networks, train, seed, steps)
        with torch.no_grad():
            right = told(networks(test.one_hot()), test.allowed()).view(copies, -1).mean(0)
        for i, share in zip(at, right.tolist(), strict=True):
            found[i] = share
    return found


def fit(networks: GraphRNNs, strings: Reber, seed: int, steps: int) -> None:
    """Adam with a rate that falls in a straight line, all networks on the same batches, no longer than their longest string."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(networks.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    for _ in range(steps):
        batch = strings[torch.randint(0, len(strings), (BATCH,), generator=generator)]
        longest = int(batch.lengths.max())
        optimizer.zero_grad()
        networks.loss(batch.one_hot()[:, :longest], batch.following()[:, :longest]).sum().backward()
        optimizer.step()
        schedule.step()


def predicted(count: int, seed: int, steps: int, copies: int, density: float) -> list[Row]:
    """R² from each set of features, on the graphs of one seed; `density`: the share of possible edges, mean over all seeds."""
    graphs = random_graphs(count, seed)
    quality, features = accuracies(graphs, seed, steps, copies), [graph_features(g) for g in graphs]
    control = random.Random(seed).sample(quality, len(quality))
    cases = {
        "all features": (features, quality),
        "without the number of outputs": ([without(f, "sinks") for f in features], quality),
        "nodes and edges": ([{k: f[k] for k in ("nodes", "edges")} for f in features], quality),
        "all features, accuracies shuffled": (features, control),
    }
    largest = NODES[1] * (NODES[1] - 1) // 2
    share = statistics.mean(f["density"] for f in features)
    rows = []
    for label, (seen, told_by) in cases.items():
        result = predict_quality(seen, told_by, seed=seed)
        first = ", ".join(f"{k} {v:.2f}" for k, v in list(result.importance.items())[:3])
        record = Record(
            method="random graphs", task=TASK, metric=METRIC, value=result.r2, start="sparse-to-sparse", dynamic=False, when="before",
            densities={"graph": share}, kept=round(statistics.mean(f["edges"] for f in features)), parent=largest,
            structure="graph", epochs=steps * BATCH / TRAINED_ON, examples=TRAINED_ON, hardware=hardware(), seed=seed,
            data=f"{count} graphs, {copies} initialisations each, {steps} steps",
            more={"accuracy": statistics.mean(quality), "accuracy_deviation": statistics.stdev(quality), "importance": first},
        )  # fmt: skip
        rows.append(Row(label, density, record))
    return rows


def without(features: Mapping[str, float], name: str) -> dict[str, float]:
    """All others."""
    return {k: v for k, v in features.items() if k != name}


def main() -> None:
    given = arguments(
        (__doc__ or "").splitlines()[0],
        graphs={"type": int, "default": 120, "help": "networks of a seed"},
        seeds={"type": int, "default": 3, "help": "times that graphs, strings and weights are drawn"},
    )
    count, seeds, steps, copies = (20, 1, 10, 1) if given.quick else (given.graphs, given.seeds, 120, 2)
    setting: dict[str, Any] = {"graphs": count, "steps": steps, "copies": copies, "nodes": NODES, "longest": LONGEST}
    rows = Rows("graph_rnn", setting, quick=given.quick)
    shares = [graph_features(g)["density"] for seed in range(seeds) for g in random_graphs(count, seed)]
    density = round(statistics.mean(shares), 3)
    for seed in range(seeds):
        rows.add(f"seed {seed}", lambda s=seed: predicted(count, s, steps, copies, density))
    rows.show()
    rows.store(given.json)


if __name__ == "__main__":
    main()
