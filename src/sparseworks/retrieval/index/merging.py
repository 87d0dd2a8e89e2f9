"""One segment of several: while it is made, others search, add and delete."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from sparseworks.retrieval.index import calibrate
from sparseworks.retrieval.index.manifest import Entry
from sparseworks.retrieval.index.segment import Metadata, Segment, write_built, write_segment, write_tombstones
from sparseworks.retrieval.index.snapshot import Snapshot
from sparseworks.retrieval.search import Search
from sparseworks.retrieval.vectors import SparseVectors

_FEW = 5000  # documents below which exact search is taken without trying others


def merged(
    path: Path,
    before: Snapshot,
    queries: SparseVectors | None,
    k: int,
    recalls: Sequence[float],
    searches: Sequence[Search] | None,
    named: list[Search],
    threads: int | None,
) -> tuple[Entry | None, list[calibrate.Tried]]:
    """The segment of all, with what searches need and the settings that were calibrated; and what was measured."""
    if not len(before):
        return None, []
    entry = joined(path, before.manifest.width, before.segments)
    if queries is None and not named:
        return entry, []
    segment = Segment(path, entry, verify=False)
    tries = calibrate.CANDIDATES if len(segment) >= _FEW else ()
    grid = calibrate.sized(tries, len(segment)) if searches is None else tuple(searches)
    wanted = (*named, *(grid if queries is not None else ()))
    built = calibrate.build(segment.forward, segment.lists, wanted, threads)
    outcomes, settings = [], []
    if queries is not None:
        local, most = segment.local(queries), min(k, len(segment))
        outcomes = list(calibrate.tried(segment.forward, segment.lists, local, most, built, grid, threads))
        settings = calibrate.settings_of(outcomes, recalls, k)
    stay = {s.building for s in named}
    built = {s: p for s, p in built.items() if s.building in stay} | calibrate.kept(built, settings)
    if built:
        entry = replace(entry, built=write_built(path, built))
    return replace(entry, settings=tuple(s.to_dict() for s in settings)), outcomes


def joined(path: Path, width: int, segments: Sequence[Segment]) -> Entry:
    """One new segment of the live documents of several, in their order."""
    vectors = SparseVectors.join([s.vectors(width) for s in segments])
    ids: list[str] = []
    metadata: list[Metadata | None] = []
    for s in segments:
        kept = range(len(s)) if s.live is None else s.live.nonzero().flatten().tolist()
        names = s.names.all()
        ids += [names[i] for i in kept]
        metadata += [s.metadata_of(i) or None for i in kept] if s.metadata is not None else [None] * len(kept)
    return write_segment(path, ids, vectors, metadata)


def replaced(path: Path, before: Snapshot, now: Snapshot, entry: Entry | None) -> list[Entry]:
    """The merged segment in place of those it was made of, without what was deleted from these meanwhile."""
    old = {s.entry.file.name: s for s in before.segments}
    later = [e for e in now.manifest.segments if e.file.name not in old]
    if entry is None:
        return later
    kept = []
    for s in now.segments:
        first = old.get(s.entry.file.name)
        if first is not None:
            gone = torch.zeros(len(s), dtype=torch.bool) if s.deleted is None else s.deleted
            kept.append(gone if first.live is None else gone[first.live])
    gone = torch.cat(kept)
    if bool(gone.any()):
        entry = replace(entry, deleted=int(gone.sum()), tombstones=write_tombstones(path, gone))
    return [entry, *later]
