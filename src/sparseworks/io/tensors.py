"""The safetensors layout, written tensor by tensor so that no second copy of a model is ever in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sparseworks.core.errors import CheckpointError, DtypeError

_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Entry:
    """One tensor to be written: what the header needs, and `make()` for the values when their turn comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> Entry:
        """An entry for a tensor that is in memory."""
        return cls(name, tensor.dtype, tuple(tensor.shape), lambda: tensor)

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return prod(self.shape) * self.dtype.itemsize


def safetensors_chunks(
    entries: Sequence[Entry], metadata: Mapping[str, str] | None = None
) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file: 8 bytes of header length, the JSON header, then the values of each entry.

    Raises:
        DtypeError: a tensor of a type that safetensors cannot hold.
    """
    # Wide types first keep every tensor aligned to its own width, as readers that map the file into memory need it.
    ordered = sorted(entries, key=lambda e: (-e.dtype.itemsize, e.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    start = 0
    for entry in ordered:
        header[entry.name] = {
            "dtype": _code(entry),
            "shape": list(entry.shape),
            "data_offsets": [start, start + entry.nbytes],
        }
        start += entry.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for entry in ordered:
        yield _bytes(entry)


def _code(entry: Entry) -> str:
    code = _CODES.get(entry.dtype)
    if code is None:
        raise DtypeError(
            f"Tensor {entry.name!r} is {entry.dtype}, which a safetensors file cannot hold; convert it first."
        )
    return code


def _bytes(entry: Entry) -> memoryview:
    tensor = entry.make().detach().cpu().contiguous()
    if tensor.dtype != entry.dtype or tuple(tensor.shape) != entry.shape:
        raise AssertionError(f"{entry.name}: announced {entry.dtype} {entry.shape}, made {tensor.dtype} {tensor.shape}")
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file by name, mapped from the file where the system allows it: `clone` what is kept.

    Mapped tensors start anywhere, while kernels are fast (or work at all) on memory aligned as torch allocates it.

    Raises:
        CheckpointError: the file is missing, truncated or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file ({error}): it is missing, truncated or damaged."
        ) from error
