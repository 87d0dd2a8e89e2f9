"""Four-bit groups: fewer bits and less error than two-bit rounding, trained integers that a format holds exactly."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sparseworks as sw
from sparseworks.core.errors import CalibrationError, KernelError, ModelError
from sparseworks.core.pattern import Pattern
from sparseworks.exec import FORMATS
from sparseworks.exec.int4 import from_int4, pairs, to_int4, unpaired
from sparseworks.stream import sites
from sparseworks.weights import quantise_groups


@given(st.lists(st.floats(-4, 4, width=16), min_size=16, max_size=16), st.sampled_from([3, 15]))
def test_codes_are_within_half_a_step_and_zero_is_exact(values, most):
    groups = torch.tensor([values])
    code, scale, zero = to_int4(groups, most)
    back = from_int4(code, scale, zero)
    assert int(code.max()) <= most and torch.equal(unpaired(pairs(code)), code)
    assert float((back - groups).abs().max()) <= float(scale.float()) * 1.01 + 0.003 * 4  # float16 scale, shifted ends
    zeros = from_int4(*to_int4(torch.cat([groups[:, :15], torch.zeros(1, 1)], dim=1), most))
    assert float(zeros[0, 15]) == 0.0


def test_refuses_what_has_no_scale():
    with pytest.raises(KernelError, match="float16"):
        to_int4(torch.full((1, 16), 1e7))


def energy(model, dense, x) -> float:
    """Relative squared error of the first block's output."""
    with torch.no_grad():
        h = dense.first(x)
        a, b = model.blocks[0](h) - h, dense.blocks[0](h) - h
    return float((a - b).square().mean() / b.square().mean())


def test_half_the_groups_in_four_bits_beat_two_bits_on_all(digits):
    dense = digits.trained
    inside = [s.name for s in sites(dense) if s.name.startswith("blocks.0.")]
    student = copy.deepcopy(dense)
    pruned = sw.prune(student, "gqsa", digits.batches, skip=("first", "last", "blocks.[1-5].*"), progress=False)
    assert set(pruned.supports) == set(inside) and all(s.density == 0.5 for s in pruned.supports.values())
    assert all(Pattern.parse("block:1x16/row").admits(s) for s in pruned.supports.values())
    ours, plain = copy.deepcopy(dense), copy.deepcopy(dense)
    packed = quantise_groups(ours, pruned.supports, digits.batches, steps=300, lr=3e-3)
    rounded = quantise_groups(plain, pruned.supports, digits.batches, steps=0)
    two_bits = copy.deepcopy(dense)
    for s in sites(dense):
        if s.name in inside:
            s.write(two_bits, from_int4(*to_int4(s.read(dense).reshape(-1, 16), 3)).reshape(s.shape))
    weights = sum(s.size for s in pruned.supports.values())
    bits = 8 * sum(p.nbytes for p in packed.values()) / weights
    assert bits < 2 + 24 / 16 + 0.5 and rounded.keys() == packed.keys()
    error = energy(ours, dense, digits.test_x)
    assert error < energy(two_bits, dense, digits.test_x)
    assert error < 0.8 * energy(plain, dense, digits.test_x)
    for name, p in packed.items():
        site = next(s for s in sites(dense) if s.name == name)
        weight, support = FORMATS.get("groups4").unpack(p)
        assert support == pruned.supports[name] and torch.equal(weight, site.read(ours))


def test_tuning_scales_end_to_end_lowers_the_divergence(digits):
    dense, student = digits.trained, copy.deepcopy(digits.trained)
    found = sw.prune(student, "gqsa", digits.batches, skip=("first", "last"), progress=False)
    gap = []
    for steps in (0, 60):
        model = copy.deepcopy(dense)
        quantise_groups(model, found.supports, digits.batches, steps=20, lr=1e-3, tune_steps=steps, tune_lr=1e-3)
        with torch.no_grad():
            gap.append(
                float(
                    torch.nn.functional.kl_div(
                        model(digits.x).log_softmax(1), dense(digits.x).softmax(1), reduction="batchmean"
                    )
                )
            )
    assert gap[1] < gap[0]


def test_refuses_supports_that_are_not_whole_groups(digits):
    model = copy.deepcopy(digits.trained)
    found = sw.prune(copy.deepcopy(model), "wanda", digits.batches, skip=("first", "last"), progress=False)
    with pytest.raises(ModelError, match="whole aligned groups"):
        quantise_groups(model, found.supports, digits.batches)
    with pytest.raises(CalibrationError, match="no batches"):
        quantise_groups(model, {}, [])
