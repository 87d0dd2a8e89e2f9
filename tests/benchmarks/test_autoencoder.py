"""The benchmark of autoencoders runs, and its two contenders take the same step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_runs_and_stores_its_lines(tmp_path):
    command = [
        sys.executable,
        "benchmarks/codes/autoencoder.py",
        "--quick",
        "--threads",
        "1",
        "--json",
        str(tmp_path / "a"),
    ]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    found = json.loads((tmp_path / "a.json").read_text())
    assert [entry["ours"] for entry in found["lines"]] == ["decode", "ours", "batch_topk_sae", "hierarchical_topk"]
