"""The one file that says which files an index is made of: replaced in one step, so a reader sees all of a change or nothing of it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sparseworks.core.errors import CheckpointError
from sparseworks.io.folder import write_file

NAME = "manifest.json"
FORMAT, VERSION = "sparseworks-index", 1


@dataclass(frozen=True)
class File:
    """A file that never changes: its name, size, and CRC-32."""

    name: str
    bytes: int
    crc32: int

    @classmethod
    def write(cls, folder: Path, name: str, chunks: Iterable[bytes | memoryview]) -> File:
        """Write it beside its place, sync it, rename it.

        Raises:
            CheckpointError: the disk is full or not writable; nothing is left.
        """
        crc = size = 0

        def counted() -> Iterator[bytes | memoryview]:
            nonlocal crc, size
            for chunk in chunks:
                crc, size = zlib.crc32(chunk, crc), size + len(chunk)
                yield chunk

        try:
            write_file(folder / name, counted())
        except OSError as error:
            raise CheckpointError(
                f"Cannot write {folder / name}: {error.strerror or error}. The index is as it was; free space and try again."
            ) from error
        return cls(name, size, crc)

    def check(self, folder: Path, *, content: bool = True) -> Path:
        """Its path, if it is there in full and, with `content`, unchanged.

        Raises:
            CheckpointError: naming the file.
            FileNotFoundError: it is gone.
        """
        path = folder / self.name
        size = path.stat().st_size
        if size != self.bytes:
            raise CheckpointError(f"{path} has {size} bytes, not {self.bytes}: this segment is truncated. Restore it.")
        if content and _crc(path) != self.crc32:
            raise CheckpointError(f"{path} is damaged: this segment's checksum differs from the manifest. Restore it.")
        return path


@dataclass(frozen=True)
class Entry:
    """A segment as the manifest knows it.

    Attributes:
        file: rows, lists, ids, metadata.
        documents: how many it holds; of them `deleted` are.
        tombstones: which, one bit a document.
        built: what approximate searches have built, if anything.
        settings: calibrated searches, plain data.
    """

    file: File
    documents: int
    deleted: int = 0
    tombstones: File | None = None
    built: File | None = None
    settings: tuple[Any, ...] = ()

    @property
    def files(self) -> list[File]:
        """All files of it."""
        return [f for f in (self.file, self.tombstones, self.built) if f is not None]


@dataclass(frozen=True)
class Manifest:
    """Segments in the order in which their documents were added."""

    width: int
    generation: int = 0
    segments: tuple[Entry, ...] = ()

    def then(self, segments: Iterable[Entry]) -> Manifest:
        """The next generation."""
        return replace(self, generation=self.generation + 1, segments=tuple(segments))

    def write(self, folder: Path) -> None:
        """Replace the manifest in one step, synced.

        Raises:
            CheckpointError: the disk is full or not writable; the manifest before is untouched.
        """
        body = asdict(self)
        head = {"format": FORMAT, "version": VERSION, "crc32": zlib.crc32(_canonical(body))}
        File.write(folder, NAME, [json.dumps({**head, "index": body}, indent=1).encode()])

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises CheckpointError: no index, a newer version, or damage."""
        path = folder / NAME
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(
                f"{folder} is no index: it has no {NAME}. Make one: sparseworks index {folder} --add FILE, or Index.create."
            ) from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}). Restore it.") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise CheckpointError(f"{path} is not the manifest of an index.")
        if data.get("version") != VERSION:
            raise CheckpointError(
                f"{path} has version {data.get('version')}, this library reads {VERSION}: upgrade, or build the index anew."
            )
        if zlib.crc32(_canonical(data.get("index"))) != data.get("crc32"):
            raise CheckpointError(f"{path} is damaged: its checksum differs. Restore it.")
        body = data["index"]
        return cls(body["width"], body["generation"], tuple(_entry(s) for s in body["segments"]))


def _entry(data: dict[str, Any]) -> Entry:
    files = {n: File(**data[n]) if data[n] else None for n in ("file", "tombstones", "built")}
    return Entry(**{**data, **files, "settings": tuple(data["settings"])})


def _canonical(body: Any) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc
