"""An index on disk: segments that never change, a manifest that is replaced, and one writer at a time."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import RLock
from typing import Any, Self

import torch

from sparseworks.core.errors import BudgetError, CheckpointError, ShapeError
from sparseworks.retrieval.index import calibrate, merging
from sparseworks.retrieval.index.lock import locked
from sparseworks.retrieval.index.manifest import Entry, Manifest
from sparseworks.retrieval.index.segment import Segment, write_segment, write_tombstones
from sparseworks.retrieval.index.snapshot import Filter, Hits, Snapshot
from sparseworks.retrieval.method import IndexMethod
from sparseworks.retrieval.search import Search
from sparseworks.retrieval.vectors import SparseVectors

_OURS = re.compile(r"(segment|deleted|built)-[0-9a-f]{12}\.safetensors")
_MANY = 16  # segments from which small ones at the end are merged by `add`
_FEWEST = 50  # queries that a recall can be read from
_TRIES = 20  # a manifest may be replaced while its segments are opened


class Index:
    """Sparse vectors in a folder, added, deleted and searched: exact by default, or to a recall.

    What `add` or `delete` returned from is on disk and survives a crash at any moment. Readers hold a snapshot and never wait.
    Several processes may read and write one folder; writers take turns. Threads may share an `Index`.

    Args:
        path: the folder; see `create` and `open`.

    Raises:
        CheckpointError: no index, or one that is damaged; the message names the file.
    """

    def __init__(self, path: Path | str, *, verify: bool = True) -> None:
        self.path, self.verify = Path(path), verify
        self._mutex = RLock()
        self._snapshot = self._opened({})

    @classmethod
    def create(cls, path: Path | str, width: int) -> Index:
        """An empty index of vectors with `width` terms in a new folder.

        Raises:
            ShapeError: the width is below 1.
            CheckpointError: the folder holds something, or cannot be written.
        """
        folder = Path(path)
        if width < 1:
            raise ShapeError(f"Vectors have at least one term, not {width}.")
        if folder.exists() and (not folder.is_dir() or any(not p.name.startswith(".") for p in folder.iterdir())):
            raise CheckpointError(f"{folder} exists already: open it with Index.open, or choose another folder.")
        Manifest(width).write(folder)
        return cls(folder)

    @classmethod
    def open(cls, path: Path | str, *, verify: bool = True) -> Index:
        """The index in a folder; `verify` compares every file with its checksum.

        Raises:
            CheckpointError: no index, a newer version, or damage; the message names the file.
        """
        return cls(path, verify=verify)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def __len__(self) -> int:
        return len(self._snapshot)

    @property
    def width(self) -> int:
        """Number of terms."""
        return self._snapshot.manifest.width

    @property
    def snapshot(self) -> Snapshot:
        """The documents as they are now; it stays as it is."""
        return self._snapshot

    def refresh(self) -> Index:
        """See what other processes wrote.

        Raises:
            CheckpointError: damage; the snapshot stays as it was.
        """
        with self._mutex:
            self._snapshot = self._opened({s.entry.file.name: s for s in self._snapshot.segments})
        return self

    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        recall: float | None = None,
        filter: Filter | None = None,
        threads: int | None = None,
        method: str | IndexMethod | None = None,
    ) -> Hits:
        """As `Snapshot.search` on the current snapshot: the k largest <query, document>, exact, or to a recall.

        Raises:
            ShapeError, BudgetError, KernelError: as there.
        """
        return self._snapshot.search(queries, k, recall=recall, filter=filter, threads=threads, method=method)

    def add(
        self, ids: Sequence[str | int], vectors: Any, metadata: Sequence[Mapping[str, Any] | None] | None = None
    ) -> int:
        """Add documents; one whose id is there already takes its place. On disk when this returns: the documents there are then.

        Raises:
            ShapeError: ids that repeat, are not as many as vectors, or vectors of another width.
            CheckpointError: the disk is full or not writable; the index is as it was.
        """
        names = [str(i) for i in ids]
        rows = SparseVectors.of(vectors, self.width)
        if len(rows) != len(names) or (metadata is not None and len(metadata) != len(names)):
            raise ShapeError(f"{len(names)} ids were given for {len(rows)} vectors; metadata is one mapping a vector.")
        if len(set(names)) != len(names):
            raise ShapeError("An id occurs twice among those to be added.")
        if rows.width != self.width:
            raise ShapeError(f"This index has {self.width} terms, the vectors {rows.width}.")
        if not names:
            return len(self)
        with self._writing() as snapshot:
            entries, _ = self._without(snapshot, names)
            self._commit(snapshot.manifest.then((*entries, write_segment(self.path, names, rows, metadata))))
            self._fold()
        return len(self)

    def delete(self, ids: Collection[str | int]) -> int:
        """Delete documents; how many of these ids were there. On disk when this returns.

        Raises:
            CheckpointError: the disk is full or not writable; the index is as it was.
        """
        names = [str(i) for i in ids]
        with self._writing() as snapshot:
            entries, gone = self._without(snapshot, names)
            if gone:
                self._commit(snapshot.manifest.then(entries))
        return gone

    def merge(
        self,
        queries: Any = None,
        *,
        k: int = 10,
        recalls: Sequence[float] = calibrate.RECALLS,
        searches: Sequence[Search] | None = None,
        methods: Sequence[str | IndexMethod] = (),
        threads: int | None = None,
    ) -> list[calibrate.Tried]:
        """Make one segment of all, without what was deleted, and remove files that nothing needs.

        Others may search, add and delete meanwhile. The documents of an index pass through memory once.

        Args:
            queries: calibrates `search(recall=)`: for each of `recalls` at k (or fewer) the fastest of `searches` that reaches it
                on these queries is kept, exact search among them. A few hundred, like those that will be asked.
            methods: build what these need too.

        Returns:
            What was measured.

        Raises:
            ShapeError: queries of another width.
            BudgetError: fewer than 50 queries.
            CheckpointError: the disk is full or not writable; the index is as it was.
        """
        asked = None if queries is None else SparseVectors.of(queries, self.width)
        if asked is not None and len(asked) < _FEWEST:
            raise BudgetError(
                f"{len(asked)} queries say little of the recall on others: calibrate on {_FEWEST} or more."
            )
        named = [IndexMethod.of(m).search for m in methods]
        with locked(self.path, "merging"):
            self.refresh()
            before = self._snapshot
            entry, outcomes = merging.merged(self.path, before, asked, k, recalls, searches, named, threads)
            with self._writing() as now:
                self._commit(now.manifest.then(merging.replaced(self.path, before, now, entry)))
                self._sweep()
        return outcomes

    def _fold(self) -> None:
        """Merge small segments at the end once there are many; what is large or calibrated stays."""
        entries = self._snapshot.manifest.segments
        if len(entries) <= _MANY:
            return
        with locked(self.path, "merging", wait=False) as mine:
            if not mine:
                return
            first, total = len(entries) - 1, entries[-1].documents
            while first and not entries[first - 1].settings and entries[first - 1].documents <= 8 * total:
                first -= 1
                total += entries[first].documents
            segments = self._snapshot.segments[first:]
            if len(segments) < 2:
                return
            live = sum(e.documents - e.deleted for e in entries[first:])
            made = [merging.joined(self.path, self.width, segments)] if live else []
            self._commit(self._snapshot.manifest.then((*entries[:first], *made)))
            self._sweep()

    def _without(self, snapshot: Snapshot, names: Sequence[str]) -> tuple[list[Entry], int]:
        """The segments with tombstones for these ids, and how many ids were met."""
        entries, gone = [], 0
        for s, found in zip(snapshot.segments, snapshot.positions(names), strict=True):
            entry = s.entry
            if found:
                deleted = torch.zeros(len(s), dtype=torch.bool) if s.deleted is None else s.deleted.clone()
                deleted[list(found.values())] = True
                gone += len(found)
                tombstones = write_tombstones(self.path, deleted)
                entry = replace(entry, deleted=int(deleted.sum()), tombstones=tombstones)
            entries.append(entry)
        return entries, gone

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Snapshot]:
        with self._mutex, locked(self.path, "writing"):
            yield self.refresh()._snapshot

    def _commit(self, manifest: Manifest) -> None:
        manifest.write(self.path)
        self._snapshot = self._of(manifest, {s.entry.file.name: s for s in self._snapshot.segments})

    def _opened(self, known: Mapping[str, Segment]) -> Snapshot:
        for _ in range(_TRIES):
            manifest = Manifest.read(self.path)
            try:
                return self._of(manifest, known)
            except (FileNotFoundError, CheckpointError):
                # Merged away since the manifest was read? Then there is another manifest by now.
                if Manifest.read(self.path) == manifest:
                    break
        try:
            return self._of(Manifest.read(self.path), known)
        except FileNotFoundError as error:
            raise CheckpointError(f"{error.filename} is missing: the index is incomplete. Restore the file.") from error

    def _of(self, manifest: Manifest, known: Mapping[str, Segment]) -> Snapshot:
        segments = []
        for entry in manifest.segments:
            old = known.get(entry.file.name)
            new = (
                Segment(self.path, entry, verify=self.verify) if old is None else old.changed(entry, verify=self.verify)
            )
            segments.append(new)
        return Snapshot(manifest, tuple(segments))

    def _sweep(self) -> None:
        """Remove files that the manifest does not name: merged, replaced, or left by a process that was killed."""
        named = {f.name for e in self._snapshot.manifest.segments for f in e.files}
        for path in self.path.iterdir():
            started = path.name.startswith(".") and ".saving-" in path.name
            if (_OURS.fullmatch(path.name) and path.name not in named) or started:
                with contextlib.suppress(OSError):
                    path.unlink()
