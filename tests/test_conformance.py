"""Whatever is registered is tested by construction: the public suites over every registry, and the composition matrix."""

from __future__ import annotations

from dataclasses import replace

import pytest

import sparseworks.allocate
import sparseworks.repair
import sparseworks.scores
import sparseworks.solve  # noqa: F401
from sparseworks import testing
from sparseworks.attention import AttentionMethod
from sparseworks.attention.cache.method import CacheMethod
from sparseworks.attention.trained import TrainedAttention
from sparseworks.codes.autoencoders import AutoencoderMethod
from sparseworks.codes.autoencoders.metrics import METRICS
from sparseworks.core.allocator import ALLOCATORS
from sparseworks.core.method import Method
from sparseworks.core.patterns import EXAMPLES
from sparseworks.core.score import SCORES
from sparseworks.core.solver import REPAIRS, SOLVERS
from sparseworks.core.stats import STATS
from sparseworks.exec import FORMATS, KERNELS
from sparseworks.retrieval.encoders.heads import TERM_HEADS
from sparseworks.retrieval.encoders.slots import IMPORTANCES, POOLINGS, SATURATIONS, TERM_NORMS
from sparseworks.retrieval.method import IndexMethod
from sparseworks.solve.coders import CODERS
from sparseworks.solve.maps import MAPS
from sparseworks.solve.penalty import PENALTIES
from sparseworks.testing.operator import OPERATORS

TERM_SLOTS = TERM_HEADS, POOLINGS, SATURATIONS, TERM_NORMS, IMPORTANCES


@pytest.mark.parametrize("name", SCORES.names())
def test_score(name):
    testing.check_score(SCORES.get(name))


@pytest.mark.parametrize(
    "text", [*EXAMPLES, "8:16", "4:8@out", "16x2:4", "vnm:8:1:16", "block:2x8", "block:16x1/row", "live-fan-in"]
)
def test_pattern(text):
    testing.check_pattern(text)


@pytest.mark.parametrize("name", STATS.names())
def test_stat(name):
    testing.check_stat(STATS.get(name))


@pytest.mark.parametrize("name", ALLOCATORS.names())
def test_allocator(name):
    testing.check_allocator(ALLOCATORS.get(name))


@pytest.mark.parametrize("name", REPAIRS.names())
def test_repair(name):
    testing.check_repair(REPAIRS.get(name))


@pytest.mark.parametrize("name", SOLVERS.names())
def test_solver(name):
    testing.check_solver(SOLVERS.get(name))


@pytest.mark.parametrize("name", FORMATS.names())
def test_format(name):
    testing.check_format(FORMATS.get(name))


@pytest.mark.parametrize("name", KERNELS.names())
def test_kernel(name):
    testing.check_kernel(KERNELS.get(name))


@pytest.mark.parametrize("name", MAPS.names())
def test_operator(name):
    assert name in OPERATORS, "a registered map needs a small example in sparseworks.testing.operator.OPERATORS"
    testing.check_operator(name)


@pytest.mark.parametrize("name", [n for n, kind in CODERS.items() if hasattr(kind, "budget")])
def test_pursuit(name):
    testing.check_pursuit(name)


@pytest.mark.parametrize("name", PENALTIES.names())
def test_penalty(name):
    testing.check_penalty(PENALTIES.get(name))


@pytest.mark.parametrize("name", [m.name for m in AttentionMethod.all()])
def test_method_of_attention(name):
    testing.check_attention_method(name)


@pytest.mark.parametrize("name", [m.name for m in CacheMethod.all()])
def test_method_of_the_cache(name):
    testing.check_cache_method(name)


@pytest.mark.parametrize("name", [m.name for m in IndexMethod.all()])
def test_method_of_indexes(name):
    testing.check_index(name)


@pytest.mark.parametrize(("slots", "name"), [(slots, n) for slots in TERM_SLOTS for n in slots.names()])
def test_slot_of_term_encoders(slots, name):
    testing.check_term_slot(slots.get(name))


@pytest.mark.parametrize("name", [m.name for m in TrainedAttention.all()])
def test_method_of_trained_attention(name):
    method = TrainedAttention.of(name)
    testing.check_trained_attention(method.with_(trainable=type(method.trainable).example()))


@pytest.mark.parametrize("name", [m.name for m in AutoencoderMethod.all()])
def test_method_of_autoencoders(name):
    testing.check_encoder(name)
    testing.check_auxiliary_reaches(name)


@pytest.mark.parametrize("name", METRICS.names())
def test_metric_of_autoencoders(name):
    testing.check_metric(METRICS.get(name))


@pytest.mark.parametrize("name", [m.name for m in Method.all() if m.train is not None and m.form is None])
def test_method_of_training(name):
    testing.check_training(name)


@pytest.mark.parametrize("name", [m.name for m in Method.all() if m.form is not None])
def test_method_with_a_form(name):
    method = Method.of(name)
    known = {"steps": 50, "iterations": 2}  # how many there are says nothing about what must hold
    brisk = {k: v for k, v in known.items() if hasattr(method.form, k)}
    testing.check_form(method.with_(form=replace(method.form, **brisk)))


@pytest.mark.parametrize("name", SCORES.names())
def test_composition_matrix(name):
    tally = testing.check_composition(SCORES.get(name))
    solvers = len(REPAIRS) + len(SOLVERS) - 1
    assert tally.combinations == len(EXAMPLES) * len(ALLOCATORS) * solvers * len(FORMATS)
    assert set(tally.packed) == set(FORMATS.names()) - {
        "bsr",
        "groups4",
        "semi",
    }  # these need larger layers, see check_format
