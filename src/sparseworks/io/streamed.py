"""What a model pruned on disk says of itself: its folder `supports`, beside weights that any Hugging Face loader reads."""

from __future__ import annotations

from pathlib import Path

from sparseworks.core.errors import CheckpointError
from sparseworks.core.recipe import Recipe
from sparseworks.io.sparsity import Sparsity, site_facts
from sparseworks.stream.kept import RECIPE, SUPPORTS, read_supports


def is_streamed(folder: Path) -> bool:
    """Whether `prune_folder` wrote it."""
    return (folder / SUPPORTS / RECIPE).is_file()


def read_streamed(folder: Path) -> Sparsity:
    """Supports and recipe of a folder that `prune_folder` wrote.

    Raises:
        CheckpointError: a file is missing or damaged.
        RecipeError: the recipe names something this version does not know.
    """
    try:
        text = (folder / SUPPORTS / RECIPE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder / SUPPORTS / RECIPE} cannot be read: {error}.") from error
    supports, recipe = read_supports(folder / SUPPORTS), Recipe.from_yaml(text)
    facts = {
        "sites": {name: site_facts(support, None, name, recipe) for name, support in supports.items()},
        "meta": {},
        "plan": None,
        "packed": {},
        "tied": {},
    }
    return Sparsity(supports, "dense", facts, text)
