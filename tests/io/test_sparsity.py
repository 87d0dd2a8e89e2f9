from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import sparseworks as sw
from sparseworks.core.errors import CheckpointError, RecipeError
from sparseworks.core.recipe import Recipe
from sparseworks.io import read, save, sparsity_of
from sparseworks.io.sparsity import SCHEMA, facts_text, is_saved, read_facts


@pytest.fixture
def saved(tmp_path, bert):
    return save(tmp_path / "out", bert.model, bert.supports, recipe=Recipe.of(sw.method("magnitude", density=0.3)))


def edit(path, change) -> None:
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))


def rewrite(folder, change) -> None:
    """Change the facts and bring the checksum up to date, as a program would."""
    facts = read_facts(folder)
    change(facts)
    (folder / "sparsity.json").write_text(facts_text({k: v for k, v in facts.items() if k != "schema"}))


def flip(path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


DAMAGE = {
    "values truncated": (lambda f: truncate(f / "model.safetensors"), r"model\.safetensors has \d+ bytes, not \d+"),
    "values flipped": (lambda f: flip(f / "model.safetensors"), r"model\.safetensors is damaged or was edited"),
    "values missing": (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors is missing"),
    "supports truncated": (lambda f: truncate(f / "supports.safetensors"), r"supports\.safetensors has \d+ bytes"),
    "supports flipped": (lambda f: flip(f / "supports.safetensors"), r"supports\.safetensors is damaged"),
    "recipe edited": (lambda f: flip(f / "recipe.yaml"), r"recipe\.yaml is damaged or was edited"),
    "recipe missing": (lambda f: (f / "recipe.yaml").unlink(), r"recipe\.yaml is missing"),
    "configuration edited": (lambda f: flip(f / "config.json"), r"config\.json is damaged or was edited"),
    "facts missing": (lambda f: (f / "sparsity.json").unlink(), r"sparsity\.json is missing: .* half written"),
    "facts truncated": (lambda f: truncate(f / "sparsity.json"), r"sparsity\.json is truncated or damaged"),
    "facts edited": (lambda f: edit(f / "sparsity.json", lambda d: d.update(layout="dense")), r"sparsity\.json is damaged or was edited"),
    "facts of another kind": (lambda f: (f / "sparsity.json").write_text("[1]"), r"sparsity\.json is truncated or damaged"),
    "newer schema": (lambda f: edit(f / "sparsity.json", lambda d: d.update(schema=SCHEMA + 1)), "schema 2, this version reads up to 1: upgrade"),
    "schema of another kind": (lambda f: edit(f / "sparsity.json", lambda d: d.update(schema="1")), r"sparsity\.json is damaged"),
}  # fmt: skip


def truncate(path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_folder_is_refused_in_one_sentence_naming_the_file(saved, kind):
    damage, words = DAMAGE[kind]
    damage(saved)
    with pytest.raises(CheckpointError, match=words) as caught:
        sw.load(saved)
    assert "\n" not in str(caught.value)


def test_a_whole_file_of_another_folder_is_refused(saved, tmp_path, llama):
    other = save(tmp_path / "other", llama.model, llama.supports)
    shutil.copy(other / "supports.safetensors", saved / "supports.safetensors")
    with pytest.raises(CheckpointError, match=r"supports\.safetensors"):
        sw.load(saved)
    with pytest.raises(CheckpointError, match="name different sites"):
        read(saved, verify=False)


def test_a_support_that_is_not_the_recorded_one_is_refused_without_checksums(saved):
    path = saved / "supports.safetensors"
    bits = load_file(path)
    name = sorted(bits)[0]
    bits[name] = bits[name] ^ 1
    save_file(bits, path)
    with pytest.raises(CheckpointError, match=f"the support of '{name}' is not the one recorded"):
        read(saved, verify=False)


def test_a_support_of_another_size_is_refused_without_checksums(saved):
    path = saved / "supports.safetensors"
    bits = load_file(path)
    name = sorted(bits)[0]
    save_file(bits | {name: torch.cat([bits[name], bits[name]])}, path)
    with pytest.raises(CheckpointError, match=f"the support of '{name}' is damaged"):
        read(saved, verify=False)


@pytest.mark.parametrize("key", ["files", "sites", "layout"])
def test_facts_that_lack_an_entry_are_refused(saved, key):
    rewrite(saved, lambda d: d.pop(key))
    with pytest.raises(CheckpointError, match=r"sparsity\.json lacks or misstates an entry"):
        read(saved)


def test_unverified_reading_does_not_hash(saved):
    flip(saved / "recipe.yaml")
    read(saved, verify=False)


def test_files_a_user_adds_are_ignored(saved):
    (saved / "README.md").write_text("mine")
    sw.load(saved)


def test_a_recipe_of_unknown_methods_does_not_stop_the_model(saved, bert):
    text = (saved / "recipe.yaml").read_text().replace("name: magnitude", "name: magnitude\n    nonsense: 1")
    save(
        saved,
        bert.model,
        bert.supports,
        recipe=type("Text", (), {"to_yaml": lambda _: text, "method_for": lambda *_: None, "seed": 0})(),
        overwrite=True,
    )  # type: ignore[arg-type]
    back = sw.load(saved)
    with pytest.raises(RecipeError):
        _ = back.sparsity.recipe


def test_sparsity_travels_with_copies_of_the_model(saved, bert):
    back = sw.load(saved)
    assert sparsity_of(copy.deepcopy(back)) is back.sparsity
    assert sparsity_of(bert.model) is None


def test_is_saved_knows_half_written_folders(saved, tmp_path):
    assert is_saved(saved)
    (saved / "sparsity.json").unlink()
    assert is_saved(saved)
    assert not is_saved(tmp_path)
