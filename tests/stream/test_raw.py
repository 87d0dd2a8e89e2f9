from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparseworks.core.errors import CheckpointError
from sparseworks.stream.raw import copy_tensors, places, read_rows


@pytest.fixture
def file(tmp_path):
    tensors = {
        "a": torch.arange(60, dtype=torch.bfloat16).reshape(20, 3),
        "b": torch.randn(4, 2, 5, dtype=torch.float64),
        "c": torch.tensor(3, dtype=torch.int8),
        "d": torch.zeros(0, 7),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    return tmp_path / "x.safetensors", tensors


def test_rows_are_those_of_the_tensor(file):
    path, tensors = file
    at, found = torch.tensor([19, 0, 7, 7]), places(path)
    assert torch.equal(read_rows(found["a"], at, torch.bfloat16), tensors["a"][at])
    assert torch.equal(read_rows(found["b"], torch.tensor([2]), torch.float64), tensors["b"][[2]])
    assert read_rows(found["a"], at[:0], torch.bfloat16).shape == (0, 3)


def test_copies_are_the_tensors_in_a_file_that_any_reader_takes(file, tmp_path):
    path, tensors = file
    found = places(path)
    copy_tensors(tmp_path / "y.safetensors", {name: found[name] for name in ("c", "d", "a", "b")})
    again = load_file(tmp_path / "y.safetensors")
    assert set(again) == set(tensors)
    assert all(torch.equal(again[n], t) and again[n].dtype == t.dtype for n, t in tensors.items())
    assert all(place.start % 8 == 0 for name, place in places(tmp_path / "y.safetensors").items() if name == "b")


def test_damaged_files_are_named(file, tmp_path):
    path, _ = file
    found = places(path)
    path.write_bytes(path.read_bytes()[:-80])
    with pytest.raises(CheckpointError, match=r"x\.safetensors.*too early"):
        read_rows(found["a"], torch.tensor([19]), torch.bfloat16)
    with pytest.raises(CheckpointError, match=r"x\.safetensors.*too early"):
        copy_tensors(tmp_path / "z.safetensors", found)
    assert not list(tmp_path.glob("z.safetensors"))
    path.write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="damaged"):
        places(path)
    with pytest.raises(CheckpointError, match="Cannot write"):
        copy_tensors(tmp_path / "missing" / "z.safetensors", {})
