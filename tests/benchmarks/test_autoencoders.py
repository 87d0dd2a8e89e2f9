"""The benchmark of autoencoders of a decoder's activations runs on any text, and holds methods against the baseline at their own L0."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "codes" / "autoencoders.py"


@pytest.fixture(scope="module")
def script():
    path = list(sys.path)
    spec = importlib.util.spec_from_file_location("benchmarks_codes_autoencoders", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = path
    return module


def test_it_runs_and_stores_a_row_a_budget(script, tmp_path, monkeypatch, capsys):
    text = tmp_path / "text.txt"
    text.write_text(
        "".join(f"The {n} th of {n * n} lines says that {n % 7} comes after {n % 5}.\n" for n in range(600))
    )
    command = ["autoencoders.py", "--quick", "--threads", "1", "--data", str(text), "--json", str(tmp_path / "a")]
    monkeypatch.setattr(sys, "argv", command)
    script.main()
    capsys.readouterr()
    found = json.loads((tmp_path / "a.json").read_text())
    assert len(found["rows"]) == 7 * 3
    assert {line["seeds"] for line in found["tables"]["means over seeds"]} == {1}
    assert {row["method"] for row in found["rows"]} == {script.TOPK, *script.CLAIMS} - {script.GRADIENTS}
    l0 = {row["density"] * 64: row["more"]["l0"] for row in found["rows"] if row["method"] == script.TOPK}
    assert l0 == pytest.approx({2.0: 2, 4.0: 4, 8.0: 8}, abs=0.2)
    assert len(found["tables"]["beside topk_sae at L0 4"]) == len(script.CLAIMS) - 1


def test_journals_of_runs_of_other_methods_are_joined(script, tmp_path, monkeypatch, capsys):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"The {n} th of {n * n} lines comes after {n % 5}.\n" for n in range(600)))
    begin = ["autoencoders.py", "--quick", "--threads", "1", "--data", str(text)]
    names = ("topk_sae", "g_sae")
    for name in names:
        own = ["--methods", name, "--journal", str(tmp_path / f"{name}.json"), "--save", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", [*begin, *own])
        script.main()
    assert (tmp_path / "g_sae-4-0-0.003-0.05.safetensors").exists()
    rest = ["--as-it-is", "--methods", *names, "--join", *(str(tmp_path / f"{n}.json") for n in names)]
    monkeypatch.setattr(sys, "argv", [*begin, *rest, "--json", str(tmp_path / "all")])
    script.main()
    capsys.readouterr()
    found = json.loads((tmp_path / "all.json").read_text())
    assert [row["method"] for row in found["rows"]] == ["topk_sae"] * 3 + ["g_sae"] * 3


def test_the_baseline_is_interpolated_at_the_l0_of_the_method(script):
    class Point:
        def __init__(self, l0, value):
            self.more, self.value = {"l0": l0}, value

    curve = [Point(4.0, 0.5), Point(16.0, 0.9), Point(8.0, 0.7)]
    at = lambda l0: script._at(l0, curve, script._explained)  # noqa: E731
    assert at(8.0) == pytest.approx(0.7) and at(16.5) == 0.9 and at(2.0) is None and at(99.0) is None
    assert at(8.0 * 2**0.5) == pytest.approx(0.8)
