"""A run that is cut off anywhere ends like one that was not; state of another run, or damaged, is never used."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

import sparseworks as sw
from sparseworks.core.errors import CheckpointError
from sparseworks.stream import sites
from sparseworks.stream.sites import bias_of
from sparseworks.weights import checkpoint, prune
from sparseworks.weights.checkpoint import Workdir


def squared(model, batch):
    return model(batch).square().mean()


def quiet(model, method, data=None, **options):
    return prune(model, method, data, progress=False, loss=squared, **options)


def equal(a, b) -> bool:
    return all(torch.equal(x, b[k]) for k, x in a.items())


class StoppedError(Exception):
    pass


METHODS = {
    "wanda": sw.method("wanda"),
    "sparsegpt": sw.method("sparsegpt", allocate="erk"),
    "global": sw.method("wanda_ls", pattern="global"),
    "snip per tensor": sw.method("snip", pattern="tensor"),
    "bias": sw.method("wanda_bias"),
    "random": sw.method("random"),
}


@pytest.mark.parametrize("name", METHODS)
def test_cut_off_after_any_unit_and_resumed(tower, batches, tmp_path, monkeypatch, name):
    whole = tower()
    expected = quiet(whole, METHODS[name], batches, seed=3)
    save = Workdir.save_unit
    for stop, saved in [(0, False), (1, False), (2, False), (2, True), (3, False), (4, False)]:
        folder, units = tmp_path / f"{stop}{saved}", []

        def save_or_stop(self, *args, stop=stop, saved=saved, units=units):
            units.append(args[0])
            if len(units) <= stop or saved:
                save(self, *args)
            if len(units) > stop:
                raise StoppedError

        monkeypatch.setattr(Workdir, "save_unit", save_or_stop)
        with pytest.raises(StoppedError):
            quiet(tower(), METHODS[name], batches, seed=3, workdir=folder)
        monkeypatch.setattr(Workdir, "save_unit", save)
        model = tower()
        found = quiet(model, METHODS[name], batches, seed=3, workdir=folder)
        assert found.supports == expected.supports and found.rows == expected.rows
        assert equal(model.state_dict(), whole.state_dict())


def test_finished_blocks_are_not_solved_again(tower, batches, tmp_path, monkeypatch):
    first = quiet(tower(), "wanda", batches, workdir=tmp_path)
    monkeypatch.setattr("sparseworks.weights.streaming.solve_matrix", lambda *a, **k: pytest.fail("solved again"))
    assert quiet(tower(), "wanda", batches, workdir=tmp_path).supports == first.supports


SCRIPT = """
import sys, time, torch
sys.path.insert(0, {here!r})
from conftest import Residual, Tower
from sparseworks.weights import prune
torch.set_num_threads(1)
class Slow(Residual):
    def forward(self, x):
        time.sleep(0.01)
        return super().forward(x)
torch.manual_seed(0)
model = Tower(blocks=6, block=Slow).eval()
data = list(torch.load({data!r}))
print("ready", flush=True)
prune(model, "sparsegpt", data, workdir={work!r}, progress=False)
print("finished", flush=True)
"""


def test_kill_9_at_a_random_moment(tower, batches, tmp_path):
    here, data, work = os.path.dirname(__file__), tmp_path / "data.pt", tmp_path / "work"
    torch.save(torch.stack(batches), data)
    code = SCRIPT.format(here=here, data=str(data), work=str(work))
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child, child.stdout:
        assert child.stdout.readline() == "ready\n"
        time.sleep(random.Random().uniform(0.05, 0.8))
        os.kill(child.pid, signal.SIGKILL)
    whole, resumed = tower(blocks=6), tower(blocks=6)
    expected = quiet(whole, "sparsegpt", batches)
    # The child's blocks are of another class, which is no part of what decides the outcome.
    found = quiet(resumed, "sparsegpt", batches, workdir=work)
    assert found.supports == expected.supports and equal(resumed.state_dict(), whole.state_dict())


@pytest.mark.parametrize("other", ["method", "seed", "data", "model", "skip"])
def test_state_of_another_run_is_refused(tower, batches, tmp_path, other):
    quiet(tower(), "wanda", batches, workdir=tmp_path)
    model = tower()
    if other == "model":
        with torch.no_grad():
            model.last.bias[0] += 1e-3
    data = [*batches[:2], batches[2] + 1e-4] if other == "data" else batches
    changed = {"seed": {"seed": 1}, "skip": {"skip": ["last"]}}.get(other, {})
    method = sw.method("wanda", density=0.4) if other == "method" else "wanda"
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="another run"):
        quiet(model, method, data, workdir=tmp_path, **changed)
    assert equal(before, model.state_dict())


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "foreign", "gone"])
@pytest.mark.parametrize("name", ["unit_0002.safetensors", "decision.safetensors"])
def test_damaged_files_are_not_used(tower, batches, tmp_path, damage, name):
    method = sw.method("wanda", allocate="erk")
    whole = tower()
    expected = quiet(whole, method, batches, workdir=tmp_path / "a")
    file = tmp_path / "a" / name
    raw = bytearray(file.read_bytes())
    if damage == "bit":
        raw[-5] ^= 4
    if damage == "foreign":
        quiet(tower(), "magnitude", batches, workdir=tmp_path / "b")
        raw = bytearray((tmp_path / "b" / name).read_bytes())
    file.write_bytes({"cut": raw[: len(raw) // 2], "empty": b""}.get(damage, raw))
    if damage == "gone":
        file.unlink()
    (tmp_path / "a" / f"{name}.partial-1").write_bytes(b"half")
    model = tower()
    found = quiet(model, method, batches, workdir=tmp_path / "a")
    assert found.supports == expected.supports and equal(model.state_dict(), whole.state_dict())
    assert not list((tmp_path / "a").glob("*.partial-*"))


def test_a_damaged_marker_is_refused(tower, batches, tmp_path):
    (tmp_path / "run.json").write_text('{"schema": 1, "ru')
    with pytest.raises(CheckpointError, match="delete it to start over"):
        quiet(tower(), "wanda", batches, workdir=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="not a usable work folder"):
        quiet(tower(), "wanda", batches, workdir=tmp_path / "file")


def test_a_full_disk_is_an_error_that_says_so_and_leaves_nothing_half(tower, batches, tmp_path, monkeypatch):
    real = checkpoint.save_file

    def full(tensors, path, **options):
        if "unit_0003" in str(path):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(tensors, path, **options)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        quiet(tower(), "wanda", batches, workdir=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == [
        "decision.safetensors", "run.json", "unit_0000.safetensors", "unit_0001.safetensors", "unit_0002.safetensors",
    ]  # fmt: skip
    monkeypatch.setattr(checkpoint, "save_file", real)
    assert quiet(tower(), "wanda", batches, workdir=tmp_path).supports == quiet(tower(), "wanda", batches).supports


def test_biases_of_slices_are_views():
    attention = torch.nn.MultiheadAttention(8, 2)
    with torch.no_grad():
        attention.in_proj_bias.copy_(torch.arange(24.0))
    model = torch.nn.Sequential(attention)
    q, k, v, *_ = sites(model)
    assert bias_of(model, k).tolist() == list(range(8, 16))
    bias_of(model, v).zero_()
    assert attention.in_proj_bias[16:].abs().sum() == 0 and bias_of(model, q).tolist() == list(range(8))
    bare = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False))
    assert bias_of(bare, sites(bare)[0]) is None
