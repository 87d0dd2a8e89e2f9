"""A toy format with toy kernels, and injected timings, so that the execution layer is tested apart from real kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from sparseworks.core.support import Support
from sparseworks.exec import FORMATS, KERNELS, measure
from sparseworks.exec.ceilings import Ceilings
from sparseworks.exec.format import Format, Packed
from sparseworks.exec.kernel import Kernel
from sparseworks.exec.native import features, native


@contextmanager
def _running(isa: str):
    """The kernels of `isa`, one of `features()["built"]`, for as long as the block lasts."""
    module = native()
    if module is None:
        yield
        return
    before = module.features()["isa"]
    module.use(isa)
    try:
        yield
    finally:
        module.use(before)


@pytest.fixture(name="running")
def _running_fixture():
    return _running


@pytest.fixture(params=features()["built"] or ["none"])
def every_isa(request):
    """Each instruction set that is built and runs here, by name ("none" without the extension)."""
    with _running(request.param):
        yield request.param


@pytest.fixture
def interpreted():
    """Runs files of `triton/`, by default all, in Triton's interpreter: in a process of their own, since the choice is made when Triton
    is first imported."""
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    if torch.cuda.is_available():
        pytest.skip("tests/exec/triton runs on the GPU")
    folder = Path(__file__).parent / "triton"

    def run(*files: str, left_out: Sequence[str] = ()) -> None:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
        command += [f"--ignore={folder / name}" for name in left_out]
        command += [str(folder / name) for name in files] or [str(folder)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | {"TRITON_INTERPRET": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]

    return run


class Toy(Format):
    """Kept values in row-major order, and the support's bits."""

    registered_name = "toy"

    def pack(self, weight, support, *, dtype=torch.float32):
        parts = {"values": weight.detach()[support.mask()].to(dtype), "bits": support.bits().clone()}
        return Packed("toy", tuple(support.shape), dtype, parts)

    def unpack(self, packed):
        support = Support.from_bits(packed.parts["bits"], packed.shape)
        weight = torch.zeros(packed.shape, dtype=packed.dtype)
        weight[support.mask()] = packed.parts["values"]
        return weight, support

    def nbytes(self, support, dtype=torch.float32):
        return support.count * dtype.itemsize + (support.size + 7) // 8


class Wide(Toy):
    """The same under another name: a second form of a layer."""

    registered_name = "wide"

    def pack(self, weight, support, *, dtype=torch.float32):
        packed = super().pack(weight, support, dtype=dtype)
        return Packed("wide", packed.shape, dtype, packed.parts)


class Picky(Toy):
    """Refuses every support."""

    registered_name = "picky"

    def refuses(self, support, dtype=torch.float32):
        return super().refuses(support, dtype) or "it wants 3 of every 5 inputs"


class ToyKernel(Kernel):
    """Unpacks and multiplies; up to `most` rows of float32."""

    def __init__(self, name, format="toy", value_dtype=torch.float32, most=10**9):
        self.name, self.format, self.value_dtype, self.most = name, format, value_dtype, most

    def refuses(self, call):
        if call.dtype != torch.float32:
            return f"it multiplies float32, not {call.dtype}"
        return f"it takes up to {self.most} rows" if call.rows > self.most else None

    def __call__(self, x, packed, bias):
        assert x.is_contiguous() and x.dtype == torch.float32
        return self.reference(x, packed, bias)


KEPT = ("dense", "dense-bf16", "taps-fp32")
TOYS = (
    ToyKernel("toy-few", most=64),
    ToyKernel("toy-any"),
    ToyKernel("toy-bf16", value_dtype=torch.bfloat16),
    ToyKernel("wide-any", "wide"),
    ToyKernel("picky-any", "picky"),
)


@pytest.fixture
def toys(monkeypatch):
    """Only the dense kernels, that of convolutions and the toys are registered."""
    kept = {name: FORMATS.get(name) for name in ("dense", "taps")}
    formats = kept | {"toy": Toy(), "wide": Wide(), "picky": Picky()}
    monkeypatch.setattr(FORMATS, "_items", formats)
    monkeypatch.setattr(KERNELS, "_items", {n: KERNELS.get(n) for n in KEPT} | {k.name: k for k in TOYS})


@dataclass
class Clock:
    """Injected times: name -> microseconds, or (rows, name) -> microseconds; everything else takes `usual`."""

    us: dict = field(default_factory=dict)
    usual: float = 1000.0
    jitter: tuple[float, ...] = (1.0,) * 5
    calls: list[list[str]] = field(default_factory=list)

    def compare(self, contenders, **options):
        self.calls.append(list(contenders))
        return measure.Comparison({name: self._time(name, fn) for name, fn in contenders.items()})

    def _time(self, name, fn):
        rows = fn().shape[0]
        us = self.us.get((rows, name), self.us.get(name, self.usual))
        return measure.Timing.of([us * (1.0 if name == "dense" else j) for j in self.jitter])


@pytest.fixture
def clock(monkeypatch, toys, tmp_path):
    """Replaces measurement: dense takes 100 us, everything else 1000 us unless the test says otherwise."""
    monkeypatch.setenv("SPARSEWORKS_CACHE", str(tmp_path))
    clock = Clock({"dense": 100.0})
    monkeypatch.setattr(measure, "compare", clock.compare)
    monkeypatch.setattr("sparseworks.exec.draw.ceilings", lambda **_: Ceilings(2e10, 1e11, 1, 1 << 27))
    return clock


@pytest.fixture
def chain():
    """Two layers of different shapes with row-balanced supports, and an input."""
    model = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 8))
    return model, {"0": random_support(16, 24, 0.5), "2": random_support(8, 16, 0.25)}, torch.randn(5, 24)


def random_support(out_features: int, in_features: int, density: float) -> Support:
    """The first `density` share of a random order of every row."""
    order = torch.rand(out_features, in_features).argsort(dim=1)
    return Support.from_mask(order < round(in_features * density))


def masked(model: nn.Module, supports) -> nn.Module:
    """A copy of the model with zeros outside the supports."""
    import copy

    from sparseworks.stream import sites

    twin = copy.deepcopy(model)
    for site in sites(twin, include=["*"]):
        if site.name in supports:
            site.write(twin, site.read(twin) * supports[site.name].mask())
    return twin


@pytest.fixture(name="random_support")
def _random_support():
    return random_support


@pytest.fixture(name="masked")
def _masked():
    return masked
