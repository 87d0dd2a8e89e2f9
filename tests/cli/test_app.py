from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from sparseworks.cli import main
from sparseworks.cli.app import app
from sparseworks.cli.compress import read_share
from sparseworks.cli.machine import forget_timings, value_types
from sparseworks.core.errors import BudgetError, CheckpointError, RecipeError, SparseworksError
from sparseworks.io import EMBEDDED

RUN = CliRunner()
COMMANDS = (
    "compress",
    "prune",
    "inspect",
    "plan",
    "bench",
    "methods",
    "compare",
    "evaluate",
    "attention",
    "features",
    "index",
    "search",
    "serve",
)
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


def test_help_names_every_model_that_comes_with_the_library():
    for words in (["--help"], ["inspect", "--help"]):
        shown = RUN.invoke(app, words, env={"COLUMNS": "400"}).stdout
        assert all(name in shown for name in EMBEDDED), shown


def test_the_shell_completes_names():
    env = {
        "_SPARSEWORKS_COMPLETE": "complete_bash",
        "COMP_WORDS": "sparseworks compress --method wan",
        "COMP_CWORD": "3",
    }
    done = RUN.invoke(app, [], env=env, prog_name="sparseworks")
    assert "wanda_ls" in done.stdout.split()
    assert "magnitude" not in done.stdout.split()


def test_methods_lists_records():
    rows = answer("methods")
    assert {"name", "family", "catalog", "source", "composition", "status"} <= set(rows[0])
    assert {"magnitude", "wanda", "sparsegpt"} <= {r["name"] for r in rows}


def test_one_method_is_its_page():
    facts = answer("methods", "wanda")
    assert facts["arxiv"] == "2306.11695" and facts["when"] and facts["when_not"]
    shown = RUN.invoke(app, ["methods", "wanda"], catch_exceptions=False).stdout
    assert "When to use it" in shown and facts["when"][:40] in " ".join(shown.split())
    assert "||X_j||_2" in shown and "arxiv.org/abs/2306.11695" in shown
    assert RUN.invoke(app, ["methods", "wande"]).exit_code == 1


def test_plan_is_a_table_that_is_not_wrapped():
    shown = RUN.invoke(
        app, ["plan", TINY, "--batch", "1", "--density", "1.0", "--threads", "1"], catch_exceptions=False
    )
    lines = shown.stdout.splitlines()
    assert lines[0].split()[:3] == ["site", "rows", "density"]
    assert len(lines) == 1 + 42 + 1
    assert RUN.invoke(app, ["plan", TINY, "--batch", "one"]).exit_code == 1


