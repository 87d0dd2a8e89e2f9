"""Cores: counts equal a loop, smaller layers equal masks, overlap finds what a question is about, and both prunings together lose less."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

import sparseworks as sw
from sparseworks.activations.predicted import CoreNeurons, core_matching
from sparseworks.core.budget import Density
from sparseworks.core.errors import BudgetError, ModelError, RecipeError, ShapeError
from sparseworks.testing.decoder import Decoder

TOPICS, LETTERS, USED, SPAN, SPANS, QUESTION = 6, 8, 3, 8, 4, 6
CONTEXT = SPAN * SPANS
PROMPT = CONTEXT + 2  # two letters of the question are read, and say what it is about
WIDTH, HIDDEN = 32, 128


class World:
    """Four spans, each of three letters of a topic; the question goes on with those of one span. A ReLU decoder learned it."""

    def __init__(self, steps: int = 400):
        self.g = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        self.model = Decoder(TOPICS * LETTERS, WIDTH, HIDDEN, 2, 4, 4, relu=True)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=4e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            ids, _ = self.sequences(32)
            optimizer.zero_grad()
            F.cross_entropy(self.model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
            optimizer.step()
            schedule.step()
        self.model.eval().requires_grad_(False)

    def sequences(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        topics = torch.rand(count, TOPICS, generator=self.g).argsort(1)[:, :SPANS]
        asked = torch.randint(0, SPANS, (count,), generator=self.g)
        letters, rows = (
            torch.rand(count, SPANS, LETTERS, generator=self.g).argsort(2)[:, :, :USED],
            torch.arange(count),
        )

        def span(i, length):
            at = torch.randint(0, USED, (count, length), generator=self.g)
            return topics[rows, i, None] * LETTERS + letters[rows, i].gather(1, at)

        parts = [span(torch.full((count,), i), SPAN) for i in range(SPANS)]
        return torch.cat([*parts, span(asked, QUESTION)], 1), asked

    def lost(self, tokens: float, neurons: float, count: int = 60) -> float:
        """Loss of the rest of the question when this share of the prompt's tokens and of the neurons stays."""
        self.g.manual_seed(7)
        ids, rest, total = self.sequences(count)[0], QUESTION - 2, 0.0
        for one in ids.split(1):
            scored = sw.method("corematching", activation=CoreNeurons(tokens=Density(tokens)))
            options = {"keep": (0, -2, -1), "over": range(CONTEXT, PROMPT)}
            run = core_matching(self.model, scored, one[:, :PROMPT], **options)
            wide = sw.method("corematching", activation=CoreNeurons(beta=neurons))
            run.neurons = core_matching(self.model, wide, one[:, :PROMPT]).neurons
            with run.shortened().masked(rest):
                said = self.model(one)
            total += float(F.cross_entropy(said[0, -rest - 1 : -1], one[0, -rest:])) / count
        return total


def work(tokens: float, neurons: float, written: int = 64) -> float:
    """Multiplications of a prompt and `written` tokens after it: tokens leave before the second block, neurons while it writes."""
    read = lambda kept: 4 * WIDTH**2 + 2 * WIDTH * kept  # noqa: E731
    feed = 3 * WIDTH * HIDDEN
    kept = tokens * PROMPT
    prompt = PROMPT * (read(PROMPT) + feed) + kept * (read(kept) + feed)
    return prompt + written * (read(PROMPT) + read(kept) + 2 * neurons * feed)


@pytest.fixture(scope="module")
def world() -> World:
    torch.set_num_threads(1)
    return World()


def ranking(scores: torch.Tensor, relevant: torch.Tensor) -> float:
    """Mean area under the ROC curve."""
    found = []
    for s, r in zip(scores.double(), relevant, strict=True):
        more, less = s[r][:, None], s[~r]
        found.append(((more > less).double() + 0.5 * (more == less)).mean())
    return float(torch.stack(found).mean())


def test_overlap_finds_the_span_of_the_question_better_than_attention_at_the_first_block(world):
    world.g.manual_seed(3)
    ids, asked = world.sequences(200)
    relevant = torch.arange(CONTEXT) // SPAN == asked[:, None]
    question, held = range(CONTEXT, ids.shape[1]), {}
    attention = world.model.layers[0].self_attn
    handle = attention.register_forward_pre_hook(lambda _m, args: held.update(x=args[0]))
    scores = torch.stack(
        [core_matching(world.model, "corematching", one, over=question).scores[:CONTEXT] for one in ids.split(1)]
    )
    world.model(ids)
    handle.remove()
    split = lambda p: p(held["x"]).unflatten(-1, (4, -1)).transpose(1, 2)  # noqa: E731
    logits = split(attention.q_proj) @ split(attention.k_proj).mT / math.sqrt(WIDTH / 4)
    seen = logits.masked_fill(torch.ones(logits.shape[-2:]).triu(1).bool(), -torch.inf).softmax(-1)
    of_last, of_question = (seen[:, :, at, :CONTEXT].mean(dim=(1, 2)) for at in (slice(-1, None), slice(CONTEXT, None)))
    overlap = ranking(scores, relevant)
    assert overlap > 0.88, overlap
    assert overlap > ranking(of_question, relevant) + 0.02 > ranking(of_last, relevant) + 0.05


