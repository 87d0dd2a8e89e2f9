"""Lines of text files, plain or gzipped, and what is said when one cannot be read."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sparseworks.core.errors import CalibrationError, CheckpointError
from sparseworks.io.folder import write_file


def lines(path: Path | str) -> Iterator[str]:
    """Lines of a file, unpacked if its name ends in .gz, without their ends.

    Raises:
        CalibrationError: missing, not UTF-8, or not gzip as its name says.
    """
    source = Path(path)
    opening = gzip.open if source.suffix == ".gz" else open
    try:
        with opening(source, "rt", encoding="utf-8") as file:
            for line in file:
                yield line.rstrip("\r\n")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise CalibrationError(f"{source} cannot be read as UTF-8 text: {error}.") from error


def numbered(path: Path | str) -> Iterator[tuple[str, str]]:
    """(where, line) of a file's lines that are not blank.

    Raises:
        CalibrationError: as `lines`.
    """
    for number, line in enumerate(lines(path), start=1):
        if line.strip():
            yield f"{path}, line {number}", line


def records(path: Path | str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, object) of a file of JSON lines.

    Raises:
        CalibrationError: naming the line.
    """
    for where, line in numbered(path):
        try:
            data = json.loads(line)
        except ValueError as error:
            raise CalibrationError(f"{where} is not JSON: {error}.") from error
        if not isinstance(data, dict):
            raise CalibrationError(f"{where} is not a JSON object but {type(data).__name__}.")
        yield where, data


def write_lines(path: Path | str, text: Iterable[str]) -> Path:
    """A text file that appears whole or not at all.

    Raises:
        CheckpointError: the disk is full or not writable; nothing is left.
    """
    target = Path(path)
    try:
        write_file(target, (f"{line}\n".encode() for line in text))
    except OSError as error:
        raise CheckpointError(f"Cannot write {target}: {error.strerror or error}. Nothing was changed.") from error
    return target
