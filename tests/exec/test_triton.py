"""The Triton kernels in the interpreter, but for those that select: `test_triton_selection.py` runs these beside it."""

from __future__ import annotations


def test_kernels_in_the_interpreter(interpreted):
    interpreted(left_out=("test_select.py", "test_topk.py"))
