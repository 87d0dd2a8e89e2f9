"""The page of a model's attention in a browser: maps are shown, a layer can be picked."""

import re
from pathlib import Path

import numpy as np
import pytest

from sparseworks.core.errors import SparseworksError
from sparseworks.report.attended import save_attention

DATA = {
    "method": "oracle <blocks>", "tokens": 9,
    "heads": [
        {"layer": n, "head": 0, "density": 0.25, "recall": 0.5 + n / 4, "best": 0.9, "pattern": "local", "pattern_recall": 0.7}
        for n in range(2)
    ],
}  # fmt: skip
MAPS = {n: np.random.default_rng(n).random((1, 9, 9)) for n in range(2)}


def test_text_is_escaped_and_a_failed_write_leaves_nothing(tmp_path: Path):
    page = save_attention("a <model>", DATA, MAPS, MAPS, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "a &lt;model&gt;" in page and "oracle &lt;blocks&gt;" in page
    assert "62.5%" in page and "layer 0, head 0" in page
    (tmp_path / "file").write_text("")
    with pytest.raises(SparseworksError, match="Cannot write"):
        save_attention("m", DATA, MAPS, MAPS, tmp_path / "file" / "page.html")


def test_a_browser_shows_the_maps(browse, tmp_path: Path):
    page = save_attention("m", DATA, MAPS, MAPS, tmp_path / "page.html")
    dom = browse(page, tmp_path / "profile", "--dump-dom")
    assert dom.count("data:image/png") == 2 * 3 and re.search(r'id="recall">62\.5%', dom)
    picked = page.read_text(encoding="utf-8").replace(
        "</script>", "document.getElementById('layer').value='1';pick();</script>"
    )
    page.write_text(picked, encoding="utf-8")
    dom = browse(page, tmp_path / "profile", "--dump-dom")
    assert len(re.findall(r'<figure data-layer="0" hidden', dom)) == 1 and '<figure data-layer="1">' in dom
