"""Cells: the mixture, what is chosen of it, and the network that is built of the choice."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparseworks.core.errors import ModelError
from sparseworks.weights.search import Cell, Chosen, Edge, Zero, cells, derive

SPACE = {"zero": Zero, "skip": nn.Identity, "conv": lambda: nn.Conv2d(4, 4, 3, padding=1)}


def cell(nodes=3):
    torch.manual_seed(0)
    return Cell(SPACE, nodes)


def test_an_edge_is_the_mixture_of_its_operations():
    made, x = cell(), torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        made.alpha.copy_(torch.randn(3, 3))
    shares = made.alpha.softmax(dim=1)
    mixed = lambda e, v: shares[e, 1] * v + shares[e, 2] * made.edges[e]["conv"](v)  # noqa: E731
    first = mixed(0, x)
    second = mixed(1, x) + mixed(2, first)
    assert torch.allclose(made(x), torch.cat([first, second], dim=1), atol=1e-5)


def test_the_strongest_operation_and_the_strongest_edges_are_chosen():
    made = cell(nodes=4)  # edges 01, 02, 12, 03, 13, 23
    strong = torch.tensor([[9, 0, 1], [0, 2, 0], [0, 0, 1], [5, 0, 1], [0, 3, 0], [0, 0, 2]], dtype=torch.float32)
    with torch.no_grad():
        made.alpha.copy_(strong)
    expected = (
        Edge(0, 1, "conv"), Edge(0, 2, "skip"), Edge(1, 2, "conv"), Edge(1, 3, "skip"), Edge(2, 3, "conv"),
    )  # fmt: skip
    assert made.genotype() == expected  # nothing of Zero, though it is the strongest of edges 01 and 03
    assert [e for e in made.genotype(inputs=1) if e.end > 1] == [Edge(0, 2, "skip"), Edge(1, 3, "skip")]


def test_what_is_built_has_the_chosen_operations_and_new_weights():
    model = nn.Sequential(nn.Conv2d(1, 4, 1), cell(), nn.Flatten(), nn.Linear(8 * 9, 2))
    genotype = (Edge(0, 1, "conv"), Edge(0, 2, "skip"), Edge(1, 2, "conv"))
    built, x = derive(model, {"1": genotype}), torch.randn(2, 1, 3, 3)
    chosen = built[1]
    assert isinstance(chosen, Chosen) and not cells(built) and list(cells(model)) == ["1"]
    v = built[0](x)
    first = chosen.edges[0](v)
    expected = torch.cat([first, v + chosen.edges[2](first)], dim=1)
    assert torch.allclose(chosen(v), expected, atol=1e-6) and built(x).shape == (2, 2)
    assert not torch.equal(built[3].weight, model[3].weight)
    assert not torch.equal(chosen.edges[0].weight, model[1].edges[0]["conv"].weight)


def test_what_is_built_lies_where_the_cell_lay():
    for place in (torch.float64, "meta"):
        model = nn.Sequential(nn.Conv2d(1, 4, 1), cell()).to(place)
        built = derive(model, {"1": (Edge(0, 1, "conv"), Edge(0, 2, "skip"))})
        assert {(p.dtype, p.device) for p in built.parameters()} == {(model[1].alpha.dtype, model[1].alpha.device)}


def test_a_choice_that_does_not_fit_is_refused():
    model = nn.Sequential(cell())
    with pytest.raises(ModelError, match="no genotype"):
        derive(model, {})
    with pytest.raises(ModelError, match="no operation 'pool'"):
        derive(model, {"0": (Edge(0, 1, "pool"), Edge(0, 2, "skip"))})
    with pytest.raises(ModelError, match="needs an edge"):
        derive(model, {"0": (Edge(0, 2, "skip"),)})
    with pytest.raises(ModelError, match="2 operations"):
        Cell({"skip": nn.Identity})