def test_remeasure_forgets_kept_timings(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("SPARSEWORKS_CACHE", str(tmp_path))
    (tmp_path / "plans-x.json").write_text("{}")
    (tmp_path / "ceilings-x.json").write_text("{}")
    forget_timings()
    assert [f.name for f in tmp_path.iterdir()] == ["ceilings-x.json"]


def test_bench_shows_every_kernel_and_why_others_refuse():
    data = answer("bench", "--shape", "64x128", "--density", "0.2", "--batch", "16", "--threads", "1", "--rounds", "1")
    assert any(k["kernel"] == "torch dense fp32" for k in data["kernels"])
    assert len(data["kernels"]) + len(data["refused"]) >= 5
    assert all(why for why in data["refused"].values())


def test_value_types_are_named_together_or_one_by_one():
    assert value_types([]) == (torch.float32,)
    assert value_types(["bf16", "int16, bf16"]) == (torch.float32, torch.bfloat16, torch.int16)


def test_inspect_shows_sites_and_blocks():
    data = answer("inspect", TINY)
    assert len(data["blocks"]) == 6
    assert any(s["name"].endswith("down_proj") for s in data["sites"])
    assert any(c["kind"] == "neuron" for c in data["couplings"])


def test_errors_are_one_line_and_exit_code_1(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sparseworks", "inspect", "no-such-model"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("sparseworks: ")
    assert "Traceback" not in error


def test_usage_errors_exit_with_2():
    assert RUN.invoke(app, ["bench", "--density", "7"]).exit_code == 2
    assert RUN.invoke(app, ["bench", "--pattern", "2:4", "--density", "0.1"]).exit_code == 1  # 2:4 is half


def test_prune_never_loads_the_model_and_writes_one_that_others_read(tmp_path: Path, text: Path, monkeypatch):
    import sparseworks.io
    import sparseworks.jobs.setting  # whoever binds `load` when imported is to bind the real one

    monkeypatch.setattr(sparseworks.io, "load", lambda *_: pytest.fail("the model was loaded"))
    out = tmp_path / "half"
    options = ("--method", "wanda", "--density", "0.5", "--data", str(text), "--samples", "8", "--length", "32")
    found = answer("prune", TINY, *options, "--out", str(out))
    assert isinstance(found, dict) and found["kept"] * 2 == found["size"] and len(found["sites"]) == 42
    monkeypatch.undo()
    listed = answer("inspect", str(out))
    assert isinstance(listed, dict) and {s["density"] for s in listed["sites"]} == {0.5}
    assert not (tmp_path / "half.work").exists()
    with pytest.raises(CheckpointError, match="exists; give another --out"):
        RUN.invoke(app, ["prune", TINY, "--out", str(out)], catch_exceptions=False)


def test_prune_without_data_asks_for_none(tmp_path: Path):
    found = answer("prune", TINY, "--method", "magnitude", "--density", "0.3", "--out", str(tmp_path / "out"))
    assert isinstance(found, dict) and found["kept"] == pytest.approx(0.3 * found["size"], abs=42)


def test_shares_are_read_in_both_forms():
    assert read_share("1%") == read_share("0.01") == 0.01
    with pytest.raises(BudgetError):
        read_share("a lot")


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.jsonl"
    lines = (
        f"The king of number {n} rode over the long hill to town, and all the people asked him for bread."
        for n in range(300)
    )
    file.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return file


def small(out: Path, text: Path, *more: str) -> list[str]:
    """A job of seconds: little text, short sequences."""
    fixed = ("--density", "0.5", "--samples", "8", "--length", "32", "--threads", "1", "--limit", "2")
    own = ("--data", str(text), "--task-data", str(text))
    return ["compress", TINY, "--method", "wanda", "--out", str(out), *fixed, *own, *more]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, text: Path) -> tuple[Path, dict]:
    """An undisturbed run."""
    out = tmp_path_factory.mktemp("whole") / "lm"
    data = answer(*small(out, text))
    assert isinstance(data, dict)
    return out, data


def test_compress_writes_model_report_and_figures(whole):
    out, data = whole
    assert data["quality"]["metric"] == "perplexity"
    assert data["quality"]["sparse"] != data["quality"]["dense"]
    assert (out / "report.html").exists()
    stored = json.loads((out / "result.json").read_text())
    assert stored == data
    assert stored["density"] == pytest.approx(0.5, abs=1e-3)
    for part, keys in {
        "quality": {"metric", "dense", "sparse"},
        "speed": {"dense_ms", "sparse_ms", "ratio"},
        "bytes": {"dense", "sparse", "disk_dense", "disk_sparse"},
    }.items():
        assert keys <= set(stored[part])
    assert all({"name", "density", "kernel", "reason"} <= set(s) for s in stored["sites"])
    assert stored["bytes"]["disk_sparse"] < stored["bytes"]["disk_dense"]
    assert (out / "model" / "sparsity.json").exists()
    assert not (out / ".unfinished").exists()
    shown = answer("inspect", str(out / "model"))
    assert all(s["density"] == pytest.approx(0.5, abs=0.01) for s in shown["sites"])


def test_a_finished_result_is_replaced_only_when_asked(whole, text: Path, tmp_path: Path):
    out = tmp_path / "lm"
    shutil.copytree(whole[0], out)
    again = RUN.invoke(app, small(out, text))
    assert isinstance(again.exception, CheckpointError)
    assert "finished result" in str(again.exception)
    assert RUN.invoke(app, small(out, text, "--overwrite"), catch_exceptions=False).exit_code == 0


def test_a_goal_out_of_reach_ends_with_code_3(tmp_path: Path, text: Path):
    args = small(tmp_path / "lm", text, "--speedup", "50", "--max-drop", "0.1%")
    assert RUN.invoke(app, args, catch_exceptions=False).exit_code == 3


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--method", "wnda", "Did you mean 'wanda'"),
        ("--pattern", "2;4", "Known forms"),
        ("--allocate", "owll", "Did you mean 'owl'"),
        ("--repair", "bais", "Did you mean 'bias'"),
        ("--layout", "bitmsk", "Did you mean 'bitmask'"),
        ("--max-drop", "a lot", "write 1% or 0.01"),
        ("--task", "perplexty", "Did you mean 'perplexity'"),
        ("--values", "bf16,int8", "int16"),
    ],
)
def test_unknown_names_are_refused_with_near_ones(tmp_path: Path, text: Path, option: str, value: str, says: str):
    result = RUN.invoke(app, small(tmp_path / "lm", text, option, value))
    assert isinstance(result.exception, SparseworksError)
    assert says in str(result.exception)
    assert "\n" not in str(result.exception)


