"""The nouns of sparsity. Imports nothing else of the package and does no I/O."""
