"""`sparseworks features`: what the latents of a sparse autoencoder respond to, as a page to browse."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from sparseworks.cli.commands import Answer, as_table
from sparseworks.cli.machine import set_threads
from sparseworks.cli.options import Json, Model, Seed, Threads, starting
from sparseworks.core.errors import CheckpointError, RecipeError

# Linear layers that write into the residual stream: of their inputs the effect on the logits goes through their weight.
_WRITES = ("o_proj", "out_proj", "c_proj", "down_proj", "wo", "w2", "fc2", "dense", "dense_4h_to_h", "lin2", "out_lin")


def autoencoder_names() -> list[str]:
    """For completion: methods that train autoencoders."""
    from sparseworks.codes.autoencoders import AutoencoderMethod

    return [m.name for m in AutoencoderMethod.all()]


Where = Annotated[
    str,
    typer.Option(
        help="Where: NAME of a module for its output, NAME:in for its input; `sparseworks inspect` lists names.",
        show_default=False,
    ),
]
Texts = Annotated[
    Path,
    typer.Option(
        help="Text to look at: .txt, .jsonl (field `text`) or .gz of them.",
        exists=True,
        dir_okay=False,
        show_default=False,
    ),
]
Folder = Annotated[
    Path | None,
    typer.Option(
        help="Folder of an autoencoder in SAELens's format; with --train, where it is written.",
        file_okay=False,
        show_default=False,
    ),
]
Train = Annotated[bool, typer.Option("--train", help="Train an autoencoder on these texts first.")]
Chosen = Annotated[
    str,
    typer.Option(
        help="With --train: which, see `sparseworks methods --family codes`.",
        autocompletion=starting(autoencoder_names),
    ),
]
Width = Annotated[
    int | None,
    typer.Option(help="With --train: latents; default: four times the features.", min=1, show_default=False),
]
Kept = Annotated[
    int | None,
    typer.Option(
        "-k",
        help="With --train: latents a token (k, or the target L0); default: the method's.",
        min=1,
        show_default=False,
    ),
]
Steps = Annotated[int, typer.Option(help="With --train: batches of 1024 tokens.", min=1)]
Length = Annotated[int, typer.Option(help="Tokens of a row of text.", min=2)]
Examples = Annotated[int, typer.Option(help="Examples of each latent, each from another row of text.", min=1)]
Around = Annotated[int, typer.Option(help="Tokens shown on either side.", min=0)]
Shown = Annotated[
    int,
    typer.Option(
        "--features", help="Latents with examples: those with the largest sum of activations. All are listed.", min=1
    ),
]
Page = Annotated[Path, typer.Option(help="The page.", dir_okay=False)]


def features(
    model: Model,
    site: Where,
    texts: Texts,
    autoencoder: Folder = None,
    train: Train = False,
    method: Chosen = "topk_sae",
    width: Width = None,
    k: Kept = None,
    steps: Steps = 1000,
    length: Length = 128,
    examples: Examples = 8,
    around: Around = 12,
    shown: Shown = 4096,
    out: Page = Path("features.html"),
    seed: Seed = 0,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Show what the latents of a sparse autoencoder respond to: one HTML file to sort, search and browse, without network.

    For every latent: density, mean and largest activation, whether it is dead; the texts on which it is largest, tokens shaded
    by its activation; the histogram of its activations; and, where the site is in the residual stream of a model with an output
    embedding W_U, the tokens whose logits W_U d_i its decoder row d_i raises and lowers most (the last norm is left out). The text
    is read once and only top examples are kept. Give --autoencoder, --train, or both.

    Examples:

    `sparseworks features sparseworks/tiny-lm --site model.layers.3 --texts README.md --train -k 16 --steps 300`

    `sparseworks features sparseworks/tiny-lm --site model.layers.3 --texts corpus.jsonl --train --autoencoder out/sae`

    `sparseworks features ./my-llama --site model.layers.12 --texts corpus.jsonl --autoencoder out/sae --json`
    """
    from sparseworks.cli.app import show

    if autoencoder is None and not train:
        raise typer.BadParameter("give a folder, or --train, or both.", param_hint="--autoencoder")
    wish = {"method": method, "width": width, "k": k, "steps": steps, "seed": seed}
    how = {"length": length, "examples": examples, "around": around, "features": shown}
    show(run_features(model, site, texts, autoencoder, wish if train else None, how, out, threads), as_json)


