"""Measurement: interleaving, disturbed rounds, paired ratios. The clock is a fake, so nothing here depends on time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseworks.exec import measure
from sparseworks.exec.measure import Comparison, Timing, compare, time_call


class FakeClock:
    """Time that only the contenders advance."""

    def __init__(self):
        self.ns, self.order, self.switches, self.disturb = 0, [], 0, lambda _: False

    def contender(self, name, *us):
        """A function that takes the next of `us` (the last one for ever)."""
        left = list(us)

        def run():
            self.order.append(name)
            self.ns += int(1000 * (left.pop(0) if len(left) > 1 else left[0]))
            if self.disturb(len(self.order)):
                self.switches += 1

        return run


@pytest.fixture
def clock(monkeypatch):
    clock = FakeClock()
    monkeypatch.setattr(measure.time, "perf_counter_ns", lambda: clock.ns)
    monkeypatch.setattr(measure, "_switches", lambda: clock.switches)
    return clock


def test_medians_and_ratio(clock):
    got = compare({"slow": clock.contender("slow", 300.0), "fast": clock.contender("fast", 100.0)}, rounds=5)
    assert (got["slow"].us, got["fast"].us, got["fast"].ms) == (300.0, 100.0, 0.1)
    assert got.ratio("slow", "fast").median == 3.0 and str(got.ratio("slow", "fast")) == "3.00x (3.00-3.00)"
    assert len(got) == 2 and list(got) == ["slow", "fast"] and "slow: 300 us" in repr(got)
    assert got["slow"].kept == 1.0 and got["slow"].spread == 0.0


def test_contenders_take_turns_in_rotating_order(clock):
    compare({n: clock.contender(n, 400.0) for n in "abc"}, rounds=4, warmup=1)
    assert "".join(clock.order) == "abc" + "abc" + "bca" + "cab" + "abc"


def test_short_calls_are_timed_in_blocks(clock):
    compare({"short": clock.contender("short", 10.0), "long": clock.contender("long", 900.0)}, rounds=3, block_us=300)
    assert clock.order.count("short") == 2 + 3 * 30 and clock.order.count("long") == 2 + 3


def test_first_calls_do_not_count(clock):
    got = compare({"it": clock.contender("it", 9000.0, 500.0)}, rounds=3)
    assert got["it"].us == 500.0


def test_disturbed_rounds_are_thrown_away(clock):
    values = [400.0, 400.0, 400.0, 9000.0, 400.0, 9000.0, 400.0, 400.0, 400.0]
    clock.disturb = lambda call: call in (4, 6)
    got = compare({"it": clock.contender("it", *values)}, rounds=5, warmup=1)
    assert got["it"].samples == (400.0,) * 5 and got["it"].kept == pytest.approx(5 / 7)


def test_when_no_round_is_clean_all_count(clock):
    clock.disturb = lambda _: True
    got = compare({"it": clock.contender("it", 400.0)}, rounds=6, warmup=1)
    assert len(got["it"].samples) == 6 and got["it"].kept == 0.0


def test_ratio_pairs_the_samples_of_a_round():
    """A machine that slows down half-way slows both: the ratio does not see it."""
    got = Comparison({"a": Timing.of([200.0, 200.0, 600.0, 600.0]), "b": Timing.of([100.0, 100.0, 300.0, 300.0])})
    assert (got.ratio("a", "b").low, got.ratio("a", "b").high) == (2.0, 2.0)
    lone = Comparison({"a": Timing(200.0, 0.1), "b": Timing(100.0)}).ratio("a", "b")
    assert (lone.low, lone.median, lone.high) == pytest.approx((1.9, 2.0, 2.1))


@given(st.lists(st.floats(1.0, 1e6), min_size=1, max_size=30))
def test_timing_summarises(samples):
    timing = Timing.of(samples)
    assert min(samples) <= timing.us <= max(samples) and timing.spread >= 0


def test_time_call(clock):
    assert time_call(clock.contender("it", 700.0), rounds=3).us == 700.0


def test_with_the_real_clock():
    import time

    got = compare({"sleeps": lambda: time.sleep(0.002), "does nothing": lambda: None}, rounds=3)
    assert got.ratio("sleeps", "does nothing").median > 10


def test_machine_names_what_figures_depend_on():
    facts = measure.machine()
    assert {"cpu", "cores", "threads", "isa", "native", "torch", "python", "system"} == set(facts)
    assert facts["threads"] == 1 and facts["cores"] >= 1 and facts["cpu"]
