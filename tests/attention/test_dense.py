"""Dense attention and windows: values, gradients, and keys that are not repeated for the heads of a group."""

import pytest
import torch

from sparseworks.attention import Heads
from sparseworks.attention.dense import attend_dense, attend_window

CASES = [
    (2, 4, 2, 100, 100, 32, True),
    (1, 4, 2, 37, 100, 32, True),
    (1, 4, 4, 1, 77, 32, True),
    (2, 2, 1, 50, 90, 16, False),
]


@pytest.fixture(params=CASES, ids=str)
def heads(request) -> Heads:
    batch, many, kv, queries, keys, d, causal = request.param
    draw = torch.Generator().manual_seed(0)
    sizes = ((many, queries), (kv, keys), (kv, keys))
    q, k, v = (torch.randn(batch, h, n, d, generator=draw) for h, n in sizes)
    return Heads(q, k, v, causal=causal)


def test_dense_attention_has_the_gradients_of_a_hand_written_softmax(heads):
    grads = []
    for dense in (attend_dense, lambda h: h.scores().softmax(-1) @ h.shared(h.v)):
        given = [t.clone().requires_grad_() for t in (heads.q, heads.k, heads.v)]
        q, k, v = given
        dense(heads.with_(q=q, k=k, v=v)).square().sum().backward()
        grads.append([t.grad for t in given])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("queries", "keys"), [(1, 300), (3, 300), (300, 300), (0, 300)])
def test_dense_and_window_attention_never_repeat_keys_for_the_heads_of_a_group(queries, keys, monkeypatch):
    """Few queries of many heads: torch is given as many heads as there are keys, and equal results come back."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, h, n, 16, generator=draw) for h, n in ((6, queries), (2, keys), (2, keys)))
    heads, given = Heads(q, k, v), []
    torchs = torch.nn.functional.scaled_dot_product_attention

    def watched(*args, **options):
        given.append((args[0].shape[1], args[1].shape[1]))
        return torchs(*args, **options)

    scores = heads.scores()
    far = torch.arange(keys) <= torch.arange(keys - queries, keys)[:, None] - 40
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    found = attend_dense(heads), attend_window(heads, 40)
    expected = (s.softmax(-1) @ heads.shared(v) for s in (scores, scores.masked_fill(far, -torch.inf)))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    assert all(k == 2 for _, k in given)
    assert all(q == 2 for q, _ in given) or queries == keys  # a causal prefill keeps its heads apart
