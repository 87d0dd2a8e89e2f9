from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from sparseworks.cli import main
from sparseworks.cli.app import app
from sparseworks.cli.compress import read_share
from sparseworks.core.errors import BudgetError

RUN = CliRunner()
COMMANDS = ("compress", "inspect", "plan", "bench", "methods", "evaluate")
TINY = "sparseworks/tiny-lm"


def answer(*args: str) -> dict | list:
    result = RUN.invoke(app, [*args, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(command: str):
    result = RUN.invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "--json" in result.stdout


def test_methods_lists_records():
    rows = answer("methods")
    assert {"name", "family", "catalog", "source", "composition", "status"} <= set(rows[0])
    assert {"magnitude", "wanda", "sparsegpt"} <= {r["name"] for r in rows}


def test_bench_shows_every_kernel_and_why_others_refuse():
    data = answer("bench", "--shape", "64x128", "--density", "0.2", "--batch", "16", "--threads", "1")
    assert any(k["kernel"] == "torch dense" for k in data["kernels"])
    assert len(data["kernels"]) + len(data["refused"]) >= 5
    assert all(why for why in data["refused"].values())


def test_inspect_shows_sites_and_blocks():
    data = answer("inspect", TINY)
    assert len(data["blocks"]) == 6
    assert any(s["name"].endswith("down_proj") for s in data["sites"])
    assert any(c["kind"] == "neuron" for c in data["couplings"])


def test_errors_are_one_line_and_exit_code_1(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sparseworks", "inspect", "no/such-folder"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("sparseworks: ")
    assert "Traceback" not in error


def test_usage_errors_exit_with_2():
    assert RUN.invoke(app, ["bench", "--density", "7"]).exit_code == 2


def test_shares_are_read_in_both_forms():
    assert read_share("1%") == read_share("0.01") == 0.01
    with pytest.raises(BudgetError):
        read_share("a lot")


def small(out: Path, *more: str) -> list[str]:
    """A job of seconds: little text, short sequences."""
    fixed = ("--density", "0.5", "--samples", "8", "--length", "32", "--threads", "1", "--limit", "4")
    return ["compress", TINY, "--method", "wanda", "--out", str(out), *fixed, *more]


def test_compress_writes_model_report_and_figures_and_refuses_to_overwrite(tmp_path: Path):
    out = tmp_path / "lm"
    data = answer(*small(out))
    assert data["quality"]["metric"] == "perplexity"
    assert data["quality"]["sparse"] > data["quality"]["dense"]
    assert (out / "report.html").exists()
    assert json.loads((out / "result.json").read_text())["density"] == pytest.approx(0.5, abs=1e-3)
    assert (out / "model" / "sparsity.json").exists()
    assert not (out / ".unfinished").exists()
    again = RUN.invoke(app, small(out))
    assert "finished result" in str(again.exception)
    assert RUN.invoke(app, small(out, "--overwrite"), catch_exceptions=False).exit_code == 0
    shown = answer("inspect", str(out / "model"))
    assert all(s["density"] == pytest.approx(0.5, abs=0.01) for s in shown["sites"])


def test_a_goal_out_of_reach_ends_with_code_3(tmp_path: Path):
    args = small(tmp_path / "lm", "--speedup", "50", "--max-drop", "0.1%")
    assert RUN.invoke(app, args, catch_exceptions=False).exit_code == 3


def test_killed_and_started_again_gives_the_same_supports(tmp_path: Path):
    command = [sys.executable, "-m", "sparseworks.cli"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *small(whole)], check=True, env=env, capture_output=True)
    first = subprocess.Popen([*command, *small(killed)], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = killed / ".unfinished" / "prune"
    until = time.monotonic() + 60
    while time.monotonic() < until and first.poll() is None and len(list(folder.glob("*"))) < 3:
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not (killed / "result.json").exists(), "it finished before it could be killed"
    subprocess.run([*command, *small(killed)], check=True, env=env, capture_output=True)
    a, b = (load_file(x / "model" / "supports.safetensors") for x in (whole, killed))
    assert a.keys() == b.keys()
    assert all(bool((a[k] == b[k]).all()) for k in a)
