"""Dense stays where it is faster: by a clock that is made up, and in force on a model."""

import itertools

import pytest
import torch

import sparseworks as sw
from sparseworks.attention import Heads
from sparseworks.attention.race import Race


def heads(keys: int, queries: int | None = None) -> Heads:
    q, k = torch.zeros(1, 2, queries or keys, 16), torch.zeros(1, 2, keys, 16)
    return Heads(q, k, k)


@pytest.mark.parametrize(
    ("dense", "sparse", "chosen"), [(2.0, 1.0, "sparse"), (1.0, 2.0, "dense"), (1.0, 1.0, "dense")]
)
def test_the_faster_way_is_taken_from_the_second_call_on(dense, sparse, chosen):
    ticks = itertools.accumulate([0.0, dense, sparse] + [1.0] * 9)
    race, ran = Race(clock=lambda: next(ticks)), []
    run = lambda n: race.run("m", heads(n), lambda: ran.append("dense"), lambda: ran.append("sparse"))  # noqa: E731
    run(256)
    assert ran == ["dense", "dense", "sparse"]
    run(256)
    run(280)
    assert ran[3:] == [chosen, chosen]
    assert [row["chosen"] for row in race.table()] == [chosen] and race.table()[0]["keys"] == 256
    run(1024)
    assert len(race.laps) == 2


def test_prefill_and_decoding_are_timed_apart():
    race = Race()
    for shape in ((256, None), (256, 1)):
        race.run("m", heads(*shape), lambda: 0, lambda: 1)
    assert {row["phase"] for row in race.table()} == {"prefill", "decode"}


@torch.no_grad()
def test_a_model_stays_dense_where_choosing_costs_more(monkeypatch):
    model = sw.load("sparseworks/tiny-lm").eval()
    ids = torch.randint(5, 4000, (1, 64), generator=torch.Generator().manual_seed(0))
    expected = model(ids).logits
    slow = Race(clock=itertools.count().__next__)  # every reading is one later: level, so dense stays
    with sw.attention(
        model, sw.method("pooled_blocks", density=0.1, pattern=sw.attention.blocks(16)), race=slow
    ) as run:
        model(ids)
        found = model(ids).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert len(slow.laps) == 1 and 0 < run.density() < 1
