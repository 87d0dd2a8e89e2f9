"""Text that every machine holds: the documentation inside Python's standard library, as passages and as a retrieval collection."""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from sparseworks.core.errors import CalibrationError
from sparseworks.evaluate.collection import Collection

WORDS = 150
LEAST = 20
HELD_OUT = 0.4
# Not documentation of the library, or gone in a later Python: leaving them out keeps the text alike across versions.
SKIPPED = frozenset({
    "site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "idlelib", "turtledemo", "ensurepip",
    "pydoc_data", "encodings", "lib2to3", "distutils", "msilib", "aifc.py", "asynchat.py", "asyncore.py", "cgi.py", "cgitb.py", "chunk.py",
    "crypt.py", "imghdr.py", "imp.py", "mailcap.py", "nntplib.py", "pipes.py", "smtpd.py", "sndhdr.py", "sunau.py",
    "telnetlib.py", "uu.py", "xdrlib.py", "_pydecimal.py", "_pyio.py",
})  # fmt: skip


@dataclass(frozen=True)
class Passage:
    """A piece of documentation of at most about 150 words.

    Attributes:
        id: module path, qualified name and number, e.g. `shutil.py:copytree#0`.
        heading: what the text is about: first paragraph of a docstring, title of a section; empty if there is none.
        text: the text without the heading.
    """

    id: str
    heading: str
    text: str

    @property
    def whole(self) -> str:
        """Heading and text, as calibration text."""
        return f"{self.heading}\n\n{self.text}" if self.heading else self.text


def documentation_passages(*, held_out: bool = False, packages: Iterable[str] = ()) -> list[Passage]:
    """Passages of the standard library's docstrings and help topics, in an order that looks random but is always the same.

    A module belongs to one of two parts as the hash of its path says: `held_out=False` is for calibration and recovery,
    `held_out=True` (about two fifths of the docstrings) for evaluation. Equal texts occur once, so no text is in both parts.
    The help topics quote one another and are all in the first part. Sources are parsed, never imported.

    Args:
        held_out: which part.
        packages: also the docstrings of these installed packages ("torch", "numpy"), first part only; more text for recovery,
            which changes with their versions.

    Raises:
        CalibrationError: no documentation on this machine, or a package that is not installed.
    """
    passages = [p for p in _library() if is_held_out(p.id) == held_out]
    if not held_out:
        known = {p.text for p in _library()}
        passages += [p for name in packages for p in _package(name) if p.text not in known]
    if not passages:
        raise CalibrationError(
            "This Python has no readable documentation (no library sources, no help topics); give texts with `data`."
        )
    return sorted(passages, key=lambda p: _hash(p.id))


def documentation_retrieval(queries: int = 200, documents: int | None = None) -> Collection:
    """A small collection from the held-out part: headings of docstrings are queries, what follows them are the documents.

    A passage is relevant (grade 1) to its own heading; where several share a heading, all are. Headings are not part of
    the documents. The first `queries` headings and all their passages are taken, in the order of `documentation_passages`.

    Args:
        queries: headings to ask for, at least 1.
        documents: size of the collection, filled up with other held-out passages; None = all of them.

    Raises:
        CalibrationError: no documentation on this machine.
    """
    passages = documentation_passages(held_out=True)
    relevant: dict[str, list[Passage]] = {}
    for p in passages:
        if 4 <= len(p.heading.split()) <= 30:
            relevant.setdefault(p.heading, []).append(p)
    asked = list(relevant)[: max(1, queries)]
    needed = {p.id for heading in asked for p in relevant[heading]}
    others = [p.id for p in passages if p.id not in needed]
    kept = needed.union(others if documents is None else others[: max(0, documents - len(needed))])
    return Collection(
        {p.id: p.text for p in passages if p.id in kept},
        {relevant[h][0].id: h for h in asked},
        {relevant[h][0].id: {p.id: 1 for p in relevant[h]} for h in asked},
        "Python documentation",
    )


def is_held_out(passage_id: str) -> bool:
    """Whether passages of this module are kept for evaluation: decided by the hash of the module's path."""
    module = passage_id.partition(":")[0]
    return not module.startswith("topics/") and _hash(module) < HELD_OUT * 2**64


@cache
def _library() -> tuple[Passage, ...]:
    root = Path(sysconfig.get_paths()["stdlib"])
    return tuple(_unique([*_topics(), *_docstrings(root)]))


@cache
def _package(name: str) -> tuple[Passage, ...]:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise CalibrationError(f"The package {name!r} is not installed; its documentation cannot be read.")
    return tuple(_unique(_docstrings(Path(next(iter(spec.submodule_search_locations))), f"{name}/")))


def _unique(passages: Iterable[Passage]) -> Iterator[Passage]:
    seen = set()
    for passage in passages:
        if passage.text not in seen:
            seen.add(passage.text)
            yield passage


def _topics() -> Iterator[Passage]:
    """Sections of the help topics (`help("if")`); a section's title is underlined with one kind of character."""
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions ship it separately
        return
    for name, text in sorted(topics.items()):
        parts = re.split(r"(?m)^(\S.*)\n([*=\-~^])\2{3,}\s*$", text)
        sections = [("", parts[0]), *zip(parts[1::3], parts[3::3], strict=True)]
        for number, (title, body) in enumerate(sections):
            yield from _passages(f"topics/{name}:{number}", title, body)


def _docstrings(root: Path, prefix: str = "") -> Iterator[Passage]:
    for path in sorted(root.rglob("*.py")):
        module = path.relative_to(root)
        if SKIPPED.intersection(module.parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError, OSError):
            continue
        for name, text in _documented(tree, ""):
            heading, _, body = text.partition("\n\n")
            heading, body = (" ".join(heading.split()), body) if body else ("", text)
            yield from _passages(f"{prefix}{module.as_posix()}:{name}", heading, body)


def _documented(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """(qualified name, docstring) of a module or class and everything defined in it."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text:
            yield name, text
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _documented(child, f"{name}.{child.name}".lstrip("."))


def _passages(source: str, heading: str, body: str) -> Iterator[Passage]:
    """The body cut at paragraphs into pieces of about 150 words; pieces of fewer than 20 words are dropped."""
    piece: list[str] = []
    number = 0
    for paragraph in [*re.split(r"\n\s*\n", body), None]:
        full = paragraph is None or sum(len(p.split()) for p in [*piece, paragraph]) > WORDS
        if full and piece:
            text = "\n\n".join(piece).strip("\n")
            if len(text.split()) >= LEAST:
                yield Passage(f"{source}#{number}", heading.strip(), text)
                number += 1
            piece = []
        piece.append(paragraph or "")


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