def test_a_recipe_stands_alone(tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("schema: 1\nseed: 0\nrules:\n- sites: ['*']\n  method: wanda\n")
    for extra in (("--density", "0"), ("--repair", "bias"), ("--speedup", "2")):
        result = RUN.invoke(app, ["compress", TINY, "--recipe", str(recipe), "--out", str(tmp_path / "lm"), *extra])
        assert isinstance(result.exception, RecipeError)


def test_without_a_model_the_demonstration_goes_to_its_own_folder(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("out/demo").mkdir(parents=True)
    Path("out/demo/result.json").write_text("{}")
    result = RUN.invoke(app, ["compress"])
    assert "out/demo holds a finished result" in str(result.exception)


STOPPED = """
import importlib, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it starts in the background ignore it
module, owner, name, nth, sign = sys.argv[1:6]
sys.argv[1:6] = []
owner = getattr(importlib.import_module(module), owner)
real, calls = getattr(owner, name), []
def stop(*args, **options):
    calls.append(1)
    if len(calls) == int(nth):
        os.kill(os.getpid(), int(sign))
    return real(*args, **options)
setattr(owner, name, stop)
from sparseworks.cli import main
main()
"""
UNIT, WRITE = ("sparseworks.weights.checkpoint", "Workdir", "save_unit"), ("sparseworks.io.folder", "Draft", "write")


def stopped(command: list[str], at: tuple[str, str, str], nth: int, sign: int) -> subprocess.CompletedProcess:
    """Run a command that a signal hits at the n-th call of a function: the same moment on a slow and on a fast machine."""
    code = [sys.executable, "-W", "ignore", "-c", STOPPED, *at, str(nth), str(int(sign)), *command]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(code, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(("at", "nth"), [(UNIT, 4), (WRITE, 2)])
def test_killed_and_started_again_gives_the_same_supports(whole, text: Path, tmp_path: Path, at, nth: int):
    out = tmp_path / "killed"
    assert stopped(small(out, text), at, nth, signal.SIGKILL).returncode == -signal.SIGKILL
    assert (out / ".unfinished" / "command.json").exists()
    assert len(list((out / ".unfinished" / "prune").glob("unit_*.safetensors"))) >= 3
    assert not (out / "result.json").exists()
    assert not (out / "model").exists()
    other = RUN.invoke(app, small(out, text, "--seed", "1"))
    assert "unfinished run of another command" in str(other.exception)
    answer(*small(out, text))
    a, b = (load_file(x / "model" / "supports.safetensors") for x in (whole[0], out))
    assert a.keys() == b.keys()
    assert all(bool((a[k] == b[k]).all()) for k in a)
    assert not (out / ".unfinished").exists()


def test_interrupted_by_the_user_ends_with_130_and_one_line(text: Path, tmp_path: Path):
    done = stopped(small(tmp_path / "lm", text), UNIT, 2, signal.SIGINT)
    assert done.returncode == 130
    assert "Run the same command again" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_packed_model_cannot_be_planned_anew_and_the_error_says_what_to_do(monkeypatch):
    import torch

    import sparseworks.io
    from sparseworks.cli.commands import run_plan
    from sparseworks.core.errors import ModelError

    model = torch.nn.Linear(2, 2)
    model.sparsity = sparseworks.io.Sparsity({}, "packed", {}, None)  # type: ignore[assignment]
    monkeypatch.setattr(sparseworks.io, "load", lambda name: model)
    with pytest.raises(ModelError, match="layout bitmask"):
        run_plan("saved", "1", 0.3, "row", False, 1)


def test_the_demonstration_stores_pairs_in_16_bits_unless_the_user_says_otherwise(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []

    def stop(how, goal, given, work, say):
        seen.append((str(how.pattern), given["values"], goal.patterns if goal else None))
        raise BudgetError("seen enough")

    monkeypatch.setattr("sparseworks.cli.compress._compress", stop)
    for extra in ([], ["--pattern", "row", "--density", "0.3"], [TINY, "--values", "int16", "--speedup", "1.2"]):
        RUN.invoke(app, ["compress", *extra, "--out", str(tmp_path / str(len(seen)))])
    assert [pattern for pattern, _, _ in seen[:2]] == ["block:1x2", "row"]
    assert [tuple(values) for _, values, _ in seen] == [("int16",), (), ("int16",)]
    assert "block:1x2" in seen[2][2]
