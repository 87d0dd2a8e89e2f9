"""The benchmark of pursuits runs, and what it compares agrees."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "codes" / "pursuit.py"


def test_it_runs_and_supports_agree(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pursuit.py", "--quick", "--rounds", "1", "--json", str(tmp_path / "pursuit")])
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("pursuit_benchmark", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main()
    stored = json.loads((tmp_path / "pursuit.json").read_text())
    assert {line["peer"] for line in stored["lines"]} == {"orthogonal_mp_gram", "OrthogonalMatchingPursuit"}
    assert list(stored["same_support"].values()) == [["32 of 32", "32 of 32"]]
    assert "Signals with the same support" in capsys.readouterr().out
