"""Graphs as stacked recurrent networks."""

from __future__ import annotations

import pytest
import torch

from sparseworks.core.errors import BudgetError
from sparseworks.weights.graph_rnn import GraphRNNs
from sparseworks.weights.graphs import barabasi_albert, depths, watts_strogatz

GRAPHS = [watts_strogatz(9, 4, 0.5, seed=1), barabasi_albert(7, 2, seed=2), [(0, 1), (2, 1), (0, 3), (1, 4), (0, 4)]]


def unit_by_unit(networks, number, edges, x):
    """Outputs of one network for one sequence, from the definition; a node's place says where its numbers lie."""
    nodes = 1 + max(max(e) for e in edges)
    layers, place = depths(edges, nodes), networks.places[number]
    layer_of = {v: d for d, members in enumerate(layers) for v in members}
    inside = {v: place[v] - networks.starts[layer_of[v]] for v in range(nodes)}
    readers = {min(e) for e in edges}
    before, outputs = dict.fromkeys(range(nodes), 0.0), []
    for seen in x:
        now = {}
        for v in (v for members in layers for v in members):
            d = layer_of[v]
            total = float(networks.biases[d][number, inside[v]])
            weights = networks.weights[d][number, inside[v]]
            if d == 0:
                total += float(weights @ seen)
            total += sum(float(weights[place[min(e)]]) * now[min(e)] for e in edges if max(e) == v)
            back = networks.feedback[d][number, inside[v]]
            total += sum(float(back[inside[u]]) * before[u] for u in layers[d])
            now[v] = float(torch.tensor(total).tanh())
        before = now
        last = {v: now[v] for v in range(nodes) if v not in readers}
        write = networks.write[number]
        outputs.append(
            [
                float(o + sum(row[place[v]] * h for v, h in last.items()))
                for row, o in zip(write, networks.offset[number], strict=True)
            ]
        )
    return torch.tensor(outputs)


def test_outputs_are_those_of_the_definition():
    torch.manual_seed(0)
    networks = GraphRNNs(GRAPHS, 3, 2)
    for parameter in networks.biases:
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 5, 3)
    out = networks(x)
    assert out.shape == (3, 2, 5, 2)
    with torch.no_grad():
        for number, edges in enumerate(GRAPHS):
            for i in range(2):
                torch.testing.assert_close(
                    out[number, i], unit_by_unit(networks, number, edges, x[i]), rtol=1e-4, atol=1e-5
                )


def test_no_weight_ever_lies_off_the_graph():
    torch.manual_seed(0)
    networks = GraphRNNs(GRAPHS, 4, 3)
    for number, edges in enumerate(GRAPHS):
        nodes = 1 + max(max(e) for e in edges)
        layers = depths(edges, nodes)
        assert sum(int(m[number].sum()) for m in networks.masks[1:]) == len(edges)
        assert int(networks.masks[0][number].sum()) == 4 * len(layers[0])
        assert sum(int(m[number].sum()) for m in networks.feedback_masks) == sum(len(x) ** 2 for x in layers)
    start = [w.detach().clone() for w in (*networks.weights, *networks.feedback)]
    optimizer = torch.optim.Adam(networks.parameters(), lr=0.05)
    x, y = torch.randn(8, 6, 4), torch.randint(0, 3, (8, 6))
    for _ in range(5):
        optimizer.zero_grad()
        networks.loss(x, y).sum().backward()
        optimizer.step()
    masks = [*networks.masks, *networks.feedback_masks]
    for weight, mask, old in zip((*networks.weights, *networks.feedback), masks, start, strict=True):
        assert not weight[~mask].any() and ((weight != old) == mask).all(), (
            "all that is on the graph trains, nothing else"
        )
    assert not networks.write[~networks.reads.unsqueeze(1).expand_as(networks.write)].any()


def test_networks_beside_each_other_do_not_see_each_other():
    torch.manual_seed(0)
    networks = GraphRNNs(GRAPHS, 4, 3)
    x, y = torch.randn(8, 6, 4), torch.randint(0, 3, (8, 6))
    networks.loss(x, y)[1].backward()
    for parameter in networks.parameters():
        assert parameter.grad is not None and not parameter.grad[[0, 2]].any()
    assert networks.weights[0].grad is not None and networks.weights[0].grad[1].any()


def test_targets_of_minus_one_do_not_count():
    torch.manual_seed(0)
    networks = GraphRNNs(GRAPHS[:2], 4, 3)
    x, y = torch.randn(5, 4, 4), torch.randint(0, 3, (5, 4))
    y[:, 2:] = -1
    expected = [torch.nn.functional.cross_entropy(out[:, :2].flatten(0, 1), y[:, :2].flatten()) for out in networks(x)]
    torch.testing.assert_close(networks.loss(x, y), torch.stack(expected))
    torch.testing.assert_close(networks.loss(x[:, :2], y[:, :2]), torch.stack(expected))


def test_refuses_graphs_without_edges():
    for graphs in ([], [GRAPHS[0], []]):
        with pytest.raises(BudgetError):
            GraphRNNs(graphs, 2, 2)
