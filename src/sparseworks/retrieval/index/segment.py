"""A segment: documents that never change, mapped from one file; which of them are deleted is another file."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sparseworks.core.config import from_config
from sparseworks.core.errors import CheckpointError
from sparseworks.exec.search import Forward, Lists, Rows
from sparseworks.io.tensors import Entry as TensorEntry
from sparseworks.io.tensors import read_tensors, safetensors_chunks
from sparseworks.retrieval.index.manifest import Entry, File
from sparseworks.retrieval.index.names import Names, Texts, names_tensors, texts_tensors
from sparseworks.retrieval.search import BUILT, Search, Searched, built_tensors
from sparseworks.retrieval.vectors import SparseVectors, taken

Metadata = Mapping[str, Any]
ENDING = ".safetensors"
_COUNTED = 2**22  # terms up to which they are counted in a table


def write_tensors(folder: Path, name: str, tensors: Mapping[str, Tensor], **facts: Any) -> File:
    """One safetensors file, synced and renamed."""
    entries = [TensorEntry.of(n, t.contiguous()) for n, t in tensors.items()]
    return File.write(folder, name, safetensors_chunks(entries, {n: json.dumps(v) for n, v in facts.items()}))


def write_segment(
    folder: Path, ids: Sequence[str], vectors: Rows, metadata: Sequence[Metadata | None] | None = None
) -> Entry:
    """A new segment of these documents; terms that no document has take no room in it.

    Raises:
        CheckpointError: the disk is full or not writable; nothing is left.
    """
    vocabulary, local = _vocabulary(vectors)
    forward = Forward.of(Rows(vectors.ptr, local, vectors.values, max(len(vocabulary), 1)))
    lists = Lists.of(forward)
    tensors = {
        "vocabulary": vocabulary, "ptr": forward.ptr, "terms": forward.terms, "values": forward.values,
        "list_ptr": lists.ptr, "list_local": lists.local, "list_values": lists.values, **names_tensors(ids),
    }  # fmt: skip
    if metadata is not None and any(metadata):
        tensors |= texts_tensors("metadata", [json.dumps(m, separators=(",", ":")) if m else "" for m in metadata])
    name = f"segment-{uuid.uuid4().hex[:12]}{ENDING}"
    return Entry(write_tensors(folder, name, tensors), len(ids))


def _vocabulary(vectors: Rows) -> tuple[Tensor, Tensor]:
    """The terms that occur, int32 and rising, and the place of each entry's term among them."""
    if vectors.width > _COUNTED:
        vocabulary = vectors.indices.unique()
        return vocabulary, torch.searchsorted(vocabulary, vectors.indices, out_int32=True)
    vocabulary = torch.bincount(vectors.indices, minlength=vectors.width).nonzero().flatten()
    places = torch.zeros(vectors.width, dtype=torch.int32)
    places[vocabulary] = torch.arange(len(vocabulary), dtype=torch.int32)
    return vocabulary.int(), places.index_select(0, vectors.indices)


def write_tombstones(folder: Path, deleted: Bool[Tensor, " documents"]) -> File:
    """Which documents are deleted, a bit each."""
    bits = torch.from_numpy(np.packbits(deleted.numpy()))
    return write_tensors(folder, f"deleted-{uuid.uuid4().hex[:12]}{ENDING}", {"deleted": bits})


@dataclass(frozen=True)
class Setting:
    """A search that was found to reach a recall at k on calibration queries, and what it has built."""

    recall: float
    k: int
    search: Search
    seen: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        from sparseworks.core.config import to_config

        return {"recall": self.recall, "k": self.k, "search": to_config(self.search), "seen": self.seen}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Setting:
        """Inverse of `to_dict`."""
        return cls(data["recall"], data["k"], from_config("search", data["search"]), data["seen"])


