from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from torch import nn

from sparseworks.stream.tree import HIDDEN, call, cut, first_tensor, map_tensors, put_hidden, same, without_caches

Pair = namedtuple("Pair", "x y")
X = torch.arange(6.0).reshape(3, 2)


def test_map_keeps_the_containers():
    value = {"a": [X, (X, None)], "b": Pair(X, "text")}
    mapped = map_tensors(value, lambda t: t + 1)
    assert torch.equal(mapped["a"][1][0], X + 1) and mapped["a"][1][1] is None
    assert isinstance(mapped["b"], Pair) and torch.equal(mapped["b"].x, X + 1) and mapped["b"].y == "text"


def test_the_hidden_state_is_the_first_floating_tensor():
    assert first_tensor((torch.ones(2, dtype=torch.long), None, [X, X + 1])) is X
    assert first_tensor({"ids": torch.ones(1, dtype=torch.long), "x": X}) is X
    assert first_tensor(("text", 3)) is None


def test_the_placeholder_is_filled_in_everywhere():
    filled = put_hidden((HIDDEN, {"a": [HIDDEN, 1]}, Pair(HIDDEN, 2)), X)
    assert filled[0] is X and filled[1]["a"] == [X, 1] and filled[2] == Pair(X, 2)


def test_caches_are_left_out():
    class DynamicCache:
        pass

    assert without_caches({"past": DynamicCache(), "use_cache": True, "x": (DynamicCache(), 1)}) == {
        "past": None,
        "use_cache": False,
        "x": (None, 1),
    }


def test_cut_takes_rows_of_what_has_the_batch_first():
    mask, shared, vector = torch.ones(3, 1, 4), torch.ones(1, 2), torch.ones(3)
    cut_up = cut((mask, {"s": shared, "v": vector}), 3, slice(1, 3))
    assert cut_up[0].shape[0] == 2 and cut_up[1]["s"] is shared and cut_up[1]["v"] is vector


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        ((X, {"k": X}), (X.clone(), {"k": X.clone()}), True),
        ((X,), (X + 1,), False),
        ((X,), [X], False),
        ((X, None), (X,), False),
        ({"k": X}, {"j": X}, False),
        (X, X.double(), False),
        (X, X[:2], False),
        (X, 1.0, False),
        ((1, "a"), (1, "a"), True),
        (torch.tensor(float("nan")), torch.tensor(float("nan")), False),
    ],
)
def test_same(a, b, equal):
    assert same(a, b) is equal


def test_call_takes_mappings_tuples_and_tensors():
    class Add(nn.Module):
        def forward(self, x, y=0):
            return x + y

    assert call(Add(), {"x": 1, "y": 2}) == 3
    assert call(Add(), (1, 2)) == 3
    assert torch.equal(call(Add(), X), X)
