"""A small made-up result, shaped like `result.json`, and a browser to look at pages with."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--hide-scrollbars")  # fmt: skip


def _browse(page: Path, profile: Path, *flags: str) -> str:
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, *QUIET, f"--user-data-dir={profile}", *flags, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


@pytest.fixture
def browse() -> Callable[..., str]:
    """`browse(page, profile, *flags)`: what headless Chromium prints."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium (apt-get install chromium); the CI entry point installs it")
    return _browse


@pytest.fixture
def sample() -> dict[str, Any]:
    sites = [
        {
            "name": f"encoder.layer.{i}.{part}", "shape": [384, 384], "pattern": "row", "count": 44_160, "density": 0.3, "error": 0.04,
            "kernel": "tile-fp32" if i else "dense", "us": 100.0 + i, "dense_us": 250.0, "ceiling_us": 60.0,
            "reason": "tile-fp32 is 2.5x faster than dense at 4096 rows" if i else "dense stays: <script>alert(1)</script>",
        }
        for i in range(3) for part in ("query", "key")
    ]  # fmt: skip
    return {
        "schema": 1, "created": "2026-01-01T00:00:00+00:00", "command": "sparseworks compress --out out/demo",
        "versions": {"sparseworks": "0.1.0", "torch": "2.13.0", "python": "3.11"},
        "machine": {"cpu": "Some CPU", "isa": "avx2"},
        "model": {"name": "sample", "parameters": 1000},
        "method": {"name": "wanda", "composition": "score=product", "source": "Sun et al. (2023), arXiv 2306.11695"},
        "recipe": "schema: 1\n", "seed": 0, "density": 0.3,
        "quality": {"metric": "ndcg@10", "dense": 0.4, "one_shot": 0.35, "sparse": 0.397, "higher_is_better": True, "drop": 0.0075},
        "speed": {
            "dense_ms": 100.0, "sparse_ms": 45.0, "ratio": 2.22, "spread": 0.03, "case": "32 documents", "threads": 2, "rows": 4096,
            "cases": [{"name": "32 documents", "dense_ms": 100.0, "sparse_ms": 45.0, "ratio": 2.22, "spread": 0.03},
                      {"name": "1 query", "dense_ms": 5.0, "sparse_ms": 3.0, "ratio": 1.67, "spread": None}],
        },
        "bytes": {"dense": 90_000_000, "sparse": 60_000_000}, "sites": sites,
        "recovery": {"steps": 200, "losses": [0.5, 0.3, 0.2], "validations": [[100, 0.1], [150, 0.08], [200, 0.07]], "best": 0.07,
                     "stopped": "steps", "seconds": 60.0},
        "frontier": [{"label": "dense", "speed": 1.0, "quality": 0.4}, {"label": "30 %", "speed": 2.2, "quality": 0.397, "chosen": True}],
        "steps": [{"what": "prune", "seconds": 3.0, "note": "36 sites"}],
    }  # fmt: skip
