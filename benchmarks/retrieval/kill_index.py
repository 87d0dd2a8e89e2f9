"""Does an index lose a document that was acknowledged, when its writer is killed at any moment?

A child adds batches, deletes, and merges in a second thread, and says on a pipe what it begins and what has returned. It is killed
with SIGKILL after a random time; then the index is opened with every checksum, and each document that was acknowledged must be
there with its vector, each that was deleted must be gone, and what was in flight is there in full or not at all. Then the next
child goes on with the same folder.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import common

from sparseworks.retrieval import Index, SparseVectors

WIDTH, BATCH = 5000, 7


@dataclass
class Known:
    """What a reader may count on: documents that are there, and those of the operation that was cut off."""

    there: set[int] = field(default_factory=set)
    adding: set[int] = field(default_factory=set)
    deleting: set[int] = field(default_factory=set)
    acknowledged: int = 0

    def read(self, line: str) -> None:
        """One line of the child."""
        what, _, numbers = line.partition(" ")
        given = set(map(int, numbers.split(",")))
        if what == "add":
            self.adding = given
        elif what == "delete":
            self.deleting = given
        else:
            self.there = self.there | given if what == "added" else self.there - given
            self.adding, self.deleting = set(), set()
            self.acknowledged += 1


def vectors(numbers: list[int]) -> SparseVectors:
    """The vector of each document, from its number."""
    return SparseVectors.of_terms(
        [{(n * p) % WIDTH: 1.0 + n % 13 + j for j, p in enumerate((1, 7, 31, 101, 499))} for n in numbers], WIDTH
    )


def write(path: Path, first: int, pipe: int, seed: int) -> None:
    """Add, delete and merge until killed."""
    chance = random.Random(seed)
    index = Index.open(path)
    say = lambda what, given: os.write(pipe, f"{what} {','.join(map(str, given))}\n".encode())  # noqa: E731
    threading.Thread(target=lambda: [index.merge() for _ in range(10**9)], daemon=True).start()
    mine: list[int] = []
    while True:
        if mine and chance.random() < 0.3:
            gone = chance.sample(mine, min(3, len(mine)))
            say("delete", gone)
            index.delete([str(n) for n in gone])
            say("deleted", gone)
            mine = [n for n in mine if n not in gone]
        batch = list(range(first, first + BATCH))
        first += BATCH
        say("add", batch)
        index.add([str(n) for n in batch], vectors(batch))
        say("added", batch)
        mine += batch


def check(path: Path, known: Known) -> str | None:
    """Open with every checksum and compare; what is wrong, in a sentence."""
    index = Index.open(path)
    snapshot = index.snapshot
    found = [int(i) for i in snapshot.ids()]
    there = set(found)
    if len(there) != len(found):
        return "a document is there twice"
    lost = known.there - known.deleting - there
    if lost:
        return f"acknowledged documents are lost: {sorted(lost)[:5]}"
    extra = there - known.there - known.adding
    if extra:
        return f"documents are there that were deleted, or never added: {sorted(extra)[:5]}"
    for name, part in (("added", known.adding & there), ("deleted", known.deleting - there)):
        whole = known.adding if name == "added" else known.deleting
        if part and part != whole:
            return f"half of a batch was {name}"
    if found:
        held = SparseVectors.join([s.vectors(WIDTH) for s in snapshot.segments])
        want = vectors(found)
        if not (torch.equal(held.indices, want.indices) and torch.equal(held.values, want.values)):
            return "a vector is another than was added"
    known.there, known.adding, known.deleting = there, set(), set()
    return None


def round_of(path: Path, known: Known, first: int, seed: int, longest: float) -> int:
    """One child, killed; the first number of the next."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        with contextlib.suppress(BaseException):
            write(path, first, writing, seed)
        os._exit(1)
    os.close(writing)
    time.sleep(random.Random(seed).uniform(0.005, longest))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reading) as lines:
        for line in lines:
            known.read(line.strip())
    if not os.WIFSIGNALED(status):
        raise RuntimeError("The writer ended before it was killed.")
    return max([first, *known.there, *known.adding]) + 1


def run(path: Path, kills: int, seed: int = 0, longest: float = 0.3) -> dict[str, int]:
    """`kills` rounds on one folder.

    Raises:
        AssertionError: an acknowledged change is lost.
    """
    torch.set_num_threads(1)  # a process with more threads cannot be forked
    Index.create(path, WIDTH)
    known, first, cut = Known(), 0, 0
    for n in range(kills):
        first = round_of(path, known, first, seed + n, longest)
        cut += bool(known.adding or known.deleting)
        wrong = check(path, known)
        assert wrong is None, f"after kill {n + 1}: {wrong}"
    return {
        "kills": kills, "in an operation": cut, "acknowledged": known.acknowledged, "documents": len(known.there),
        "lost": 0, "files left": sum(1 for _ in path.iterdir()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=0.3, help="seconds a writer lives at most")
    parser.add_argument("--json", type=Path, help="where to store the figures")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder) / "index", given.kills, given.seed, given.longest)
    common.table(f"{given.kills} kills", list(found), [[str(v) for v in found.values()]])
    common.store("kill_index", [], given.json, **found)


if __name__ == "__main__":
    main()
