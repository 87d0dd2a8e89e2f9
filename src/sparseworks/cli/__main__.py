"""`python -m sparseworks.cli`."""

from sparseworks.cli import main

main()
