from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from sparseworks.core.errors import SparseworksError
from sparseworks.report import Report


def test_page_needs_no_network_and_escapes_text(sample):
    html = Report(sample).html()
    assert not re.search(r'(src|href)="https?:', html)
    assert "<script>alert(1)" not in html
    assert html.count("<svg") == 4


def test_pictures_follow_the_page_colours(sample):
    html = Report(sample).html()
    svg = html[html.index("<svg") : html.index("</svg>")]
    assert "currentColor" in svg
    assert "#000000" not in svg


def test_points_of_the_frontier_are_letters_that_a_table_explains(sample):
    html = Report(sample).html()
    rows = re.findall(r"<td>([A-Z])</td><td>([^<]*)</td>", html)
    assert rows == [("A", "dense"), ("B", "30 %")]
    assert '<tr class="chosen"><td>B' in html


def test_what_the_figure_stands_on_is_shown(sample):
    assert "stands on" not in Report(sample).html()
    sample["record"] = {
        "task": "<retrieval>", "start": "post-training", "dynamic": False, "epochs": 0.5, "examples": 1280, "control": None,
        "inference_flops": 2e6, "densities": {"a": 0.5}, "data": "128 calibration examples",
    }  # fmt: skip
    html = Report(sample).html()
    table = html[html.index('<table id="record">') :]
    rows = dict(re.findall(r"<tr><th>([^<]*)</th><td[^>]*>([^<]*)</td></tr>", table[: table.index("</table>")]))
    assert rows == {
        "task": "&lt;retrieval&gt;", "start": "post-training", "dynamic": "no", "epochs": "0.5", "examples": "1,280",
        "inference flops": "2,000,000", "data": "128 calibration examples",
    }  # fmt: skip


def test_size_on_disk_is_shown_once_it_is_known(sample):
    assert "on disk" not in Report(sample).html()
    sample["bytes"] |= {"disk_dense": 90_000_000, "disk_sparse": 33_000_000}
    assert "on disk 33.00 MB" in Report(sample).html()


def test_a_result_without_recovery_or_kernels_renders(sample):
    data = sample
    data["recovery"], data["frontier"] = None, []
    for site in data["sites"]:
        site.update(us=None, dense_us=None, ceiling_us=None, error=None)
    assert "Recovery</h2>" not in Report(data).html()


def test_failed_write_leaves_nothing(sample, tmp_path: Path):
    target = tmp_path / "file"
    target.write_text("not a folder")
    with pytest.raises(SparseworksError, match="Cannot write the report"):
        Report(sample).save(target / "report.html")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_page(browse, sample, tmp_path: Path, scheme: str):
    page = Report(sample).save(tmp_path / "report.html")
    flags = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    dom = browse(page, tmp_path / "profile", "--dump-dom", *flags)
    assert re.search(r'id="ratio">2\.22×', dom)
    assert dom.count("<tr>") > 10
    shot = tmp_path / f"{scheme}.png"
    browse(page, tmp_path / "profile", f"--screenshot={shot}", "--window-size=1000,1400", *flags)
    assert shot.stat().st_size > 20_000
    corner = _first_pixel(shot)
    assert (sum(corner) > 600) if scheme == "light" else (sum(corner) < 150)


def _first_pixel(png: Path) -> tuple[int, int, int]:
    from matplotlib.image import imread

    r, g, b = (imread(png)[2, 2, :3] * 255).astype(int)
    return int(r), int(g), int(b)
