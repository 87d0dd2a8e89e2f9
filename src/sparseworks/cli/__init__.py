"""The `sparseworks` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; errors of the library become one line and exit code 1."""
    from sparseworks.cli.app import app
    from sparseworks.core.errors import SparseworksError

    try:
        app()
    except SparseworksError as error:
        print(f"sparseworks: {error}", file=sys.stderr)
        sys.exit(1)
