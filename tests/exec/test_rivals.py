"""Every rival that is installed multiplies rightly, and says in a sentence what it does not take."""

from __future__ import annotations

import pytest
import torch

from sparseworks.exec import Call
from sparseworks.exec.rivals import RIVALS, Rival, error


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("name", RIVALS.names())
def test_product_within_what_its_rounding_explains(name, rows, random_support):
    rival, support = RIVALS.get(name), random_support(32, 48, 0.25)
    if rival.refuses(Call(rows, (32, 48))) is not None:
        pytest.skip("not installed here, or not for so many rows")
    weight = torch.randn(32, 48) * support.mask()
    run = rival.build(weight, support)
    x = torch.randn(rows, 48)
    with torch.inference_mode():
        assert error(run, weight, x) <= rival.tolerance
        assert error(run, weight.roll(1, 0), x) > 0.5


def test_refusals_are_sentences():
    assert Rival("x", lambda w, s: lambda x: x, package="no_such_package").refuses(Call(1, (4, 4))) == (
        "no_such_package is not installed"
    )
    weight_only, dynamic = (RIVALS.get(f"torch dense int8 ({kind})") for kind in ("weight only", "dynamic"))
    assert weight_only.refuses(Call(2, (4, 4))) == "it is for up to 1 row"
    assert dynamic.refuses(Call(1, (4, 4))) == "it is for 2 rows or more"
    assert "float32" in str(dynamic.refuses(Call(2, (4, 4), dtype=torch.float64)))
