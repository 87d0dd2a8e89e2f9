"""The text that ``sparseworks/tiny-lm`` is trained on, its byte-level BPE tokenizer and encoded stream."""

from __future__ import annotations

import argparse
import ast
import gzip
import json
import os
import re
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

BOS, EOS, PAD = "<s>", "</s>", "<pad>"


def read_gzip(path: Path) -> str:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return file.read()


def read_books(path: Path) -> dict[str, str]:
    """Title to text, from a gzipped JSON-lines file with the fields ``title`` and ``text``."""
    books = (json.loads(line) for line in read_gzip(path).split("\n") if line.strip())
    return {book["title"]: book["text"].replace("\r\n", "\n") for book in books}


def wikitext_articles(text: str) -> list[str]:
    """The articles of a WikiText file in its token style, without ``<unk>``."""
    text = re.sub(r" *<unk>", "", text)
    return [part for part in re.split(r"(?m)^(?= = [^=\n]+ = $)", text) if part.strip()]


def detokenize(text: str) -> str:
    """Undo the word splitting of WikiText: ``1 @,@ 200 lb ( 5 kg ) .`` becomes ``1,200 lb (5 kg).``"""
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = re.sub(
        r"(?m)^ ((?:= )+)(.*?)((?: =)+) $",
        lambda m: m[1].replace("= ", "=") + " " + m[2] + " " + m[3].replace(" =", "="),
        text,
    )
    text = re.sub(r" ([.,;:!?)\]}%]|'s\b|n't\b|'(?:re|ve|ll|d|m)\b)", r"\1", text)
    text = re.sub(r"([(\[{$£]) ", r"\1", text)
    text = re.sub(r'" ([^"\n]*?) "', r'"\1"', text)
    return re.sub(r"(?m)^ | $", "", text)


def standard_library_documents() -> list[str]:
    """One document per module: its docstrings, read from the source without importing it; and help topics."""
    root = Path(os.__file__).parent
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    documents = []
    for path in sorted(root.rglob("*.py")):
        if skipped.intersection(path.relative_to(root).parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        if path.parts[-2:] == ("pydoc_data", "topics.py"):
            values = [node.value for node in tree.body if isinstance(node, ast.Assign)]
            documents += [str(topic) for value in values for topic in ast.literal_eval(value).values()]
            continue
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
        strings = [string for string in found if string]
        if strings:
            documents.append("\n\n".join(strings))
    return documents


def gather(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Training documents and a small validation slice of the same kinds of text."""
    train, valid = [], []
    for title, text in read_books(args.books).items():
        if title != args.hold_out:
            start, stop = int(0.45 * len(text)), int(0.46 * len(text))
            train += [text[:start], text[stop:]]
            valid.append(text[start:stop])
    for number, article in enumerate(wikitext_articles(read_gzip(args.wikitext))):
        if number % 20 == 7:
            valid.append(detokenize(article))
        else:
            train += [article, detokenize(article)]
    for number, document in enumerate(standard_library_documents()):
        (valid if number % 100 == 50 else train).append(document)
    return train, valid


def train_tokenizer(documents: list[str], size: int, path: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[BOS, EOS, PAD], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.save(str(path))


def encode(tokenizer: Tokenizer, documents: list[str]) -> np.ndarray:
    """All documents as one stream, each between a begin and an end token."""
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    stream: list[int] = []
    for encoding in tokenizer.encode_batch(documents, add_special_tokens=False):
        stream += [bos, *encoding.ids, eos]
    return np.array(stream, dtype=np.int32)


def prepare(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """The encoded text, made once and then kept in the work folder."""
    cache = args.work / "tokens.npz"
    if not cache.exists():
        train, valid = gather(args)
        train_tokenizer(train, args.vocab, args.work / "tokenizer.json")
        tokenizer = Tokenizer.from_file(str(args.work / "tokenizer.json"))
        np.savez(args.work / "partial.npz", train=encode(tokenizer, train), valid=encode(tokenizer, valid))
        os.replace(args.work / "partial.npz", cache)
    data = np.load(cache)
    return data["train"], data["valid"]
