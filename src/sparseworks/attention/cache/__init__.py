"""The KV cache: a ragged store, the cache of transformers over it, methods of eviction."""
