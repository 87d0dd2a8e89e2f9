"""Options of `sparseworks compress` alone: what is to be made of which model, and how sparse, fast and good it is to be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparseworks.cli.options import method_names, noun_names, share, starting

ModelOrDemo = Annotated[
    str | None,
    typer.Argument(
        help="Model to compress; default: the embedded demonstration on all-MiniLM-L6-v2.", show_default=False
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Folder for model/, report.html and result.json.  [default: out/compressed; out/demo without MODEL]",
        file_okay=False,
        show_default=False,
    ),
]
MethodName = Annotated[
    str | None,
    typer.Option(
        help="Method name, see `sparseworks methods`.  [default: sparsegpt]",
        show_default=False,
        autocompletion=starting(method_names),
    ),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option(help="Recipe file (YAML) instead of --method.", exists=True, dir_okay=False, show_default=False),
]
Density = Annotated[float | None, share("Share of the weights to keep, 0 to 1.")]
PatternText = Annotated[
    str | None, typer.Option(help="row, tensor, global, 2:4, 16x2:4, block:4x1, fan-in ...", show_default=False)
]
Allocate = Annotated[
    str | None,
    typer.Option(
        help="uniform, erk, owl, dp, global ...",
        show_default=False,
        autocompletion=starting(lambda: noun_names("allocate")),
    ),
]
Repair = Annotated[
    str | None,
    typer.Option(
        help="none, bias, least_squares.",
        show_default=False,
        autocompletion=starting(lambda: noun_names("repair")),
    ),
]
Recover = Annotated[
    float | None,
    typer.Option(
        help="Minutes of fine-tuning with the support fixed, the dense model as teacher.  [default: 0, none]",
        min=0.0,
        show_default=False,
    ),
]
Speedup = Annotated[
    float | None,
    typer.Option(help="Search for a model this many times faster than dense.", min=1.0, show_default=False),
]
MaxDrop = Annotated[
    str | None, typer.Option(help="Largest relative loss of quality, e.g. `1%` or `0.01`.", show_default=False)
]
Layout = Annotated[
    str,
    typer.Option(
        help="How weights are saved: bitmask (kept values), packed (as the kernels read them) or dense.",
        autocompletion=starting(lambda: ["bitmask", "packed", "dense"]),
    ),
]
Skip = Annotated[
    list[str] | None, typer.Option(help="Sites that stay dense (shell pattern; repeatable).", show_default=False)
]
