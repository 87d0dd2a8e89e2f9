"""Every error says what, where, and what to do; and is found as the built-in error it is."""

from __future__ import annotations

import pickle

import pytest

from sparseworks.core import errors
from sparseworks.core.errors import SparseworksError, UnknownNameError

KINDS = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, SparseworksError)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_one_root_and_a_documented_meaning(kind):
    assert issubclass(kind, SparseworksError) and kind.__doc__
    assert kind is SparseworksError or issubclass(kind, (ValueError, TypeError, LookupError, RuntimeError))


def test_unknown_names_list_the_nearest():
    error = UnknownNameError("score", "magnitud", ["magnitude", "wanda", "random"])
    assert str(error) == "Unknown score 'magnitud'. Did you mean 'magnitude'?"
    assert str(UnknownNameError("score", "WANDA", ["wanda"])) == "Unknown score 'WANDA'. Did you mean 'wanda'?"
    assert str(UnknownNameError("score", "zzz", ["b", "a"])) == "Unknown score 'zzz'. Known: a, b."
    assert str(UnknownNameError("score", "zzz", [])) == "Unknown score 'zzz'. Known: none."
    assert "Unknown score 3" in str(UnknownNameError("score", 3, ["a"]))  # type: ignore[arg-type]


def test_errors_survive_the_way_between_processes():
    error = UnknownNameError("score", "magnitud", ["magnitude"])
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) and (again.kind, again.name) == ("score", "magnitud")
