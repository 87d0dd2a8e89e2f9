"""A writer that is killed at any moment loses nothing that was acknowledged: ten kills; the benchmark does hundreds."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "retrieval" / "kill_index.py"


def script():
    spec = importlib.util.spec_from_file_location("kill_index", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kill_index"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_ten_kills_lose_nothing():
    done = subprocess.run(
        [sys.executable, SCRIPT, "--kills", "10", "--longest", "0.2"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    head, row = done.stdout.strip().splitlines()[1:]
    names = re.split(r"\s{2,}", head)
    found = dict(zip(names, re.split(r"\s{2,}", row), strict=True))
    assert found["kills"] == "10" and found["lost"] == "0"


def test_the_check_sees_what_is_lost(tmp_path):
    kill = script()
    index = kill.Index.create(tmp_path / "index", kill.WIDTH)
    index.add(["1", "2"], kill.vectors([1, 2]))
    index.add(["3"], kill.vectors([4]))
    assert "lost: [9]" in kill.check(index.path, kill.Known({1, 2, 3, 9}))
    assert "deleted, or never added: [3]" in kill.check(index.path, kill.Known({1, 2}))
    assert "half of a batch" in kill.check(index.path, kill.Known({3}, adding={1, 2, 4}))
    assert "another than was added" in kill.check(index.path, kill.Known({1, 2, 3}))
