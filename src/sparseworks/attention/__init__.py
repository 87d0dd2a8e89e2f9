"""Sparse attention and the KV cache."""
