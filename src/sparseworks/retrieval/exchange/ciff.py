"""CIFF, the common index file format of Lucene, PISA and others (Lin et al., 2020, arXiv 2003.08276): protobuf messages, each after its length.

A header, then one message a posting list, then one a document. The four wire forms that occur are read and written here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from sparseworks.core.errors import CalibrationError, CheckpointError, ShapeError
from sparseworks.exec.search import Rows
from sparseworks.io.folder import write_file
from sparseworks.retrieval.vectors import SparseVectors

_VERSION = 1


def write_ciff(
    path: Path | str, ids: Sequence[str], vectors: Rows, terms: Sequence[str] | None = None, *, scale: float = 100.0
) -> Path:
    """Vectors as postings whose frequency is round(scale * weight), at least 1: CIFF holds whole numbers only.

    Args:
        terms: names of terms; default: their numbers.

    Raises:
        ShapeError: not one id a vector, or a name a term.
        CalibrationError: negative weights.
        CheckpointError: the disk is full or not writable.
    """
    if len(ids) != len(vectors) or (terms is not None and len(terms) != vectors.width):
        raise ShapeError(
            f"Needs an id for each of {len(vectors)} vectors, and a name for each of {vectors.width} terms."
        )
    if bool((vectors.values < 0).any()):
        raise CalibrationError("CIFF holds frequencies, which are not negative.")
    counts = (vectors.values.double() * scale).round().clamp(min=1).long()
    order = vectors.indices.argsort(stable=True)
    row = vectors.row_of()[order].tolist()
    term, count = vectors.indices[order].tolist(), counts[order].tolist()
    lengths = torch.zeros(len(vectors), dtype=torch.long).index_add(0, vectors.row_of(), counts).tolist()
    used = sorted(set(term))
    names: dict[int, str] = {t: str(terms[t]) if terms else str(t) for t in used}
    starts = [0, *(i + 1 for i, (a, b) in enumerate(itertools.pairwise(term)) if a != b), len(term)]
    spans = {term[a]: (a, b) for a, b in itertools.pairwise(starts) if b > a}

    def messages() -> Iterator[bytes]:
        mean = sum(lengths) / max(len(lengths), 1)
        whole = {1: _VERSION, 2: len(used), 3: len(ids), 4: len(used), 5: len(ids), 6: sum(lengths)}
        yield _sized(b"".join(_number(f, v) for f, v in whole.items()) + _double(7, mean) + _text(8, "sparseworks"))
        for t in sorted(used, key=names.__getitem__):
            a, b = spans[t]
            gaps = [row[a], *(y - x for x, y in zip(row[a : b - 1], row[a + 1 : b], strict=True))]
            postings = b"".join(_bytes(4, _number(1, g) + _number(2, c)) for g, c in zip(gaps, count[a:b], strict=True))
            yield _sized(_text(1, names[t]) + _number(2, b - a) + _number(3, sum(count[a:b])) + postings)
        for i, name in enumerate(ids):
            yield _sized(_number(1, i) + _text(2, name) + _number(3, lengths[i]))

    try:
        write_file(Path(path), messages())
    except OSError as error:
        raise CheckpointError(f"Cannot write {path}: {error.strerror or error}. Nothing was changed.") from error
    return Path(path)


def read_ciff(path: Path | str, *, scale: float = 1.0) -> tuple[list[str], SparseVectors, list[str]]:
    """Ids, vectors of frequency / scale, and names of terms.

    Raises:
        CalibrationError: missing, truncated, or no CIFF of version 1.
    """
    try:
        stream = _messages(Path(path).read_bytes())
        head = _fields(next(stream))
        if head[1][0] != _VERSION:
            raise ValueError(f"its version is {head[1][0]}")
        lists, documents = head.get(2, [0])[0], head.get(3, [0])[0]
        names, rows, columns, values = [], [], [], []
        for t in range(lists):
            one = _fields(next(stream))
            names.append(one[1][0].decode())
            document = 0
            for posting in one.get(4, []):
                pair = _fields(posting)
                document += pair.get(1, [0])[0]
                rows.append(document)
                columns.append(t)
                values.append(pair.get(2, [0])[0] / scale)
        records = [_fields(next(stream)) for _ in range(documents)]
        ids = [r[2][0].decode() for r in records]
        if [r.get(1, [0])[0] for r in records] != list(range(documents)) or any(r >= documents for r in rows):
            raise ValueError("documents are not numbered in order")
    except (OSError, StopIteration, LookupError, ValueError, AttributeError) as error:
        raise CalibrationError(f"{path} cannot be read as CIFF: {str(error) or 'it is truncated'}.") from error
    row = torch.tensor(rows, dtype=torch.long)
    order = row.argsort(stable=True)
    ptr = torch.cat([torch.zeros(1, dtype=torch.long), torch.bincount(row, minlength=documents).cumsum(0)])
    columns, values = torch.tensor(columns, dtype=torch.long)[order], torch.tensor(values, dtype=torch.float32)[order]
    return ids, SparseVectors(ptr, columns, values, max(lists, 1)), names  # pyright: ignore[reportCallIssue]


# -- the wire -----------------------------------------------------------------------------------------------------------


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value) if value else b""


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + torch.tensor([value], dtype=torch.float64).numpy().tobytes()


def _sized(message: bytes) -> bytes:
    return _varint(len(message)) + message


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _messages(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        size, at = _read_varint(data, at)
        if at + size > len(data):
            raise ValueError("it is truncated")
        yield data[at : at + size]
        at += size


def _fields(message: bytes) -> dict[int, list]:
    found: dict[int, list] = {}
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        form = key & 7
        if form == 0:
            value, at = _read_varint(message, at)
        elif form in (1, 5):
            value, at = message[at : at + (8 if form == 1 else 4)], at + (8 if form == 1 else 4)
        elif form == 2:
            size, at = _read_varint(message, at)
            value, at = message[at : at + size], at + size
        else:
            raise ValueError(f"it has wire form {form}")
        found.setdefault(key >> 3, []).append(value)
    return found
