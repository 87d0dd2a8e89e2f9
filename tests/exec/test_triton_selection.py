"""The Triton kernels that select, in the interpreter: they take half of its time, so they have a file, and with it a worker, of their own."""

from __future__ import annotations


def test_selection_in_the_interpreter(interpreted):
    interpreted("test_select.py", "test_topk.py")
