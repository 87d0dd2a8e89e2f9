from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys

import pytest

from sparseworks.core.errors import CheckpointError
from sparseworks.io import folder as folders
from sparseworks.io.folder import check_files, draft, write_file


def put(folder, text: str, **options) -> None:
    with draft(folder, **{"overwrite": False, "marker": "facts", **options}) as made:
        made.write_text("facts", text)


def test_folder_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "deep" / "out"
    with draft(target, overwrite=False, marker="facts") as made:
        made.write_text("facts", "new")
        assert not target.exists()
    assert (target / "facts").read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_files_are_hashed_as_written(tmp_path):
    with draft(tmp_path / "out", overwrite=False, marker="facts") as made:
        made.write("sub/a", [b"ab", memoryview(b"c")])
    assert made.files["sub/a"]["bytes"] == 3
    assert made.files["sub/a"]["sha256"].startswith("ba7816bf8f01cfea")  # FIPS 180-2: SHA-256 of "abc"
    check_files(tmp_path / "out", made.files)


@pytest.mark.parametrize("exchange", [True, False], ids=["one step", "two steps"])
def test_overwrite_replaces(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(folders, "_exchange", lambda a, b: False)
    put(tmp_path / "out", "old")
    put(tmp_path / "out", "new", overwrite=True)
    assert (tmp_path / "out" / "facts").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_existing_folder_needs_overwrite(tmp_path):
    put(tmp_path / "out", "old")
    with pytest.raises(
        CheckpointError, match="exists already; choose another folder, or replace it with overwrite=True"
    ):
        put(tmp_path / "out", "new")
    assert (tmp_path / "out" / "facts").read_text() == "old"


def test_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "out").mkdir()
    put(tmp_path / "out", "new")
    assert (tmp_path / "out" / "facts").read_text() == "new"


def test_a_folder_of_something_else_is_never_replaced(tmp_path):
    (tmp_path / "photo").write_text("mine")
    with pytest.raises(CheckpointError, match="is not a saved model"):
        put(tmp_path, "new", overwrite=True)
    assert (tmp_path / "photo").read_text() == "mine"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failed_write_leaves_nothing(tmp_path, monkeypatch, code, step):
    put(tmp_path / "out", "old")
    monkeypatch.setattr(folders, "_exchange", lambda a, b: False)

    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(folders.os, step, fail)
    with pytest.raises(CheckpointError, match=f"Cannot write .*out: {os.strerror(code)}. Nothing was changed"):
        put(tmp_path / "out", "new", overwrite=True)
    monkeypatch.undo()
    assert (tmp_path / "out" / "facts").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_failed_second_rename_puts_the_old_folder_back(tmp_path, monkeypatch):
    put(tmp_path / "out", "old")
    monkeypatch.setattr(folders, "_exchange", lambda a, b: False)
    replace, calls = os.replace, []

    def fail_second(a, b):
        calls.append(a)
        if len(calls) == 2:
            raise OSError(errno.EIO, "broken")
        replace(a, b)

    monkeypatch.setattr(folders.os, "replace", fail_second)
    with pytest.raises(CheckpointError, match="broken"):
        put(tmp_path / "out", "new", overwrite=True)
    assert (tmp_path / "out" / "facts").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_file_larger_than_the_system_allows_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with (
            pytest.raises(CheckpointError, match=r"Cannot write .*File too large"),
            draft(tmp_path / "out", overwrite=False, marker="facts") as made,
        ):
            made.write("big", [bytes(1 << 20)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_any_error_in_the_block_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), draft(tmp_path / "out", overwrite=False, marker="facts"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


KILLED = """
import importlib.util, os, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("folders", sys.argv[4])  # alone, so that torch need not be imported
folders = importlib.util.module_from_spec(spec)
spec.loader.exec_module(folders)
point, count = sys.argv[2], int(sys.argv[3])
original = getattr(folders, point) if point.startswith("_") else getattr(folders.os, point)
def die(*args):
    global count
    count -= 1
    if count < 0:
        os._exit(9)
    return original(*args)
setattr(folders if point.startswith("_") else folders.os, point, die)
with folders.draft(Path(sys.argv[1]), overwrite=True, marker="facts") as made:
    made.write_text("big", "new" * 1000)
    made.write_text("facts", "new")
"""
POINTS = [("fsync", 0), ("fsync", 1), ("fsync", 2), ("_exchange", 0), ("_sync_folder", 1), ("fsync", 99)]


@pytest.mark.parametrize(("point", "count"), POINTS)
def test_a_kill_leaves_the_old_or_the_new_folder(tmp_path, point, count):
    target = tmp_path / "out"
    put(target, "old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(target), point, str(count), folders.__file__], timeout=60)
    killed = (point, count) != ("fsync", 99)
    assert done.returncode == (9 if killed else 0)
    new = not killed or point == "_sync_folder"
    assert (target / "facts").read_text() == ("new" if new else "old")
    assert (target / "big").exists() == new
    put(target, "next", overwrite=True)  # and the next save clears what the kill left
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_leftovers_of_the_living_stay(tmp_path):
    living = tmp_path / f".out.saving-{os.getppid()}"
    living.mkdir()
    put(tmp_path / "out", "new")
    assert living.exists()


def test_the_last_copy_is_never_cleared(tmp_path):
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    kept = tmp_path / f".out.old-{ended.stdout.strip()}"
    kept.mkdir()
    folders._clear_leftovers(tmp_path / "out")
    assert kept.exists()
    put(tmp_path / "out", "new")
    folders._clear_leftovers(tmp_path / "out")
    assert not kept.exists()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: p.unlink(), "a is missing"),
        (lambda p: p.write_bytes(b"ab"), "a has 2 bytes, not 3"),
        (lambda p: p.write_bytes(b"abx"), "a is damaged or was edited"),
    ],
)
def test_check_names_the_damaged_file(tmp_path, damage, words):
    with draft(tmp_path / "out", overwrite=False, marker="a") as made:
        made.write("a", [b"abc"])
    damage(tmp_path / "out" / "a")
    with pytest.raises(CheckpointError, match=words):
        check_files(tmp_path / "out", made.files)


def test_write_file_replaces_or_leaves_the_file(tmp_path, monkeypatch):
    path = tmp_path / "state"
    write_file(path, [b"old"])
    write_file(path, [b"new"])
    monkeypatch.setattr(folders.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        write_file(path, [b"newest"])
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
