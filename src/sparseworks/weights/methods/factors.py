"""Methods that write weights as factors (`sparseworks.factorise`)."""

from __future__ import annotations

from typing import Any

from sparseworks.core.form import Form
from sparseworks.core.method import Source
from sparseworks.scores import Magnitude
from sparseworks.weights.factors.lowrank import LowRank
from sparseworks.weights.factors.monarch import Monarch
from sparseworks.weights.methods.add import add

ECKART = Source("Eckart and Young", 1936, title="The approximation of one matrix by another of lower rank")
SVD_LLM = Source("Wang, Zheng, Wan and Zhang", 2024, "2403.07378", "SVD-LLM")
DAO = Source("Dao, Chen, Sohoni, Desai, Poli, Grogan, Liu, Rao, Rudra and Ré", 2022, "2204.00595", "Monarch")


def _add(name: str, form: Form, source: Source, claims: str, pattern: str = "tensor", **parts: Any) -> None:
    """Register a form; score and pattern stand for nothing unless the form selects."""
    add(name, Magnitude(), pattern, source, claims, form=form, **parts)


_add("svd", LowRank(whiten=False), ECKART, "The closest matrix of its rank; needs no data.")
_add("svd_llm", LowRank(), SVD_LLM, "The closest outputs of any matrix of its rank: what every other form has to beat.")
_add(
    "monarch",
    Monarch(),
    DAO,
    "Two batches of small products; trained from scratch or projected, as good as dense.",
    catalog=(181,),
)
