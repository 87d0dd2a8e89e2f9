"""The ids of documents: text behind one another, and hashes in order, so that a document is found without reading all ids."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor


def texts_tensors(name: str, texts: Sequence[str]) -> dict[str, Tensor]:
    """Texts as bytes and where each begins."""
    encoded = [t.encode() for t in texts]
    ptr = torch.tensor([0, *map(len, encoded)]).cumsum(0)
    joined = bytearray(b"".join(encoded))
    data = torch.frombuffer(joined, dtype=torch.uint8) if joined else torch.empty(0, dtype=torch.uint8)
    return {name: data, f"{name}_ptr": ptr}


def names_tensors(ids: Sequence[str]) -> dict[str, Tensor]:
    """Ids as tensors: their text, and their hashes in rising order with the positions they belong to."""
    hashes, order = hashed(ids).sort(stable=True)
    return {**texts_tensors("ids", ids), "id_hashes": hashes, "id_order": order.int()}


def names_from(tensors: Mapping[str, Tensor]) -> list[str]:
    """All ids."""
    return Names.of(tensors).all()


def hashed(ids: Sequence[str]) -> Int[Tensor, " n"]:
    """64-bit hashes (BLAKE2b)."""
    digests = b"".join(blake2b(i.encode(), digest_size=8).digest() for i in ids)
    return torch.frombuffer(bytearray(digests), dtype=torch.int64) if ids else torch.empty(0, dtype=torch.long)


@dataclass(frozen=True)
class Texts:
    """Text i is bytes `ptr[i]` to `ptr[i+1]`."""

    data: Tensor
    ptr: Tensor

    @classmethod
    def of(cls, name: str, tensors: Mapping[str, Tensor]) -> Texts | None:
        """From a file's tensors, if it has them."""
        return cls(tensors[name], tensors[f"{name}_ptr"]) if name in tensors else None

    def __getitem__(self, i: int) -> str:
        data, ptr = self._arrays
        return data[ptr[i] : ptr[i + 1]].tobytes().decode()

    @cached_property
    def _arrays(self) -> tuple[Any, Any]:
        return self.data.numpy(), self.ptr.numpy()  # read one by one these are much faster than tensors

    def all(self) -> list[str]:
        """Every text."""
        whole, ends = self.data.numpy().tobytes(), self.ptr.tolist()
        return [whole[a:b].decode() for a, b in itertools.pairwise(ends)]


@dataclass(frozen=True)
class Names:
    """Ids of a segment's documents, by position and position by id."""

    texts: Texts
    hashes: Int[Tensor, " documents"]
    order: Int[Tensor, " documents"]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Names:
        """From a segment's tensors."""
        return cls(Texts(tensors["ids"], tensors["ids_ptr"]), tensors["id_hashes"], tensors["id_order"])

    def __getitem__(self, i: int) -> str:
        return self.texts[i]

    def all(self) -> list[str]:
        """Every id."""
        return self.texts.all()

    def find(self, ids: Sequence[str], hashes: Int[Tensor, " n"]) -> dict[str, int]:
        """Positions of those of these ids that are here."""
        low = torch.searchsorted(self.hashes, hashes)
        met = torch.zeros(len(ids), dtype=torch.bool)
        inside = low < len(self.hashes)
        met[inside] = self.hashes[low[inside]] == hashes[inside]
        found = {}
        for i in met.nonzero().flatten().tolist():
            at = int(low[i])
            while at < len(self.hashes) and int(self.hashes[at]) == int(hashes[i]):
                position = int(self.order[at])
                if self.texts[position] == ids[i]:
                    found[ids[i]] = position
                at += 1
        return found