def run_features(
    model: str,
    site: str,
    texts: Path,
    folder: Path | None,
    train: dict[str, Any] | None,
    how: dict[str, int],
    out: Path,
    threads: int | None,
) -> Answer:
    """The page, and figures of the latents; `train` says how, None: read the autoencoder from its folder.

    Raises:
        CheckpointError: the folder holds no autoencoder, or with `train` holds something already.
        ShapeError: the autoencoder is not of this site.
    """
    import sparseworks as sw
    from sparseworks.codes.autoencoders.convert import load_saelens, save_saelens
    from sparseworks.codes.autoencoders.features import collect_features
    from sparseworks.codes.autoencoders.record import token_rows
    from sparseworks.evaluate.text import read_texts
    from sparseworks.io import load_tokenizer
    from sparseworks.report.features import save_features

    set_threads(threads)
    if train is not None and folder is not None and folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} is not empty: leave --train out to use what it holds, or name another folder.")
    tokenizer, loaded = load_tokenizer(model), sw.load(model).eval()
    batches = token_rows(read_texts(texts), tokenizer, how["length"])
    sae = load_saelens(folder) if train is None and folder is not None else _trained(loaded, batches, site, train or {})
    found = collect_features(loaded, batches, site, sae, examples=how["examples"], around=how["around"])
    data = {"model": model, "site": site, "method": sae.method.name} | _listed(
        found, tokenizer, _effects(loaded, site, sae), how["features"]
    )
    page = save_features(data, out)
    if train is not None and folder is not None:  # after the page: not every method has a form in their format
        save_saelens(sae, folder)
    rows = [
        [str(f["id"]), f"{f['density']:.3%}", f"{f['mean']:.3g}", " ".join(_words(data, f))]
        for f in sorted(data["features"], key=lambda f: -f["density"])[:10]
    ]
    dead = sum(f["dead"] for f in data["features"])
    title = f"{found.width} latents, {dead} dead, {float(found.fired.sum()) / found.tokens:.1f} on a token; {found.tokens} tokens; page in {page}"
    plain = {k: v for k, v in data.items() if k not in ("features", "tokens_of")} | {"dead": dead, "page": str(page)}
    figures = [{k: f[k] for k in ("id", "density", "mean", "max", "dead")} for f in data["features"]]
    return plain | {"features": figures}, as_table(title, ["latent", "density", "mean", "largest on"], rows)


