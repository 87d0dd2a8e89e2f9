"""Keeping freed memory: where it takes effect a freed large block comes back without page faults."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from sparseworks.exec import memory, reuse_memory

FAULTS = """
import resource, runpy, sys
reuse_memory = runpy.run_path(sys.argv[1])["reuse_memory"]

def faults():
    b"x" * (1 << 26)  # 64 MiB: 16384 pages
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        b"x" * (1 << 26)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults(), reuse_memory(), faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of the GNU C library")
def test_page_faults_vanish():
    run = subprocess.run([sys.executable, "-c", FAULTS, memory.__file__], capture_output=True, text=True, check=True)
    before, took_effect, after = run.stdout.split()
    assert took_effect == "True" and int(after) < int(before) / 10


def test_elsewhere_it_says_that_it_does_nothing(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert reuse_memory() is False


def test_another_c_library(monkeypatch):
    def missing(_):
        raise OSError

    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert reuse_memory() is False
