"""Every registered mask, through the public suite."""

from __future__ import annotations

import pytest

from sparseworks.attention.masks import MASKS
from sparseworks.testing import check_mask


@pytest.mark.parametrize("name", MASKS.names())
def test_mask(name):
    check_mask(name)