def _trained(model: Any, batches: list[Any], site: str, wish: dict[str, Any]) -> Any:
    """An autoencoder of the site's activations, in its inference form."""
    from sparseworks.codes.autoencoders import ActivationStream, AutoencoderMethod, train_autoencoder
    from sparseworks.codes.autoencoders.rules import Bilinear
    from sparseworks.codes.autoencoders.stream import passes

    method = AutoencoderMethod.of(wish["method"])
    if isinstance(method.latents, Bilinear):
        raise RecipeError(f"Latents of {method.name!r} have no decoder row and are on everywhere: choose a sparse one.")
    if method.target is not None and not method.target.same:
        raise RecipeError(f"{method.name!r} has another target than its site: train it with `sw.train_autoencoder`.")
    if wish["k"] is not None:
        method = method.with_(**{"k" if hasattr(method.latents, "k") else "l0": wish["k"]})
    with tempfile.TemporaryDirectory() as folder:
        stream = ActivationStream.record(model, batches, site, folder)
        width = wish["width"] or 4 * stream.batch(0, 1, 0).x.shape[1]
        sae = train_autoencoder(stream, method, width=width, steps=wish["steps"], seed=wish["seed"])
        return sae.export(passes(stream, 1024, min(32, -(-stream.tokens // 1024)))) if hasattr(sae, "export") else sae


def _effects(model: Any, site: str, sae: Any) -> Any:
    """Top and bottom tokens of W_U d_i, or None where a site's vectors are not in the space of the output embedding."""
    from sparseworks.codes.autoencoders.features import logit_effects

    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None:
        return None
    name, _, side = site.partition(":")
    module, atoms = model.get_submodule(name), sae.W_dec.detach().float()
    linear = hasattr(module, "in_features") or type(module).__name__ == "Conv1D"
    if linear and name.rpartition(".")[2] not in _WRITES:
        return None
    if linear and side == "in":
        weight = module.weight.detach().float()
        atoms = atoms @ (weight.T if hasattr(module, "in_features") else weight)
    readout = head.weight.detach()
    return logit_effects(atoms, readout) if atoms.shape[1] == readout.shape[1] else None


def _listed(found: Any, tokenizer: Any, effects: Any, most: int) -> dict[str, Any]:
    """The page's data: every latent's figures, and more of those with the largest sums."""
    from sparseworks.codes.autoencoders.features import bin_edges
    from sparseworks.core.select import top

    density, mean, edges = found.density.tolist(), found.mean.tolist(), bin_edges()
    detailed = top(found.sums.unsqueeze(0), min(most, found.width))[0].tolist()
    words, listed = _Words(tokenizer), []
    by: list[list[int]] = [[] for _ in range(found.width)]
    for place, latent in enumerate(found.examples.latents.tolist()):
        by[latent].append(place)
    for i in range(found.width):
        feature: dict[str, Any] = {
            "id": i,
            "density": _short(density[i]),
            "mean": _short(mean[i]),
            "max": _short(float(found.largest[i])),
        }
        feature["dead"] = not density[i]
        if detailed[i]:
            feature["histogram"] = _bars(found.histogram[i].tolist(), edges)
            feature["examples"] = [_example(found.examples, place, words) for place in by[i]]
            for name, side in zip(("up", "down"), effects or (), strict=False):
                feature[name] = [
                    [words(t), _short(v)] for t, v in zip(side[0][i].tolist(), side[1][i].tolist(), strict=True)
                ]
        listed.append(feature)
    return {"tokens": found.tokens, "width": found.width, "tokens_of": words.texts, "features": listed}


def _bars(counts: list[int], edges: Any) -> list[list[float]]:
    on = [i for i, n in enumerate(counts) if n]
    return [[_short(edges[i]), counts[i]] for i in range(on[0], on[-1] + 1)] if on else []


def _example(examples: Any, place: int, words: _Words) -> list[Any]:
    peak = float(examples.peaks[place])
    inside = [
        (t, v) for t, v in zip(examples.tokens[place].tolist(), examples.values[place].tolist(), strict=True) if t >= 0
    ]
    return [_short(peak), [words(t) for t, _ in inside], [round(100 * v / peak) for _, v in inside]]


class _Words:
    """Token ids as places in a list of their texts."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.texts, self._places = tokenizer, [], {}

    def __call__(self, token: int) -> int:
        if token not in self._places:
            self._places[token] = len(self.texts)
            self.texts.append(self.tokenizer.decode([token]))
        return self._places[token]


def _words(data: dict[str, Any], feature: dict[str, Any]) -> list[str]:
    """The tokens at which a latent's examples are largest, for the terminal."""
    peaks = [e[1][max(range(len(e[2])), key=e[2].__getitem__)] for e in feature.get("examples", ())]
    texts = dict.fromkeys(re.sub(r"\s+", " ", data["tokens_of"][t]).strip() for t in peaks)
    return [t for t in texts if t][:6]


def _short(x: float) -> float:
    return float(f"{x:.4g}")
