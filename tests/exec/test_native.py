from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparseworks.exec import native as module
from sparseworks.exec.native import features, native, why_missing

needs_extension = pytest.mark.skipif(native() is None, reason="the compiled extension is not built")


def test_features_name_the_instruction_set():
    assert features()["isa"] in ("avx512", "avx2", "portable", "none")
    assert (native() is None) == (features()["isa"] == "none") == (why_missing() is not None)


def _compiles(command: str) -> bool:
    return (
        shutil.which(command) is not None
        and subprocess.run([command, "--version"], capture_output=True).returncode == 0
    )


def test_where_there_is_a_compiler_the_extension_is_built():
    """The package installs without it when the build fails, and the tests of its kernels are then left out: not unnoticed."""
    asked = os.environ.get("CXX")
    compiler = next(filter(_compiles, (asked,) if asked else ("c++", "g++", "clang++")), None)
    switched_off = os.environ.get("SPARSEWORKS_NATIVE", "1") == "0"
    assert compiler is None or switched_off or native() is not None, why_missing()


@needs_extension
def test_a_capable_processor_runs_its_widest_vectors():
    """In processes of their own: what SPARSEWORKS_ISA says is asked once, when the extension is loaded."""
    assert features()["built"][0] == "portable"
    best = next(name for name in ("avx512", "avx2", "portable") if name in features()["built"])
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        assert best != "portable"
    code = "from sparseworks.exec.native import features; print(features()['isa'])"
    for asked, runs in [(None, best), ("no such", best), ("portable", "portable")]:
        others = {k: v for k, v in os.environ.items() if k != "SPARSEWORKS_ISA"}
        environment = others if asked is None else {**others, "SPARSEWORKS_ISA": asked}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == runs


@needs_extension
def test_only_what_is_built_can_be_used(running):
    for name in features()["built"]:
        with running(name):
            assert native().features()["isa"] == name
    before = native().features()["isa"]
    with pytest.raises(ValueError, match="not an instruction set of this build"):
        native().use("sse9")
    assert native().features()["isa"] == before


@needs_extension
def test_another_build_can_be_named(monkeypatch, tmp_path):
    build = tmp_path / Path(native().__file__).name
    build.symlink_to(native().__file__)
    code = "from sparseworks.exec.native import native, features; print(native().__file__, features()['isa'])"
    environment = os.environ | {"SPARSEWORKS_NATIVE": str(build)}  # a process loads one build only
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert said.split() == [str(build), native().features()["isa"]]
    monkeypatch.setenv("SPARSEWORKS_NATIVE", "/no/such/file.so")
    other, reason = module._load.__wrapped__()
    assert other is None and "/no/such/file.so" in reason


@pytest.mark.skipif(native() is None or not Path("/proc/self/maps").exists(), reason="needs the extension and /proc")
def test_one_thread_pool_is_shared_with_torch():
    """In a process of its own: other libraries bring pools of theirs."""
    code = """
import torch
from pathlib import Path
from sparseworks.exec.native import native
native()
loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
print(sum("libtorch" in name for name in loaded) > 0, sum("libgomp" in name for name in loaded))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert said[0] == "True" and int(said[1]) <= 1


def test_works_without_the_extension():
    code = """
import torch
from sparseworks.core.support import Support
from sparseworks.exec.format import FORMATS
from sparseworks.exec.kernel import KERNELS, Call
import sparseworks.exec.kernels
from sparseworks.exec.native import features
assert features()["isa"] == "none"
kernel = KERNELS.get("tile-fp32")
assert "SPARSEWORKS_NATIVE" in kernel.refuses(Call(4, (8, 8)))
packed = FORMATS.get("tile").pack(torch.eye(8), Support.full((8, 8)))
x = torch.randn(4, 8)
assert torch.equal(kernel.reference(x, packed, None), x)
try:
    kernel(x, packed, None)
except sparseworks.core.errors.KernelError as error:
    assert "cannot run" in str(error)
else:
    raise SystemExit("it ran")
"""
    environment = {**os.environ, "SPARSEWORKS_NATIVE": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_broken_extension_is_a_reason_not_a_crash(monkeypatch):
    monkeypatch.delenv("SPARSEWORKS_NATIVE", raising=False)
    monkeypatch.setattr(module, "import_module", lambda name: (_ for _ in ()).throw(ImportError("no such symbol")))
    found, reason = module._load.__wrapped__()
    assert found is None and "no such symbol" in reason and "C++17" in reason
