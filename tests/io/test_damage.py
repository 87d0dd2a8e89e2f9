"""Damaged folders of packed models: loading or the first use refuses, whatever was changed; nothing else comes out."""

from __future__ import annotations

import json
import random
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import CheckpointError, SparseworksError
from sparseworks.core.support import Support
from sparseworks.exec import SparseConv1x1, SparseLinear
from sparseworks.io import save
from sparseworks.io.sparsity import FACTS, MODEL, facts_text

X = torch.linspace(-1, 1, 3 * 16).reshape(3, 16, 1)
KERNELS = ("tile-fp32", "csr16-bf16", "bitmask-fp32", "panel-fp32", "fanin-fp32", "nm-fp32", "pairs-int16", "dense")


def skeleton() -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(16, 16, 1), nn.Flatten(), *[nn.Linear(16, 16) for _ in KERNELS])


class Files(dict[str, bytes]):
    """Hypothesis prints its arguments."""

    def __repr__(self) -> str:
        return f"Files({sorted(self)})"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Files:
    """The files of a saved model with a layer of every kind of kernel."""
    torch.manual_seed(0)
    model, supports = skeleton().eval(), {}
    for i, kernel in enumerate(("csr16-fp32", *KERNELS)):
        name = str(i and i + 1)
        supports[name] = Support.from_mask((torch.arange(16) % 4 < 2).repeat(16, 1))
        make = SparseLinear.from_linear if i else SparseConv1x1.from_conv
        model[int(name)] = make(model[int(name)], supports[name], kernel=kernel)
    folder = tmp_path_factory.mktemp("damage") / "out"
    save(folder, model, supports, layout="packed")
    files = Files({path.name: path.read_bytes() for path in folder.iterdir()})
    assert torch.equal(use(files), model(X))
    return files


def use(files: dict[str, bytes], *, verify: bool = True) -> torch.Tensor:
    """Load and run."""
    with TemporaryDirectory() as folder, torch.inference_mode():
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        return sw.load(folder, model=skeleton(), verify=verify)(X)


def damaged_bytes(data: bytes, chance: random.Random) -> bytes:
    kind = chance.choice(("bit", "bit", "bits", "cut", "more", "swap"))
    raw = bytearray(data)
    if kind == "cut":
        return bytes(raw[: chance.randrange(len(raw))])
    if kind == "more":
        return bytes(raw) + b"\0" * chance.choice((1, 8, 4096))
    if kind == "swap":
        a, b = sorted(chance.sample(range(len(raw)), 2))
        return bytes(raw[:a] + raw[b:] + raw[a:b])
    for _ in range(1 if kind == "bit" else 20):
        header = chance.random() < 0.3  # lengths, types, shapes and offsets come first
        raw[chance.randrange(200 if header else len(raw))] ^= 1 << chance.randrange(8)
    return bytes(raw)


@given(seed=st.integers(0, 1 << 32))
def test_any_change_of_any_file_is_noticed_on_loading(whole, seed):
    chance = random.Random(seed)
    name = chance.choice(sorted(whole))
    changed = damaged_bytes(whole[name], chance)
    if changed != whole[name]:
        with pytest.raises(CheckpointError):
            use({**whole, name: changed})


@given(seed=st.integers(0, 1 << 32))
def test_unverified_values_are_refused_or_computed_with(whole, seed):
    changed = damaged_bytes(whole[MODEL], random.Random(seed))
    try:
        assert use({**whole, MODEL: changed}, verify=False).shape == (3, 16)
    except SparseworksError as error:
        assert len(str(error)) > 20


@given(seed=st.integers(0, 1 << 32))
def test_forged_descriptions_are_refused_or_computed_with(whole, seed):
    """Edited with care: the checksum is made anew."""
    chance = random.Random(seed)
    facts = json.loads(whole[FACTS])
    del facts["checksum"]
    edit(facts["packed"], chance)
    try:
        assert use({**whole, FACTS: facts_text(facts).encode()}).shape[0] == 3
    except SparseworksError as error:
        assert len(str(error)) > 20


def edit(value: dict | list, chance: random.Random) -> None:
    """Replace, or remove, something somewhere inside."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    if not keys:
        return
    key = chance.choice(keys)
    if isinstance(value[key], dict | list) and chance.random() < 0.95:
        return edit(value[key], chance)
    if chance.random() < 0.1:
        del value[key]
        return
    number = value[key] if isinstance(value[key], int) else 1
    value[key] = chance.choice(
        (number + 1, number - 1, -number, 0, 10**9, 10**15, 10**30, 2.5, True, None, "nn", "load", "int8", "float64",
         "tile-bf16", "csr16", [], {}, [1, 2], [-1])
    )  # fmt: skip
