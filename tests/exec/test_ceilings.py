"""Ceilings: measured once, kept, and never below what a kernel could do."""

from __future__ import annotations

import json

import pytest
import torch

from sparseworks.exec import Call, ceilings
from sparseworks.exec.ceilings import Ceilings, bound_us, cache_folder, machine_key, read_json, write_json
from sparseworks.exec.ceilings import ceilings as measured

SMALL = Ceilings(bandwidth=1e9, flops=1e10, threads=1, working_set=1 << 22)


@pytest.fixture
def counted(monkeypatch, tmp_path):
    """Measurements made; the cache is empty."""
    made = []

    def make(size, threads):
        made.append((size, threads))
        return Ceilings(2e10, 1e11, threads, size)

    monkeypatch.setenv("SPARSEWORKS_CACHE", str(tmp_path))
    monkeypatch.setattr(ceilings, "_measure", make)
    monkeypatch.setattr(ceilings, "_MEMORY", {})
    return made


def test_the_bound_is_the_larger_of_traffic_and_arithmetic():
    few = Call(rows=1, shape=(100, 200))
    assert bound_us(few, nbytes=100_000, nnz=10, limits=SMALL) == pytest.approx((100_000 + 4 * 300) / 1e9 * 1e6)
    many = Call(rows=1000, shape=(100, 200))
    assert bound_us(many, nbytes=100, nnz=20_000, limits=SMALL) == pytest.approx(2 * 20_000 * 1000 / 1e10 * 1e6)
    assert bound_us(many, 100, 20_000, SMALL, rate=2.0) == pytest.approx(20_000 * 1000 / 1e10 * 1e6)
    half = Call(rows=1, shape=(100, 200), dtype=torch.bfloat16)
    assert bound_us(half, 0, 0, SMALL) == pytest.approx(2 * 300 / 1e9 * 1e6)


def test_measured_once_and_read_from_disk(counted, monkeypatch):
    first = measured()
    assert measured() == first and counted == [(1 << 29, 1)]
    monkeypatch.setattr(ceilings, "_MEMORY", {})  # a new process
    assert measured() == first and len(counted) == 1
    measured(threads=2)
    assert counted[-1] == (1 << 29, 2)


def test_working_set_is_rounded_and_bounded(counted):
    for size, used in ((0, 1 << 22), (90_000_000, 1 << 26), (100_000_000, 1 << 27), (1 << 40, 1 << 29)):
        assert measured(working_set=size).working_set == used


def test_without_cache_nothing_is_written(counted, tmp_path):
    measured(cache=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "{", "3", '{"KEY": {"bandwidth": 1}}', '{"KEY": 5}'])
def test_damaged_cache_file(counted, tmp_path, monkeypatch, text):
    measured()
    (file,) = tmp_path.iterdir()
    (key,) = json.loads(file.read_text())
    file.write_text(text.replace("KEY", key))
    monkeypatch.setattr(ceilings, "_MEMORY", {})
    assert measured().bandwidth == 2e10 and len(counted) == 2
    assert json.loads(file.read_text())[key]["bandwidth"] == 2e10


def test_real_measurement_is_plausible():
    torch.set_num_threads(2)
    limits = measured(working_set=1 << 22, threads=1, cache=False)
    assert 1e8 < limits.bandwidth < 1e13 and 1e8 < limits.flops < 1e14
    assert torch.get_num_threads() == 2


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SPARSEWORKS_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("SPARSEWORKS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "sparseworks"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder().parts[-2:] == (".cache", "sparseworks")


def test_json_files(tmp_path):
    path = tmp_path / "deep" / "file.json"
    assert read_json(path) == {}
    write_json(path, {"a": 1})
    assert read_json(path) == {"a": 1}
    write_json(path, {"b": 2})
    assert read_json(path) == {"b": 2} and [p.name for p in path.parent.iterdir()] == ["file.json"]
    path.write_bytes(b"\xff\xfe")
    assert read_json(path) == {}


def test_machine_key_ignores_what_does_not_matter(monkeypatch):
    key = machine_key()
    torch.set_num_threads(2)
    assert machine_key() == key and len(key) == 12
    monkeypatch.setattr("sparseworks.exec.measure.cpu_name", lambda: "another processor")
    assert machine_key() != key
