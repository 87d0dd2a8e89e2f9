"""Contextual sparsity of hidden states, and dynamic networks."""
