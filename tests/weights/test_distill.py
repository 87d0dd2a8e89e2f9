"""Loss terms against their formulas; padding counts in none of them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from sparseworks.core.errors import ModelError
from sparseworks.stream import blocks
from sparseworks.weights.distill import Embedding, Logits, Outputs, Recorder, Similarity, SquareHead, Task

MASK = torch.tensor([[True, True, True], [True, False, False]])


def encoded(seed: int, mask=MASK) -> Outputs:
    hidden = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed))
    return Outputs(SimpleNamespace(last_hidden_state=hidden), mask=mask)


def test_embedding_is_the_cosine_distance_of_means_over_real_tokens():
    s, t = encoded(0), encoded(1)
    means = [torch.stack([o.output.last_hidden_state[0].mean(0), o.output.last_hidden_state[1, 0]]) for o in (s, t)]
    expected = (1 - F.cosine_similarity(*means, dim=-1)).mean()
    assert Embedding()(s, t) == pytest.approx(float(expected)) and Embedding()(s, s) == pytest.approx(0, abs=1e-6)


def test_similarity_looks_at_the_order_inside_the_batch_only():
    x = torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(0))
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1))).Q
    s, t = (Outputs(SimpleNamespace(last_hidden_state=v)) for v in (x @ turn, x))
    assert float(Similarity()(s, t)) == pytest.approx(0, abs=1e-5) and float(Embedding()(s, t)) > 0.1
    assert float(Similarity()(Outputs(SimpleNamespace(last_hidden_state=x.flip(0))), t)) > 0.1
    assert float(Similarity()(encoded(0), encoded(1))) == 0  # two rows have no order


def test_square_head_is_normalised_per_block():
    g = torch.Generator().manual_seed(0)
    s = Outputs(None, [torch.randn(5, 4, generator=g), torch.randn(5, 4, generator=g)])
    t = Outputs(None, [torch.randn(5, 4, generator=g), 100 * torch.randn(5, 4, generator=g)])
    expected = sum(((a - b) ** 2).mean() / (b**2).mean() for a, b in zip(s.hidden, t.hidden, strict=True))
    assert float(SquareHead()(s, t)) == pytest.approx(float(expected), rel=1e-4)
    with pytest.raises(ModelError, match="repeated blocks"):
        SquareHead()(Outputs(None), Outputs(None))


def test_logits_are_a_kl_over_real_tokens():
    s, t = (
        Outputs(SimpleNamespace(logits=torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(i))), mask=MASK)
        for i in (0, 1)
    )
    p, q = t.output.logits[MASK].div(2).softmax(-1), s.output.logits[MASK].div(2).softmax(-1)
    expected = 4 * (p * (p / q).log()).sum(-1).mean()
    assert float(Logits(temperature=2.0)(s, t)) == pytest.approx(float(expected), rel=1e-4)
    everywhere = [Outputs(o.output) for o in (s, t)]
    assert float(Logits(temperature=2.0)(*everywhere)) != pytest.approx(float(expected), rel=1e-3)


def test_task_is_the_models_own_loss():
    assert Task()(Outputs(SimpleNamespace(loss=torch.tensor(2.0))), Outputs(None)) == 2.0
    with pytest.raises(ModelError, match="labels"):
        Task()(Outputs(SimpleNamespace(loss=None)), Outputs(None))


def test_recorders_take_every_blocks_output_at_real_tokens(llama, tokens):
    model = llama()
    recorder = Recorder(model, blocks(model))
    with torch.no_grad():
        found = recorder.run(tokens[1])
        reference = model(**tokens[1], output_hidden_states=True).hidden_states
    recorder.close()
    real = tokens[1]["attention_mask"].bool()
    assert len(found.hidden) == 3 and found.hidden[0].shape == (int(real.sum()), 16)
    assert torch.equal(found.hidden[1], reference[2][real])
    assert found.logits.shape == (int(real.sum()), 32)


def test_closed_recorders_leave_no_hooks(tower):
    model = tower()
    recorder = Recorder(model, blocks(model))
    assert all(b._forward_hooks for b in model.blocks)
    recorder.close()
    assert not any(m._forward_hooks for m in model.modules())


def test_a_model_without_blocks_has_nothing_to_tap():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    assert Recorder(model, blocks(model)).run(torch.ones(2, 4)).hidden == []
