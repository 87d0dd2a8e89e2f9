"""`dense`: torch's own product with the masked dense weight; the candidate that every other kernel has to beat."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sparseworks.exec.format import Packed, damaged, name_of
from sparseworks.exec.kernel import KERNELS, Call, Kernel


class DenseKernel(Kernel):
    """`F.linear` on the stored dense weight; any device."""

    format = "dense"
    dense_layer = True

    def __init__(self, name: str, value_dtype: torch.dtype):
        self.name, self.value_dtype = name, value_dtype

    def refuses(self, call: Call) -> str | None:
        """Only another input type than the stored one: `F.linear` does not mix them."""
        if call.dtype is not self.value_dtype:
            return f"its weight is {name_of(self.value_dtype)}, the input {name_of(call.dtype)}"
        return None

    def __call__(
        self, x: Float[Tensor, "rows in"], packed: Packed, bias: Float[Tensor, " out"] | None
    ) -> Float[Tensor, "rows out"]:
        """See `Kernel.__call__`.

        Raises:
            KernelError: the weight is missing, or has another shape or type than the form says.
        """
        weight = packed.parts.get("weight")
        if weight is None or weight.shape != packed.shape or weight.dtype is not self.value_dtype:
            raise damaged(packed, f"'weight' should be {name_of(self.value_dtype)} of shape {packed.shape}")
        return F.linear(x, weight, bias)


for _name, _dtype in (("dense", torch.float32), ("dense-bf16", torch.bfloat16), ("dense-fp16", torch.float16)):
    KERNELS.register(_name)(DenseKernel(_name, _dtype))
