"""Contextual sparsity of hidden states, and dynamic networks."""

from sparseworks.activations.trained import methods as _methods  # noqa: F401  registers them
