from __future__ import annotations

import gzip
from pathlib import Path
from random import Random

import pytest
import torch

from sparseworks.core.errors import CalibrationError
from sparseworks.evaluate.text import (
    _pieces,
    lm_batches,
    lm_stream,
    lm_windows,
    piece_batches,
    read_texts,
    spaced,
    timing_batch,
    token_batches,
)


def file(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("end", ["", ".gz"])
def test_text_and_json_lines(tmp_path: Path, end: str):
    text = file(tmp_path / f"a.txt{end}", "one\nline\n \n\ntwo ü\n".encode())
    assert read_texts(text) == ["one\nline", "two ü"]
    assert read_texts(text, paragraphs=False) == ["one\nline\n \n\ntwo ü"]
    records = file(tmp_path / f"a.jsonl{end}", b'{"text": "one"}\n\n{"text": "two", "id": 3}\n')
    assert read_texts(records) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "no text"),
        ("a.txt", b" \n\n ", "no text"),
        ("a.txt", b"\xff\xfe\xff", "UTF-8"),
        ("a.jsonl", b"", "no text"),
        ("a.jsonl", b'{"txt": "one"}\n', "line 1 has no `text`"),
        ("a.jsonl", b'{"text": 5}\n', "line 1 has no `text`"),
        ("a.jsonl", b"{]\n", "line 1 is not JSON"),
        ("a.parquet", b"x", "parquet"),
        ("a", b"x", "read from"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, message: str):
    with pytest.raises(CalibrationError, match=message):
        read_texts(file(tmp_path / name, content))


def test_damaged_gzip_and_missing_file(tmp_path: Path):
    with pytest.raises(CalibrationError, match="cannot be read"):
        read_texts(tmp_path / "none.txt")
    (tmp_path / "a.txt.gz").write_bytes(b"not gzip")
    with pytest.raises(CalibrationError, match="cannot be read"):
        read_texts(tmp_path / "a.txt.gz")


def test_encoder_batches(tokenizer):
    batches = token_batches(["w0 w1", "w2 w3 w4 w5 w6", "w7"], tokenizer, batch=2, length=5)
    assert [b["input_ids"].tolist() for b in batches] == [[[2, 4, 5, 3, 0], [2, 6, 7, 8, 3]], [[2, 11, 3]]]
    assert batches[0]["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    full = token_batches(["w0"], tokenizer, length=6, pad="length", token_types=True)[0]
    assert full["input_ids"].tolist() == [[2, 4, 3, 0, 0, 0]]
    assert full["token_type_ids"].tolist() == [[0] * 6]
    with pytest.raises(CalibrationError, match="empty"):
        token_batches([], tokenizer)


def test_samples_are_evenly_spaced(tokenizer):
    texts = [f"w{i}" for i in range(10)]
    ids = [int(b["input_ids"][0, 1]) - 4 for b in token_batches(texts, tokenizer, batch=1, samples=5)]
    assert ids == [0, 2, 4, 6, 8]
    assert spaced(texts, 20) == texts
    assert spaced(torch.arange(9), 3).tolist() == [0, 3, 6]


def test_timing_batches_are_full(tokenizer):
    batch = timing_batch(["w0 w1 w2", "w3"], tokenizer, rows=3, length=7)
    assert batch["attention_mask"].all()
    assert batch["input_ids"].tolist() == [[2, 4, 5, 6, 7, 4, 3], [2, 5, 6, 7, 4, 5, 3], [2, 6, 7, 4, 5, 6, 3]]
    with pytest.raises(CalibrationError, match="empty"):
        timing_batch([""], tokenizer)


def test_stream_uses_special_tokens_or_blank_lines(tokenizer, bare_tokenizer):
    assert lm_stream(["w0", "w1 w2"], tokenizer).tolist() == [2, 4, 3, 2, 5, 6, 3]
    assert lm_stream(["w0", "w1 w2"], bare_tokenizer).tolist() == [4, 5, 6]


def test_windows_are_contiguous_and_packed(bare_tokenizer):
    texts = ["w0 w1 w2", "w3 w4", "w5 w6 w7 w8"]
    windows = lm_windows(texts, bare_tokenizer, 4)
    assert windows.tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]
    batches = lm_batches(texts, bare_tokenizer, length=2, samples=2, batch=1)
    assert [b["input_ids"].tolist() for b in batches] == [[[4, 5]], [[8, 9]]]
    with pytest.raises(CalibrationError, match="fewer than one window"):
        lm_windows(texts, bare_tokenizer, 40)


def test_pieces_hold_every_word_once():
    texts = [" ".join(f"w{i}" for i in range(n)) for n in (3, 40, 400)]
    pieces = [p for text in texts for p in _pieces(text, 6, 100, Random(0))]
    assert " ".join(pieces) == " ".join(texts)
    assert all(6 <= len(p.split()) < 106 for p in pieces[1:])
    assert len({len(p.split()) for p in pieces}) > 4


def test_batches_of_pieces_keep_to_the_budget_with_little_padding(tokenizer):
    texts = ["alpha beta gamma " * n for n in range(1, 60)]
    batches = piece_batches(texts, tokenizer, tokens=256, length=32)
    assert all(b["input_ids"].numel() <= 256 and b["input_ids"].shape[1] <= 32 for b in batches)
    real = sum(int(b["attention_mask"].sum()) for b in batches)
    assert real > 0.95 * sum(b["attention_mask"].numel() for b in batches)
    again = piece_batches(texts, tokenizer, tokens=256, length=32)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(batches, again, strict=True))


@pytest.mark.parametrize("option", ["tokens", "length", "shortest"])
def test_pieces_of_no_length_are_refused(tokenizer, option: str):
    with pytest.raises(CalibrationError, match="at least 1"):
        piece_batches(["alpha beta"], tokenizer, **{option: 0})
