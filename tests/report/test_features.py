"""The page of features in a browser: a list that sorts and is searched, and what is shown of the latent that is chosen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sparseworks.core.errors import SparseworksError
from sparseworks.report.features import features_page, save_features

WORDS = ["the", " cat", "</script><b>", "\n", " sat"]


def _feature(i, density, **more):
    return {"id": i, "density": density, "mean": 1.5 * i, "max": 9.0 - i, "dead": density == 0} | more


DATA = {
    "model": "a <model>", "site": "layer.0", "method": "topk_sae", "tokens": 1234, "width": 3, "tokens_of": WORDS,
    "features": [
        _feature(0, 0.01, histogram=[[0.5, 3], [0.7071, 9]], examples=[[9.0, [0, 1, 2], [0, 100, 40]]], up=[[1, 2.5]], down=[[3, -1.5]]),
        _feature(1, 0.2, histogram=[[1.0, 4]], examples=[[8.0, [4, 0], [100, 0]], [3.0, [0, 4], [0, 38]]], up=[[4, 1.0]], down=[[0, -1.0]]),
        _feature(2, 0.0, histogram=[], examples=[]),
    ],
}  # fmt: skip


def _rows(dom):
    return [int(i) for i in re.findall(r'data-id="(\d+)"', dom)]


def _with(page: Path, script: str) -> Path:
    text = page.read_text(encoding="utf-8")
    new = page.with_name("acted.html")
    new.write_text(text.replace("</script>\n</body>", script + "</script>\n</body>"), encoding="utf-8")
    return new


def test_the_page_is_one_file_and_texts_cannot_leave_their_place(tmp_path: Path):
    page = features_page(DATA)
    assert "a &lt;model&gt;" in page and "</script><b>" not in page and "1 dead on 1,234 tokens" in page
    assert not re.search(r'(src|href)="https?:', page) and "@" not in page.split('id="data"')[0].split("</style>")[1]
    (tmp_path / "file").write_text("")
    with pytest.raises(SparseworksError, match="Cannot write"):
        save_features(DATA, tmp_path / "file" / "page.html")


def test_a_browser_lists_latents_and_shows_the_first(browse, tmp_path: Path):
    dom = browse(save_features(DATA, tmp_path / "page.html"), tmp_path / "profile", "--dump-dom")
    assert _rows(dom) == [1, 0, 2]  # by density
    assert "Latent 1</h2>" in dom and dom.count('class="text"') == 2 and dom.count("<rect") == 1
    shaded = re.findall(r'<span title="[^"]*" style="background[^"]*,0\.70\);">([^<]*)</span>', dom)
    assert shaded == [" sat"]
    assert 'aria-sort="descending"' in dom and "3 of 3 shown" in dom


def test_a_browser_sorts_searches_and_follows_a_click(browse, tmp_path: Path):
    page = save_features(DATA, tmp_path / "page.html")
    by_max = _with(page, "document.querySelector('[data-key=max]').click();")
    assert _rows(browse(by_max, tmp_path / "profile", "--dump-dom")) == [0, 1, 2]
    dead_first = _with(
        page, "document.querySelector('[data-key=dead]').click();document.querySelectorAll('#rows tr')[0].click();go();"
    )
    dom = browse(dead_first, tmp_path / "profile", "--dump-dom")
    assert _rows(dom) == [2, 0, 1] and "Dead: on for no token" in dom
    found = _with(page, "document.getElementById('find').value='CAT';document.getElementById('find').oninput();")
    assert _rows(browse(found, tmp_path / "profile", "--dump-dom")) == [0]
