from __future__ import annotations

import pytest
import torch

from sparseworks.core.errors import CheckpointError
from sparseworks.core.support import Support
from sparseworks.stream.kept import read_supports, write_supports


def some(seed: int, *shape: int) -> Support:
    return Support.from_mask(torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.4)


def test_supports_come_back_from_a_file_and_from_a_folder(tmp_path):
    first, second = {"q": some(0, 5, 7), "k": some(1, 3, 8)}, {"mlp": some(2, 16, 9)}
    assert write_supports(tmp_path / "supports" / "0.safetensors", first) == first
    assert write_supports(tmp_path / "supports" / "1.safetensors", second) == second
    assert read_supports(tmp_path / "supports") == first | second
    assert [p.name for p in sorted((tmp_path / "supports").iterdir())] == ["0.safetensors", "1.safetensors"]


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="no supports"):
        read_supports(tmp_path)
    write_supports(tmp_path / "0.safetensors", {"q": some(0, 5, 7)})
    (tmp_path / "0.safetensors").write_bytes((tmp_path / "0.safetensors").read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"0\.safetensors is not a readable file of supports"):
        read_supports(tmp_path / "0.safetensors")
    (tmp_path / "taken").write_text("a file where a folder should be")
    with pytest.raises(CheckpointError, match="Cannot write"):
        write_supports(tmp_path / "taken" / "0.safetensors", {})
