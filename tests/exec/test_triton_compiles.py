"""The Triton kernels, compiled for the GPU they are written for; no GPU is needed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "triton/compiling.py"
KERNELS = Path(__file__).parents[2] / "src/sparseworks/exec/triton"
NO_PRODUCT = {
    "bitmap._one",
    "columns._add",
    "csr._few",
    "csr._several",
    "decode._merge",
    "decode._bounds",
    "decode._scores",
    "select._select",
}
SHARED_MEMORY = 227 * 1024  # of a program on an H100


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_every_kernel_compiles_for_hopper_and_multiplies_in_tensor_cores(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, str(SCRIPT)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    made = [json.loads(line) for line in done.stdout.splitlines()]
    written = {
        f"{path.stem}.{name}"
        for path in KERNELS.glob("*.py")
        for name in re.findall(r"\brun\(\s*(_\w+)", path.read_text(encoding="utf-8"))
    }
    assert {m["kernel"] for m in made} == written
    assert {m["kernel"] for m in made} - {m["kernel"] for m in made if m["tensor cores"]} == NO_PRODUCT
    assert max(m["shared"] for m in made) <= SHARED_MEMORY
