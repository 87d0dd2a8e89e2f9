"""The leaderboard: means over seeds, the best in bold, plots that are redrawn when their data change, pages that go stale."""

from __future__ import annotations

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

import sparseworks as sw

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def build():
    return runpy.run_path(str(ROOT / "docs" / "build.py"))


@pytest.fixture(scope="module")
def board(build):
    return build["leaderboard"]


@pytest.fixture(scope="module")
def folder(board, tmp_path_factory):
    """Two methods at two sparsities with three seeds, stored as a script does."""
    rows = sys.modules["rows"]
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    run = rows.Rows("toy", {}, quick=True)

    def one(label, method, density, seed, value):
        chosen = sw.method(method, density=density) if density < 1 else None
        supports = sw.prune(model, sw.method("random", density=density), progress=False).supports if chosen else {}
        record = rows.record_of(
            chosen,
            supports,
            model,
            task="digits",
            metric="accuracy, %",
            value=value,
            epochs=4,
            examples=600,
            data="4 epochs",
            seed=seed,
        )
        return rows.Row(label, density, record)

    for seed in range(3):
        run.add(f"dense {seed}", lambda s=seed: one("dense", "", 1.0, s, 97.0 + s))
        for density in (0.1, 0.05):
            run.add(f"RigL {density} {seed}", lambda d=density, s=seed: one("RigL", "rigl", d, s, 90.0 + s - 1 / d))
            run.add(f"SET {density} {seed}", lambda d=density, s=seed: one("SET", "set", d, s, 88.0 + s - 1 / d))
    target = tmp_path_factory.mktemp("rows")
    run.store(target / "toy")
    return target


def test_the_page_has_means_spreads_and_links(board, folder):
    page = board.page("mark", ["rigl"], folder)
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert table[0].startswith("| method | pattern | support | 90 % | 95 % | saw |")
    assert table[2].startswith("| dense **98.00 ± 1.00** | dense |")
    assert table[3].startswith(
        "| [RigL](methods/rigl.md) | tensor | sparse-to-sparse, moves | **81.00 ± 1.00** | **71.00 ± 1.00** | 4 epochs |"
    )
    assert table[4].startswith("| SET | tensor | sparse-to-sparse, moves | 79.00 ± 1.00 | 69.00 ± 1.00 | 4 epochs |")
    assert "## digits" in page and "(plots/digits-accuracy-212.svg)" in page


def test_methods_have_their_own_figures(board, folder):
    lines = board.figures("rigl", folder)
    assert lines[2] == "| digits | accuracy, % | RigL | tensor | 90 % | 81.00 ± 1.00 | 98.00 ± 1.00 |"
    assert board.figures("wanda", folder) == []


def test_plots_know_their_data(board, folder):
    ((name, drawn),) = board.pictures(folder).items()
    assert name == "plots/digits-accuracy-212.svg" and "currentColor" not in drawn and drawn.count("<svg") == 1
    (rows,) = (list(rows) for _, rows in board.stored(folder))
    assert drawn == board.picture(rows)
    changed = [replace(rows[0], record=replace(rows[0].record, value=1.0)), *rows[1:]]
    assert board.digest(changed) != board.digest(rows) == drawn.split()[1]


def test_only_plots_of_other_data_are_drawn_again(board, folder, tmp_path, monkeypatch):
    ((name, drawn),) = board.pictures(folder).items()
    path = tmp_path / name
    path.parent.mkdir()
    path.write_text(drawn + "<!-- as it was -->")
    assert board.pictures(folder, tmp_path)[name].endswith("<!-- as it was -->")
    path.write_text("<!-- of other data -->\n<svg/>")
    assert board.pictures(folder, tmp_path)[name] == drawn


def test_without_results_the_page_says_so(board, tmp_path):
    assert "No results are stored yet." in board.page("mark", [], tmp_path)
    assert board.pictures(tmp_path) == {}


def test_every_generated_file_goes_stale(build, tmp_path, monkeypatch, capsys):
    space = build["main"].__globals__
    monkeypatch.setitem(space, "HERE", tmp_path)
    monkeypatch.setitem(space, "generated", lambda: {"methods/a.md": "a\n", "plots/b.svg": "<!-- 1 -->\n<svg/>"})
    monkeypatch.setattr(sys, "argv", ["build.py"])
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "gone.md").write_text("")
    assert build["main"]() == 0 and not (tmp_path / "methods" / "gone.md").exists()
    monkeypatch.setattr(sys, "argv", ["build.py", "--check"])
    assert build["main"]() == 0
    (tmp_path / "plots" / "b.svg").write_text("<!-- 1 -->\n<svg>other fonts</svg>")
    assert build["main"]() == 0
    (tmp_path / "plots" / "b.svg").write_text("<!-- 2 -->\n<svg/>")
    (tmp_path / "methods" / "a.md").write_text("b\n")
    (tmp_path / "methods" / "gone.md").write_text("")
    assert build["main"]() == 1
    said = capsys.readouterr().err
    assert all(f"docs/{name} is stale" in said for name in ("methods/a.md", "plots/b.svg", "methods/gone.md"))


def test_every_registered_method_has_a_page(build):
    wanted = build["generated"]()
    assert {f"methods/{name}.md" for name in build["names"]()} <= set(wanted)
    assert "(methods/wanda.md)" in wanted["methods.md"]
    assert json.dumps(wanted["leaderboard.md"])
