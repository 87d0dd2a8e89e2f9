from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load

from sparseworks.core.errors import CheckpointError, DtypeError
from sparseworks.io.tensors import Entry, read_tensors, safetensors_chunks

DTYPES = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


def file_of(tensors) -> bytes:
    return b"".join(safetensors_chunks([Entry.of(name, t) for name, t in tensors.items()]))


@given(
    tensors=st.dictionaries(
        st.text(min_size=1, max_size=6).filter(lambda n: n != "__metadata__"),
        st.tuples(st.lists(st.integers(0, 4), max_size=3), st.sampled_from(DTYPES)),
        max_size=5,
    )
)
def test_the_safetensors_library_reads_what_we_write(tensors):
    made = {name: (torch.rand(shape) * 3).to(dtype) for name, (shape, dtype) in tensors.items()}
    back = load(file_of(made))
    assert set(back) == set(made)
    assert all(back[n].dtype == t.dtype and torch.equal(back[n], t) for n, t in made.items())


def test_values_are_made_one_at_a_time():
    alive = []
    entries = [Entry(str(i), torch.float32, (2,), lambda i=i: alive.append(i) or torch.zeros(2)) for i in range(3)]
    chunks = safetensors_chunks(entries)
    for _ in range(3):  # length, header, first tensor
        next(chunks)
    assert alive == [0]


def test_non_contiguous_tensors_are_written_in_order():
    x = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(load(file_of({"x": x.T}))["x"], x.T)


def test_unknown_dtype_is_refused():
    with pytest.raises(DtypeError, match=r"'c' is torch\.complex64"):
        file_of({"c": torch.zeros(2, dtype=torch.complex64)})


@pytest.mark.parametrize("length", [0, 5, 40])
def test_truncated_file_is_refused(tmp_path, length):
    path = tmp_path / "x.safetensors"
    path.write_bytes(file_of({"x": torch.zeros(8)})[:length])
    with pytest.raises(CheckpointError, match=r"x\.safetensors is not a readable"):
        read_tensors(path)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="missing, truncated or damaged"):
        read_tensors(tmp_path / "none.safetensors")
