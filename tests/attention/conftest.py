"""What the tests of methods share: heads from drawn tensors, one call of a method and how far it is from dense attention."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from sparseworks.attention import AttentionMethod, Clip, Heads, Kept, sparse_attention
from sparseworks.evaluate.sequences import mass_recall, rel_l2


class Seen(NamedTuple):
    """One call: relative error of the output, density, mass of what is kept (where tokens are not reordered)."""

    error: float
    density: float
    mass: float
    heads: Heads
    kept: Kept
    out: Tensor


def _heads_of(qkv, *, causal: bool = True, clip: Clip | None = None, **others) -> Heads:
    q, k, v = qkv
    return Heads(q, k, v, causal=causal, clip=clip, **{"layer": 9, "layers": 10, "step": 9, "steps": 10, **others})


def _dense(heads: Heads) -> Tensor:
    return heads.scores().softmax(-1) @ heads.shared(heads.v)


def _call(method: AttentionMethod, heads: Heads) -> Seen:
    (out, _), kept = sparse_attention(heads, method)
    assert kept is not None
    mass = mass_recall(heads.q, heads.k, kept.tokens(heads, slice(0, heads.queries)), causal=heads.causal)
    return Seen(float(rel_l2(out, _dense(heads))), kept.density(heads), float(mass.mean()), heads, kept, out)


def _assert_close(a: Tensor, b: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


@pytest.fixture(scope="session")
def heads_of():
    """(q, k, v) -> Heads of a late layer and step."""
    return _heads_of


@pytest.fixture(scope="session")
def dense():
    """The whole map's output."""
    return _dense


@pytest.fixture(scope="session")
def call():
    """(method, heads) -> Seen."""
    return _call


@pytest.fixture(scope="session")
def assert_close():
    """Equality to 1e-5."""
    return _assert_close
