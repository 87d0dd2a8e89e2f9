"""Public conformance suites: what every score, pattern, statistic, allocator, repair, solver, form, format, kernel, mask and method of training must hold.

Each `check_*` takes the registered class, or an instance, and raises AssertionError with a sentence that says what broke.
`check_composition` runs one score through every registered pattern, allocator, repair, solver and format on a toy model.
"""

from __future__ import annotations

from sparseworks.testing.activations import check_activation_method
from sparseworks.testing.allocator import check_allocator
from sparseworks.testing.attention import check_attention_method
from sparseworks.testing.autoencoder_metric import check_metric
from sparseworks.testing.bound import check_bound
from sparseworks.testing.cache import check_cache_method
from sparseworks.testing.composition import check_composition
from sparseworks.testing.encoder import check_auxiliary_reaches, check_encoder
from sparseworks.testing.examples import example, gathered, random_weight
from sparseworks.testing.form import check_form
from sparseworks.testing.format import check_format
from sparseworks.testing.index import check_index
from sparseworks.testing.kernel import check_kernel
from sparseworks.testing.mask import check_mask
from sparseworks.testing.operator import check_operator
from sparseworks.testing.pattern import check_pattern
from sparseworks.testing.penalty import check_penalty
from sparseworks.testing.pursuit import check_pursuit
from sparseworks.testing.regime import check_training
from sparseworks.testing.repair import check_repair
from sparseworks.testing.score import check_score
from sparseworks.testing.solver import check_solver
from sparseworks.testing.stat import check_stat
from sparseworks.testing.term_slot import check_term_slot
from sparseworks.testing.trained import check_trained_attention

__all__ = [
    "check_activation_method",
    "check_allocator",
    "check_attention_method",
    "check_auxiliary_reaches",
    "check_bound",
    "check_cache_method",
    "check_composition",
    "check_encoder",
    "check_form",
    "check_format",
    "check_index",
    "check_kernel",
    "check_mask",
    "check_metric",
    "check_operator",
    "check_pattern",
    "check_penalty",
    "check_pursuit",
    "check_repair",
    "check_score",
    "check_solver",
    "check_stat",
    "check_term_slot",
    "check_trained_attention",
    "check_training",
    "example",
    "gathered",
    "random_weight",
]