class Segment:
    """An open segment. Its files are mapped: they stay readable even after they were removed from the folder.

    Args:
        folder, entry: where it is and what the manifest says of it.
        verify: compare every file with its checksum first.

    Raises:
        CheckpointError: damaged; the message names the file.
        FileNotFoundError: it was merged away since the manifest was read.
    """

    def __init__(self, folder: Path, entry: Entry, *, verify: bool = True) -> None:
        self.folder, self.entry = folder, entry
        tensors = read_tensors(entry.file.check(folder, content=verify))
        try:
            self.vocabulary = tensors["vocabulary"]
            width = max(len(self.vocabulary), 1)
            self.forward = Forward(tensors["ptr"], tensors["terms"], tensors["values"], width)
            lists = tensors["list_ptr"], tensors["list_local"], tensors["list_values"]
            self.lists = Lists(*lists, len(self.forward), width)
            self.names, self.metadata = Names.of(tensors), Texts.of("metadata", tensors)
        except KeyError as error:
            raise CheckpointError(f"{folder / entry.file.name} has no {error}: it is not a segment.") from error
        self.settings = tuple(Setting.from_dict(s) for s in entry.settings)
        self._built = _read_built(folder, entry.built, verify) if entry.built else {}
        self.deleted = _read_deleted(folder, entry, verify)

    def __len__(self) -> int:
        return self.entry.documents

    def changed(self, entry: Entry, *, verify: bool = True) -> Segment:
        """The same segment with other tombstones; what is mapped is shared."""
        if entry == self.entry:
            return self
        if entry.built != self.entry.built or entry.settings != self.entry.settings:
            return Segment(self.folder, entry, verify=verify)
        other = object.__new__(Segment)
        other.__dict__.update(self.__dict__)
        other.__dict__.pop("live", None)
        other.entry, other.deleted = entry, _read_deleted(self.folder, entry, verify)
        return other

    @cached_property
    def live(self) -> Bool[Tensor, " documents"] | None:
        """Which documents are not deleted; None: all."""
        return None if self.deleted is None else ~self.deleted

    def local(self, queries: Rows) -> Rows:
        """Queries in the terms of this segment; terms that no document has go."""
        at = torch.searchsorted(self.vocabulary, queries.indices)
        known = at < len(self.vocabulary)
        known[known.clone()] = self.vocabulary[at[known]] == queries.indices[known]
        ends = torch.cat([torch.zeros(1, dtype=torch.long), known.cumsum(0)])
        return Rows(ends[queries.ptr], at[known], queries.values[known], max(len(self.vocabulary), 1))

    def source(self, search: Search) -> Searched | None:
        """What a search needs, if it was built or needs nothing."""
        built = self._built.get(search.building)
        return Searched(self.forward, self.lists, built) if built is not None or not search.BUILD else None

    def vectors(self, width: int) -> SparseVectors:
        """Its live documents in the terms of the index."""
        n = self.forward.entries
        terms = self.vocabulary[self.forward.terms[:n].long()] if n else torch.empty(0, dtype=torch.int32)
        kept = torch.arange(len(self)) if self.live is None else self.live.nonzero().flatten()
        columns = taken(self.forward.ptr, kept, terms, self.forward.values[:n])
        return SparseVectors(*columns, width)  # pyright: ignore[reportCallIssue]

    def matching(self, wanted: Callable[[Metadata], bool]) -> Bool[Tensor, " documents"]:
        """Which documents' metadata pass; those without have an empty mapping."""
        texts = [""] * len(self) if self.metadata is None else self.metadata.all()
        return torch.tensor([bool(wanted(json.loads(t) if t else {})) for t in texts], dtype=torch.bool)

    def metadata_of(self, position: int) -> dict[str, Any]:
        """Metadata of one document."""
        text = self.metadata[position] if self.metadata is not None else ""
        return json.loads(text) if text else {}

    def positions(self, ids: Sequence[str], hashes: Int[Tensor, " n"]) -> dict[str, int]:
        """Where the live ones among these ids are."""
        found = self.names.find(ids, hashes)
        return found if self.deleted is None else {i: p for i, p in found.items() if not bool(self.deleted[p])}


def write_built(folder: Path, built: Mapping[Search, Any]) -> File:
    """What searches have built, in one file."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, int]] = {}
    for i, parts in enumerate(built.values()):
        values = built_tensors(parts)
        tensors |= {f"{i}.{n}": v for n, v in values.items() if isinstance(v, Tensor)}
        numbers[str(i)] = {n: v for n, v in values.items() if not isinstance(v, Tensor)}
    from sparseworks.core.config import to_config

    searches = [to_config(s) for s in built]
    return write_tensors(folder, f"built-{uuid.uuid4().hex[:12]}{ENDING}", tensors, searches=searches, numbers=numbers)


def _read_built(folder: Path, file: File, verify: bool) -> dict[tuple[Any, ...], Any]:
    from safetensors import safe_open

    path = file.check(folder, content=verify)
    tensors = read_tensors(path)
    with safe_open(path, framework="pt") as opened:
        facts = {n: json.loads(v) for n, v in (opened.metadata() or {}).items() if n != "format"}
    found = {}
    for i, data in enumerate(facts["searches"]):
        search: Search = from_config("search", data)
        kind = BUILT[search.registered_name]  # type: ignore[attr-defined]
        values = {f.name: tensors[f"{i}.{f.name}"] for f in fields(kind) if f"{i}.{f.name}" in tensors}
        found[search.building] = kind(**values, **facts["numbers"][str(i)])
    return found


def _read_deleted(folder: Path, entry: Entry, verify: bool) -> Bool[Tensor, " documents"] | None:
    if entry.tombstones is None:
        return None
    bits = read_tensors(entry.tombstones.check(folder, content=verify))["deleted"]
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=entry.documents)).bool()
