"""A folder that appears whole or not at all: written beside its place, hashed and synced on the way, then renamed."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparseworks.core.errors import CheckpointError

_BLOCK = 1 << 20


class Draft:
    """A folder in the making.

    Attributes:
        files: name -> size in bytes and SHA-256 of what was written so far.
    """

    def __init__(self, path: Path):
        self.path = path
        self.files: dict[str, dict[str, Any]] = {}

    def write(self, name: str, chunks: Iterable[bytes | memoryview]) -> None:
        """Write one file chunk by chunk, hash it in the same pass, and sync it."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        size, digest = _write_synced(target, chunks)
        self.files[name] = {"bytes": size, "sha256": digest}

    def write_text(self, name: str, text: str) -> None:
        """Write one UTF-8 text file."""
        self.write(name, [text.encode()])

    def copy(self, source: Path, name: str) -> None:
        """Copy a file into the folder."""
        self.write(name, _blocks(source))


@contextmanager
def draft(folder: Path, *, overwrite: bool, marker: str) -> Iterator[Draft]:
    """A draft that takes the place of `folder` when the block ends, in one step; on any error nothing is left and nothing changed.

    Args:
        folder: where the folder will be.
        overwrite: replace an existing folder, if it holds the file `marker` (so that only saved models are ever replaced).
        marker: a file that every folder of this kind has.

    Raises:
        CheckpointError: the place is taken, or the disk is full or not writable.
    """
    _refuse_taken(folder, overwrite, marker)
    partial = _beside(folder, "saving")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(folder)
        partial.mkdir()
        made = Draft(partial)
        yield made
        _sync_folder(partial)
        _publish(partial, folder)
    except OSError as error:
        why = error.strerror or str(error)
        raise CheckpointError(
            f"Cannot write {folder}: {why}. Nothing was changed; free space or choose another folder."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Write one file beside its place, sync it, and rename it; what killed processes left there is removed.

    Raises:
        OSError: the disk is full or not writable; nothing is left and the previous file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(path)
    partial = _beside(path, "saving")
    try:
        _write_synced(partial, chunks)
        os.replace(partial, path)
        _sync_folder(path.absolute().parent)
    finally:
        partial.unlink(missing_ok=True)


def _write_synced(path: Path, chunks: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """Size and SHA-256 of what was written."""
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return size, digest.hexdigest()


def check_files(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Compare files with their recorded size and SHA-256.

    Raises:
        CheckpointError: naming the first file that is missing, of another size, or changed.
    """
    for name, recorded in files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing: the folder is incomplete. Save it again or restore the file.")
        size = path.stat().st_size
        if size != recorded["bytes"]:
            raise CheckpointError(f"{path} has {size} bytes, not {recorded['bytes']}: it is truncated or was replaced.")
        if _sha256(path) != recorded["sha256"]:
            raise CheckpointError(
                f"{path} is damaged or was edited: its checksum differs from the one in sparsity.json."
            )


def _refuse_taken(folder: Path, overwrite: bool, marker: str) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise CheckpointError(f"{folder} exists already; choose another folder, or replace it with overwrite=True.")
    if not (folder / marker).is_file():
        raise CheckpointError(
            f"{folder} is not a saved model (it has no {marker}) and is not replaced; choose another folder."
        )


def _beside(folder: Path, purpose: str) -> Path:
    place = folder.absolute()
    return place.with_name(f".{place.name}.{purpose}-{os.getpid()}")


def _clear_leftovers(folder: Path) -> None:
    """Remove what killed processes left beside `folder`; only when `folder` itself is there, so never the last copy."""
    place = folder.absolute()
    for path in place.parent.glob(f".{place.name}.*-*"):
        purpose, _, pid = path.name.removeprefix(f".{place.name}.").rpartition("-")
        gone = pid.isdigit() and not _alive(int(pid))
        if gone and (purpose == "saving" or (purpose == "old" and place.exists())):
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _publish(partial: Path, folder: Path) -> None:
    if not folder.exists() or not any(folder.iterdir()):
        os.replace(partial, folder)
    elif not _exchange(partial, folder):
        old = _beside(folder, "old")
        os.replace(folder, old)
        try:
            os.replace(partial, folder)
        except OSError:
            os.replace(old, folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    _sync_folder(folder.absolute().parent)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two paths in one step (Linux `renameat2`); False where the system or file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
