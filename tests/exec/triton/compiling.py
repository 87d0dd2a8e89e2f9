"""Compiles every kernel for sm_90a (H100, H200) without a GPU and prints, as JSON lines, what came out of it.

Run outside the interpreter. The functions of the library are called on CPU tensors, but a launch only compiles: so the types and
constants are exactly those of a real call. Whether the code is right is for the interpreter to say, whether it is fast for a GPU.
"""

from __future__ import annotations

import json
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sparseworks.exec.triton import attention, bitmap, blocks, columns, csr, decode, launch, select

HOPPER = GPUTarget("cuda", 90, 32)
SHORT = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.uint8: "u8",
    torch.int16: "i16",
}


def compile_only(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    types: dict[str, str] = {}
    constants: dict[str, Any] = {}
    hints: dict[tuple[int], list[list[Any]]] = {}
    for i, (name, given) in enumerate(zip(kernel.arg_names, arguments, strict=False)):
        aligned = isinstance(given, torch.Tensor) or (isinstance(given, int) and given % 16 == 0)
        if aligned:
            hints[(i,)] = [["tt.divisibility", 16]]
        if isinstance(given, torch.Tensor):
            types[name] = f"*{SHORT[given.dtype]}"
        elif given == 1:  # Triton makes a constant of it
            types[name], constants[name] = "constexpr", 1
        else:
            types[name] = "fp32" if isinstance(given, float) else "i32"
    for name in set(options) & set(kernel.arg_names):
        types[name], constants[name] = "constexpr", options[name]
    source = ASTSource(kernel, {n: types[n] for n in kernel.arg_names}, constants, hints)
    made = triton.compile(source, target=HOPPER, options={n: v for n, v in options.items() if n not in types})
    ptx = made.asm["ptx"]
    facts = {"tensor cores": "wgmma.mma_async" in ptx or "mma.sync" in ptx, "shared": made.metadata.shared}
    print(json.dumps({"kernel": f"{kernel.__module__.rpartition('.')[2]}.{kernel.__name__}", **facts}), flush=True)


def main() -> None:
    launch.INTERPRETED = True  # lets tensors of the CPU pass; the kernels are made already
    for module in (attention, bitmap, blocks, columns, csr, decode, select):
        module.run = compile_only

    def half(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.bfloat16)

    def whole(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int32)

    for rows in (1, 32):
        bitmap.bitmap_linear(half(rows, 256), torch.zeros(64, 32, dtype=torch.uint8), half(64), whole(65), half(64))
    for size, dtype in ((64, torch.bfloat16), (128, torch.float32), (16, torch.bfloat16)):
        n = 256 // size
        layout = blocks.Layout.of((256, 256), size, torch.arange(n + 1), torch.arange(n))
        x, kept = torch.zeros(256, 256, dtype=dtype), torch.zeros(n, size, size, dtype=dtype)
        blocks.block_linear(x, kept, layout)
        blocks.block_linear_dw(x, x, layout)
    q, k = half(1, 4, 256, 128), half(1, 2, 256, 128)
    attention.block_attention(q, k, k, torch.arange(5), torch.arange(4), 64, True)
    decode.page_attention(q[:, :, 0].contiguous(), k, k, whole(1, 2, 8), 16)
    bounds = decode.page_bounds(k, 16)
    decode.page_scores(q[:, :, 0].contiguous(), *bounds)
    for rows in (1, 2):
        columns.column_linear(half(rows, 2048), half(2048, 256))
    for rows in (1, 5):
        csr.csr_linear(half(rows, 256), torch.zeros(64, dtype=torch.int16), half(64), whole(9), half(8))
    select.largest(half(64, 2048), 32)


if __name__ == "__main__":
    main()
