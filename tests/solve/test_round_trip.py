"""Every score, allocator, repair and solver of these packages survives plain data and YAML."""

from __future__ import annotations

import pytest
import yaml

import sparseworks.allocate
import sparseworks.repair
import sparseworks.scores
import sparseworks.solve  # noqa: F401
from sparseworks.allocate import OWL, SensitivityDP, UniformPlus
from sparseworks.core.config import NOUNS, from_config, to_config
from sparseworks.core.solver import Select
from sparseworks.repair import BiasCorrection, LeastSquares
from sparseworks.scores import OBS, InputNorm, Magnitude, Random
from sparseworks.solve import ADMM, ObsSweep

PARTS = ("score", "allocate", "repair", "solve")
COMPOSED = {"product", "sum", "scaled", "normalised"}
PLAIN = [(noun, name) for noun in PARTS for name in NOUNS[noun][1].names() if name not in COMPOSED]
CHANGED = [
    ("score", OBS(damp=0.1)),
    ("score", (Magnitude() * InputNorm()).normalised() + 0.5 * Random(7)),
    ("allocate", OWL(m=3.0, lam=0.15)),
    ("allocate", UniformPlus(last=0.5)),
    ("allocate", SensitivityDP(densities=(0.1, 1.0), states=10)),
    ("repair", BiasCorrection(LeastSquares(damp=0.1))),
    ("repair", LeastSquares(intercept=True)),
    ("solve", Select(BiasCorrection(LeastSquares()))),
    ("solve", ObsSweep(block=64, damp=0.1)),
    ("solve", ADMM(steps=40)),
]


@pytest.mark.parametrize(("noun", "name"), PLAIN)
def test_defaults(noun, name):
    value = from_config(noun, name)
    assert to_config(value) == {name: {}}
    assert from_config(noun, yaml.safe_load(yaml.safe_dump(to_config(value)))) == value


@pytest.mark.parametrize(("noun", "value"), CHANGED, ids=str)
def test_changed_fields(noun, value):
    assert from_config(noun, yaml.safe_load(yaml.safe_dump(to_config(value)))) == value
