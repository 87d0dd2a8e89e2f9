"""The benchmark of SAEBench's protocols runs, on autoencoders that it trains and on those that another run saved."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "codes"


def _main(name, *arguments, monkeypatch):
    path = list(sys.path)
    spec = importlib.util.spec_from_file_location(f"benchmarks_codes_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--quick", "--threads", "1", *arguments])
        module.main()
    finally:
        sys.path[:] = path


def test_it_measures_what_was_saved(tmp_path, monkeypatch, capsys):
    _main("autoencoders", "--methods", "topk_sae", "--save", str(tmp_path / "saved"), monkeypatch=monkeypatch)
    _main("saebench", "--saved", str(tmp_path / "saved"), "--json", str(tmp_path / "a"), monkeypatch=monkeypatch)
    capsys.readouterr()
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["activations", "topk_sae"]
    figures = rows[0]["more"]
    assert figures["disentangled"] == pytest.approx((figures["cause"] + figures["isolation"]) / 2)
    assert all(0 <= row["value"] <= 1 for row in rows)
