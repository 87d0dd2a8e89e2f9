"""Rivals: what others offer for y = x W^T with the same masked weight, to be timed beside our kernels.

Each says in a sentence why it cannot take a call (a package that is missing, too many rows), and builds a function of x. Approximate
ones (bfloat16, int8) are named so; `error` tells by how much each is off.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sparseworks.core.registry import Registry
from sparseworks.core.support import Support
from sparseworks.exec.kernel import Call
from sparseworks.exec.row import rows_text

Run = Callable[[Tensor], Tensor]
RIVALS: Registry[Rival] = Registry("rival")


@dataclass(frozen=True)
class Rival:
    """One way to multiply that is not ours.

    Attributes:
        name: what a table calls it.
        make: `(weight, support) -> run`; the weight is masked float32 of shape (out, in).
        package: what must be installed beside torch.
        tolerance: relative error (Frobenius) that its rounding explains.
        bits: of a stored value, for the bytes that it must read.
        sparse: whether it skips zeros.
        most: rows it is offered for, at most.
        least: rows it is offered for, at least.
    """

    name: str
    make: Callable[[Tensor, Support], Run]
    package: str | None = None
    tolerance: float = 1e-5
    bits: int = 32
    sparse: bool = False
    most: int = 1 << 30
    least: int = 1

    def refuses(self, call: Call) -> str | None:
        """The sentence that says why it cannot take `call`, or None."""
        if call.device != "cpu" or call.dtype is not torch.float32:
            return f"it is compared on the CPU in float32, not on {call.device} in {str(call.dtype).removeprefix('torch.')}"
        if self.package and find_spec(self.package) is None:
            return f"{self.package} is not installed"
        if call.rows < self.least:
            return f"it is for {self.least} rows or more"
        return f"it is for up to {rows_text(self.most)}" if call.rows > self.most else None

    def build(self, weight: Float[Tensor, "out in"], support: Support) -> Run:
        """`run(x) -> x W^T` without bias, over a copy of the weight of its own."""
        return self.make(weight.detach(), support)

    def nbytes(self, support: Support) -> int:
        """Bytes of the stored weight; a sparse one holds an index of 32 bits beside each value."""
        return (support.count * (self.bits + 32) if self.sparse else support.size * self.bits) // 8


def error(run: Run, weight: Float[Tensor, "out in"], x: Float[Tensor, "rows in"]) -> float:
    """||run(x) - x W^T|| / ||x W^T||."""
    expected = F.linear(x.double(), weight.double())
    scale = float(expected.norm())
    off = float((run(x).double() - expected).norm())
    return off / scale if scale else off


def _dense(weight: Tensor, support: Support) -> Run:
    own = weight.clone()
    return lambda x: F.linear(x, own)


def _bf16(weight: Tensor, support: Support) -> Run:
    """The product in bfloat16; the rounding of x is part of the call, as in a float32 model."""
    own = weight.bfloat16()
    return lambda x: F.linear(x.bfloat16(), own).float()


def _dynamic_int8(weight: Tensor, support: Support) -> Run:
    """torch's dynamically quantised linear layer: int8 weights, uint8 inputs by their range."""
    holder = torch.nn.Sequential(torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    holder[0].weight.data = weight.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces torchao as the successor
        return torch.ao.quantization.quantize_dynamic(holder, {torch.nn.Linear}, dtype=torch.qint8)


def _int8pack(weight: Tensor, support: Support) -> Run:
    """int8 weights with a bfloat16 scale a row, bfloat16 inputs: torch's kernel for one token."""
    scale = (weight.abs().amax(dim=1).clamp(min=1e-12) / 127).bfloat16()
    own = (weight / scale.float()[:, None]).round().clamp(-128, 127).to(torch.int8)
    product = torch.ops.aten._weight_int8pack_mm
    return lambda x: product(x.bfloat16(), own, scale).float()


def _torch_csr(weight: Tensor, support: Support) -> Run:
    own = _compressed(weight.to_sparse_csr)
    return lambda x: torch.mm(own, x.T).T


def _torch_bsr(weight: Tensor, support: Support) -> Run:
    own = _compressed(lambda: weight.to_sparse_bsr((_block(weight.shape[0]), _block(weight.shape[1]))))
    return lambda x: torch.mm(own, x.T).T


def _compressed(build: Callable[[], Tensor]) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # beta state
        return build()


def _block(size: int) -> int:
    return next(b for b in (16, 8, 4, 2, 1) if size % b == 0)


def _scipy_csr(weight: Tensor, support: Support) -> Run:
    from scipy.sparse import csr_matrix

    own = csr_matrix(weight.numpy())
    return lambda x: torch.from_numpy((own @ x.numpy().T).T)


def _numba_csr(weight: Tensor, support: Support) -> Run:
    import numpy as np
    from scipy.sparse import csr_matrix

    own, out = csr_matrix(weight.numpy()), weight.shape[0]
    multiply, threads = _numba_kernel(), torch.get_num_threads()

    def run(x: Tensor) -> Tensor:
        y = np.zeros((out, x.shape[0]), dtype=np.float32)
        multiply(own.indptr, own.indices, own.data, np.ascontiguousarray(x.numpy().T), y, threads)
        return torch.from_numpy(y).T

    return run


@cache
def _numba_kernel() -> Callable[..., None]:
    import numba  # type: ignore[import-not-found]

    @numba.njit(parallel=True, fastmath=True)
    def product(ptr: Any, columns: Any, values: Any, x: Any, y: Any) -> None:
        for row in numba.prange(y.shape[0]):  # type: ignore[attr-defined]
            for i in range(ptr[row], ptr[row + 1]):
                for token in range(x.shape[1]):
                    y[row, token] += values[i] * x[columns[i], token]

    def multiply(ptr: Any, columns: Any, values: Any, x: Any, y: Any, threads: int) -> None:
        numba.set_num_threads(threads)
        product(ptr, columns, values, x, y)

    return multiply


def _onnx(weight: Tensor, support: Support) -> Run:
    return _session(_graph(weight))


def _onnx_int8(weight: Tensor, support: Support) -> Run:
    """The graph that ONNX Runtime's dynamic quantisation makes of a product: int8 weights by row, uint8 inputs."""
    import tempfile
    from pathlib import Path

    import onnx  # type: ignore[import-not-found]
    from onnxruntime.quantization import QuantType, quantize_dynamic  # type: ignore[import-not-found]

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "dense.onnx", Path(folder) / "int8.onnx"
        onnx.save(_graph(weight), str(source))
        logging.disable(logging.WARNING)  # it advises on preprocessing, of which one product needs none
        try:
            quantize_dynamic(str(source), str(target), weight_type=QuantType.QInt8, per_channel=True)
        finally:
            logging.disable(logging.NOTSET)
        return _session(onnx.load(str(target)))


def _graph(weight: Tensor) -> Any:
    from onnx import TensorProto, helper, numpy_helper  # type: ignore[import-not-found]

    out, width = weight.shape
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["rows", s]) for n, s in (("x", width), ("y", out))]
    held = numpy_helper.from_array(weight.T.contiguous().numpy(), "w")
    graph = helper.make_graph([node], "linear", values[:1], values[1:], [held])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _session(model: Any) -> Run:
    import onnxruntime as ort  # type: ignore[import-not-found]

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", "0"
    )  # idle threads would slow the next contender
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


for _rival in (
    Rival("torch dense fp32", _dense),
    Rival("torch dense bf16", _bf16, tolerance=0.02, bits=16),
    Rival("torch dense int8 (dynamic)", _dynamic_int8, tolerance=0.1, bits=8, least=2),
    Rival("torch dense int8 (weight only)", _int8pack, tolerance=0.05, bits=8, most=1),
    Rival("onnxruntime fp32", _onnx, package="onnxruntime"),
    Rival("onnxruntime int8 (dynamic)", _onnx_int8, package="onnxruntime", tolerance=0.25, bits=8),
    Rival("torch.sparse CSR", _torch_csr, sparse=True),
    Rival("torch.sparse BSR", _torch_bsr, sparse=True),
    Rival("scipy CSR", _scipy_csr, package="scipy", sparse=True),
    Rival("numba CSR", _numba_csr, package="numba", sparse=True),
):
    RIVALS.register(_rival.name)(_rival)
