"""The suites catch what they are for: one broken plug-in of every noun, and the sentence it is told."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from sparseworks import testing
from sparseworks.allocate import ERK
from sparseworks.core.allocator import Allocator, Uniform
from sparseworks.core.errors import SparseworksError
from sparseworks.core.pattern import Pattern
from sparseworks.core.score import Score
from sparseworks.core.solver import Repair, Select, masked
from sparseworks.core.stats import InputMoments
from sparseworks.core.support import Support
from sparseworks.exec import FORMATS, KERNELS
from sparseworks.exec.kernel import Kernel
from sparseworks.repair import LeastSquares
from sparseworks.scores import InputNorm, Magnitude

DENSE = type(FORMATS.get("dense"))


class Noisy(Magnitude):
    def __call__(self, weight, stats):
        return torch.rand_like(weight)


class Undeclared(Score):
    def __call__(self, weight, stats):
        return InputNorm()(weight, stats)


class Holes(Magnitude):
    def __call__(self, weight, stats):
        return torch.log(weight)


class OtherColumns(Magnitude):
    def __call__(self, weight, stats):
        return 2 * weight.float().abs()


class Writes(Magnitude):
    def __call__(self, weight, stats):
        return weight.abs_()


@pytest.mark.parametrize(
    ("score", "text"),
    [
        (Noisy(), "Noisy gives other scores when called again"),
        (Holes(), "Holes gives NaN or infinity"),
        (OtherColumns(), "OtherColumns.columns.* differs"),
        (Writes(), "Writes changes the weight"),
    ],
)
def test_scores(score, text):
    with pytest.raises(AssertionError, match=text):
        testing.check_score(score)


def test_a_score_that_declares_less_than_it_needs():
    with pytest.raises(SparseworksError, match="InputMoments was not gathered"):
        testing.check_score(Undeclared())


class Greedy(Pattern):
    def select(self, scores, keep=None):
        return Support.from_mask(scores >= scores.quantile(0.5))


def test_patterns():
    with pytest.raises(AssertionError, match=r"keeps .* units a group, asked for"):
        testing.check_pattern(Greedy())


class Last(InputMoments):
    def merge(self, other):
        self.count, self.sum, self.square = other.count, other.sum, other.square


class Mean(InputMoments):
    def update(self, x):
        super().update(x)
        self.sum = self.sum / 2 + x.double().mean(0) / 2


@pytest.mark.parametrize(("kind", "text"), [(Last, "merging after 1 batches differs"), (Mean, "Mean")])
def test_statistics(kind, text):
    with pytest.raises(AssertionError, match=text):
        testing.check_stat(kind)


class Generous(Allocator):
    def __call__(self, sites, budget, *, cost=None, evidence):
        return {s.name: s.size for s in sites}


class Absent(Allocator):
    def __call__(self, sites, budget, *, cost=None, evidence):
        return {}


@pytest.mark.parametrize(("allocator", "text"), [(Generous(), "Generous gives"), (Absent(), "not for every site")])
def test_allocators(allocator, text):
    with pytest.raises(AssertionError, match=text):
        testing.check_allocator(allocator)


class Leaky(Repair):
    def __call__(self, weight, support, stats):
        return weight.clone()


class Worse(Repair):
    def __call__(self, weight, support, stats):
        return masked(3 * weight, support)


@pytest.mark.parametrize(
    ("repair", "text"), [(Leaky(), "outside the support"), (Worse(), "raises the calibrated error")]
)
def test_repairs(repair, text):
    with pytest.raises(AssertionError, match=text):
        testing.check_repair(repair)


class OneMore(Select):
    def __call__(self, weight, stats, score, pattern, keep):
        return weight.clone(), Support.full(weight.shape)


def test_solvers():
    with pytest.raises(AssertionError, match="OneMore with tensor at density 0 keeps 128 entries, not 0"):
        testing.check_solver(OneMore())


class Infers(DENSE):
    """Reads the support from the values."""

    def unpack(self, packed):
        values = packed.parts["weight"]
        return values.clone(), Support.from_mask(values != 0)


class Underestimates(DENSE):
    def nbytes(self, support, dtype=torch.float32):
        return support.count


@pytest.mark.parametrize(("format", "text"), [(Infers(), "another support"), (Underestimates(), "bytes and says")])
def test_formats(format, text):
    with pytest.raises(AssertionError, match=text):
        testing.check_format(format)


class ForgetsBias(Kernel):
    name, format = "forgets", "dense"

    def refuses(self, call):
        return None if call.dtype is torch.float32 else "it reads float32 inputs"

    def __call__(self, x, packed, bias):
        return self.reference(x, packed, None)


class Mute(ForgetsBias):
    def refuses(self, call):
        return "no"


@pytest.mark.parametrize(("kernel", "text"), [(ForgetsBias(), "from its reference"), (Mute(), "without a reason")])
def test_kernels(kernel, text):
    with pytest.raises(AssertionError, match=text):
        testing.check_kernel(kernel)


def test_the_right_ones_pass():
    testing.check_score(Magnitude)
    testing.check_allocator(ERK)
    testing.check_repair(LeastSquares)
    testing.check_kernel(KERNELS.get("dense"))


def test_composition_names_the_combination():
    def walk(**parts):
        return testing.check_composition(
            Magnitude,
            patterns=["row", "2:4"],
            allocators=[Uniform()],
            solvers=parts.get("solvers", [Select()]),
            formats=parts.get("formats", [DENSE()]),
        )

    assert walk().combinations == 2
    with pytest.raises(AssertionError, match="Magnitude x row x Uniform x OneMore"):
        walk(solvers=[OneMore()])
    with pytest.raises(
        AssertionError, match=r"Magnitude x row x Uniform x Select\(Leaky\): layer 0 has values outside"
    ):
        walk(solvers=[Select(Leaky())])


@dataclass(frozen=True)
class Odd(Score):
    table: dict[str, int]


@dataclass(frozen=True)
class Helped(Odd):
    @classmethod
    def example(cls):
        return cls({})


def test_examples():
    assert testing.example(Magnitude) == Magnitude() and testing.example(Helped) == Helped({})
    with pytest.raises(
        SparseworksError, match=r"Odd.table is a dict\[str, int\] without default: give Odd a class method"
    ):
        testing.example(Odd)
    made = testing.gathered({InputMoments}, (4, 6))
    assert made[InputMoments].count > 50 and torch.equal(
        made[InputMoments].sum, testing.gathered({InputMoments}, (4, 6))[InputMoments].sum
    )
