"""The latents of an autoencoder as one HTML page: a list to sort and search, and for each latent examples, histogram and effect on the logits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from sparseworks.report.page import write_page


def save_features(data: Mapping[str, Any], path: Path | str) -> Path:
    """Write the page (temporary file, then rename).

    Args:
        data: model, site, method, tokens, width; `tokens_of`: the strings that examples name by index; `features`: one mapping a latent with
            id, density, mean, max, dead, and, where they are known, `histogram` ([[lower edge, count]]), `examples` ([[peak, [token],
            [activation in percent of the peak]]]), `up` and `down` ([[token, logit]]).

    Raises:
        SparseworksError: the file cannot be written.
    """
    return write_page(path, features_page(data))


def features_page(data: Mapping[str, Any]) -> str:
    """The page's text."""
    features = data["features"]
    dead = sum(1 for f in features if f["dead"])
    said = (
        f"{data['width']:,} latents ({data['method']}), {dead:,} dead on {data['tokens']:,} tokens; site {data['site']}"
    )
    page = resources.files("sparseworks.report").joinpath("features.html").read_text(encoding="utf-8")
    # Inside a script nothing may look like a tag; data come last, so that they are not searched for marks.
    embedded = json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    embedded = embedded.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    head, tail = page.replace("@MODEL@", escape(str(data["model"]))).replace("@SAID@", escape(said)).split("@DATA@")
    return head + embedded + tail