def test_tokens_and_neurons_together_lose_less_than_either_at_no_more_work(world):
    dense, joint = world.lost(1.0, 1.0), world.lost(0.5, 0.8)
    assert work(0.5, 0.8) <= min(work(0.08, 1.0), work(1.0, 0.55))
    tokens, neurons = world.lost(0.08, 1.0), world.lost(1.0, 0.55)
    assert 0 < joint - dense < 0.8 * (neurons - dense) and joint - dense < 0.7 * (tokens - dense), (
        dense, joint, tokens, neurons,
    )  # fmt: skip


def test_cores_equal_a_loop():
    a = torch.randn(2, 7, 20, generator=torch.Generator().manual_seed(0))
    a[1, 3] = -1.0  # a token without activity has no core
    rule = CoreNeurons(0.3, 0.25)
    for b in range(2):
        often = torch.zeros(20)
        for t in range(7):
            positive = [j for j in range(20) if a[b, t, j] > 0]
            strongest = sorted(positive, key=lambda j: -float(a[b, t, j]))[: math.ceil(0.3 * len(positive) - 1e-9)]
            often[strongest] += 1
        wanted = set(often.sort(descending=True, stable=True).indices[:5].tolist())
        core = rule.core(a)[b]
        assert set(core.nonzero().flatten().tolist()) == wanted
        overlap = [sum(float(a[b, t, j]) > 0 for j in wanted) for t in range(7)]
        assert rule.overlap(a, rule.core(a))[b].tolist() == overlap
    over = torch.tensor([[True] + [False] * 6] * 2)
    assert bool((rule.core(a, over) >= rule.token_cores(a)[:, 0]).all())


def small() -> tuple[Decoder, torch.Tensor]:
    torch.manual_seed(0)
    return Decoder(24, 32, 64, 3, 4, 4, relu=True).eval(), torch.randint(0, 24, (1, 16))


@torch.no_grad()
def test_smaller_layers_are_masked_ones_and_hooks_leave_no_trace():
    model, ids = small()
    dense = model(ids)
    run = core_matching(model, "corematching", ids)
    with run.masked():
        masked = model(ids)
    decoder = run.small()
    torch.testing.assert_close(decoder(ids), masked, rtol=1e-4, atol=1e-5)
    assert [layer.mlp.up_proj.out_features for layer in decoder.layers] == [round(0.2 * 64)] * 3
    assert not torch.allclose(masked, dense, atol=1e-3) and torch.equal(model(ids), dense)
    with run.masked(4):
        torch.testing.assert_close(model(ids)[:, :-4], dense[:, :-4])
    everything = sw.method("corematching", activation=CoreNeurons(beta=1.0, tokens=Density(1.0)))
    with core_matching(model, everything, ids).masked().shortened():
        torch.testing.assert_close(model(ids), dense)


@torch.no_grad()
def test_a_shortened_sequence_is_the_kept_tokens_through_the_later_blocks():
    model, ids = small()
    run = core_matching(model, sw.method("corematching", activation=CoreNeurons(tokens=Density(0.4))), ids[:, :12])
    kept = torch.cat([run.tokens, torch.ones(4, dtype=torch.bool)])
    assert bool(kept[0] & kept[11]) and 0 < int((~kept).sum()) < 12
    best = run.scores.sort(descending=True, stable=True).indices[:5]
    assert set(run.tokens.nonzero().flatten().tolist()) == {0, 11, *best.tolist()}
    x = model.layers[0](model.embed_tokens(ids))[:, kept]
    wanted = model.lm_head(model.norm(model.layers[2](model.layers[1](x))))
    with run.shortened():
        torch.testing.assert_close(model(ids), wanted)


def test_refusals():
    model, ids = small()
    with pytest.raises(RecipeError, match="core_neurons"):
        core_matching(model, "qsparse", ids)
    with pytest.raises(ShapeError, match="one sequence"):
        core_matching(model, "corematching", ids.expand(2, -1))
    with pytest.raises(ModelError, match="Block 7"):
        core_matching(model, "corematching", ids, after=7)
    with pytest.raises(BudgetError, match="core neurons"):
        CoreNeurons(alpha=0.0)
