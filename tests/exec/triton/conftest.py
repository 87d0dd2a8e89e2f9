"""The kernels run on a GPU if there is one, otherwise in Triton's interpreter, which must be chosen before Triton is first imported.

Without a GPU these files are collected only with `TRITON_INTERPRET=1`: `tests/exec/test_triton*.py` run them so, in processes of their own.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch

GPU = torch.cuda.is_available()
os.environ.setdefault(
    "TRITON_DEFAULT_FP_FUSION", "1"
)  # Triton 3.9 warns where it is not set, and warnings are errors here

able = find_spec("triton") is not None and (GPU or os.environ.get("TRITON_INTERPRET") == "1")
collect_ignore_glob = [] if able else ["test_*.py"]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


@pytest.fixture(scope="session")
def device() -> str:
    return "cuda" if GPU else "cpu"


@pytest.fixture(params=DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def dtype(request) -> torch.dtype:
    return request.param


@pytest.fixture
def close():
    """Equal up to rounding of the type, relative to the largest expected value."""

    def check(got: torch.Tensor, expected: torch.Tensor) -> None:
        assert got.shape == expected.shape
        if got.numel():
            scale = float(expected.double().abs().nan_to_num(posinf=0.0).max()) + 1.0
            apart = float((got.cpu().double() - expected.cpu().double()).abs().max()) / scale
            assert apart <= TOLERANCE[got.dtype], f"{apart:.1e} apart"

    return check
