"""Tensors in safetensors files, read and copied by their position: nothing is mapped, so nothing stays in memory that was passed over."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from sparseworks.core.errors import CheckpointError

_AT_ONCE = 1 << 24  # bytes copied at a time


@dataclass(frozen=True)
class Place:
    """Where a tensor lies.

    Attributes:
        file: the safetensors file.
        start: first byte in it.
        nbytes: length.
        dtype: as the file spells it ("BF16").
        shape: axes.
    """

    file: Path
    start: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]


def places(file: Path) -> dict[str, Place]:
    """The place of every tensor of a file, from its header.

    Raises:
        CheckpointError: the file cannot be read.
    """
    return header_of(file)[0]


def header_of(file: Path) -> tuple[dict[str, Place], dict[str, str]]:
    """Places and metadata of a file.

    Raises:
        CheckpointError: the file cannot be read, or is shorter than its header says.
    """
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > file.stat().st_size:
                raise ValueError("its header is longer than itself")
            header: dict[str, Any] = json.loads(opened.read(length))
        metadata = header.pop("__metadata__", {})
        found = {
            name: Place(file, 8 + length + begin, end - begin, facts["dtype"], tuple(facts["shape"]))
            for name, facts in header.items()
            for begin, end in [facts["data_offsets"]]
        }
        if any(place.start + place.nbytes > file.stat().st_size for place in found.values()):
            raise ValueError("it ends too early")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(file, error) from error
    return found, metadata


def read_rows(place: Place, rows: Int[Tensor, " n"], dtype: torch.dtype) -> Shaped[Tensor, "n ..."]:
    """Some entries of the first axis.

    Args:
        rows: their indices, in range.
        dtype: the type of the tensor in the file.

    Raises:
        CheckpointError: the file ends before.
    """
    width = place.nbytes // max(place.shape[0], 1)
    found = torch.empty(rows.numel(), *place.shape[1:], dtype=dtype)
    into = found.reshape(-1).view(torch.uint8).numpy().data
    try:
        with place.file.open("rb", buffering=0) as opened:
            for i, row in enumerate(rows.tolist()):
                opened.seek(place.start + row * width)
                if opened.readinto(into[i * width : (i + 1) * width]) != width:
                    raise _unreadable(place.file, "it ends too early")
    except OSError as error:
        raise _unreadable(place.file, error) from error
    return found


def copy_tensors(target: Path, chosen: Mapping[str, Place]) -> None:
    """Write a safetensors file of tensors of others, byte for byte, whole or not at all.

    Raises:
        CheckpointError: a file cannot be read, or the disk is full or not writable.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    # Wide types first keep every tensor aligned to its own width, as readers that map the file need it.
    order = sorted(chosen, key=lambda name: (-_width(chosen[name]), name))
    end = 0
    for name in order:
        place = chosen[name]
        header[name] = {"dtype": place.dtype, "shape": list(place.shape), "data_offsets": [end, end + place.nbytes]}
        end += place.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for name in order:
                _copy(chosen[name], out)
        partial.replace(target)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise CheckpointError(
            f"Cannot write {target}: {error}. Free some space and run the same call again."
        ) from error


def _copy(place: Place, out: Any) -> None:
    left = place.nbytes
    with place.file.open("rb", buffering=0) as opened:
        opened.seek(place.start)
        while left:
            piece = opened.read(min(left, _AT_ONCE))
            if not piece:
                raise _unreadable(place.file, "it ends too early")
            out.write(piece)
            left -= len(piece)


def _width(place: Place) -> int:
    count = 1
    for n in place.shape:
        count *= n
    return place.nbytes // count if count else 1


def _unreadable(file: Path, error: object) -> CheckpointError:
    return CheckpointError(
        f"{file} is not a readable safetensors file ({error}): it is missing, truncated or damaged. Download it again."
    )
