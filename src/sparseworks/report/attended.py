"""What the heads of a model look at, as one HTML page: a map of each, with what a method keeps, and the figures in a table."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from sparseworks.report.page import write_page

_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Attention of {model}</title>
<style>:root{{color-scheme:light dark}}body{{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}}
.soft{{opacity:.7}}.maps{{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:.8rem}}
figure{{margin:0}}img{{width:100%;image-rendering:pixelated;border:1px solid #8884;border-radius:4px}}figcaption{{font-size:.8em}}
table{{border-collapse:collapse;font-variant-numeric:tabular-nums}}td,th{{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #8884}}
td.t,th.t{{text-align:left}}label{{margin-right:1rem}}tr.poor td{{color:#c0392b}}</style></head><body>
<h1>Attention of {model}</h1>
<p class="soft">{tokens} tokens, method <code>{method}</code>. A map shows which earlier tokens (left to right) each part of the text
(top to bottom) attends to, brighter is more; orange is what the method computes. Recall is the attention mass on what is computed,
the mean over the tokens; best is what as many units could hold at most.</p>
<p><b id="density">{density:.1%}</b> of the pairs computed, <b id="recall">{recall:.1%}</b> of the mass kept on average,
<b>{worst:.1%}</b> in the worst head (layer {worst_layer}, head {worst_head}).</p>
<p><label><input type="checkbox" id="overlay" checked> show what is computed</label>
<label>layer <select id="layer"><option value="">all</option>{options}</select></label></p>
<div class="maps">{maps}</div>
<h2>Figures</h2><table id="heads"><thead><tr><th>layer</th><th>head</th><th>density</th><th>recall</th><th>best</th><th class="t">nearest static pattern</th>
<th>its recall</th></tr></thead><tbody>{rows}</tbody></table>
<script>
const pick=()=>{{const l=document.getElementById('layer').value,o=document.getElementById('overlay').checked;
document.querySelectorAll('[data-layer]').forEach(e=>e.hidden=l!==''&&e.dataset.layer!==l);
document.querySelectorAll('img[data-plain]').forEach(i=>i.src=o?i.dataset.kept:i.dataset.plain)}};
document.getElementById('layer').onchange=pick;document.getElementById('overlay').onchange=pick;
</script></body></html>
"""


def save_attention(
    model: str, data: Mapping[str, Any], maps: Mapping[int, Any], kept: Mapping[int, Any], path: Path | str
) -> Path:
    """Write the page of an explanation (temporary file, then rename).

    Args:
        data: as `Explanation.to_data` gives it.
        maps, kept: layer -> (heads, cells, cells): attention mass, and the share computed.

    Raises:
        SparseworksError: the file cannot be written.
    """
    heads: Sequence[Mapping[str, Any]] = data["heads"]
    worst = min(heads, key=lambda h: h["recall"])
    pictures = "".join(_figure(h, maps[h["layer"]][h["head"]], kept[h["layer"]][h["head"]]) for h in heads)
    return write_page(
        path,
        _PAGE.format(
            model=escape(model), method=escape(data["method"]), tokens=data["tokens"], maps=pictures,
            density=_mean(heads, "density"), recall=_mean(heads, "recall"), worst=worst["recall"],
            worst_layer=worst["layer"], worst_head=worst["head"], rows="".join(map(_row, heads)),
            options="".join(f'<option value="{n}">{n}</option>' for n in sorted(maps)),
        ),
    )  # fmt: skip


def _mean(heads: Sequence[Mapping[str, Any]], what: str) -> float:
    return sum(h[what] for h in heads) / len(heads)


def _row(h: Mapping[str, Any]) -> str:
    poor = ' class="poor"' if h["recall"] < 0.8 * h["best"] else ""
    cells = [h["layer"], h["head"], f"{h['density']:.1%}", f"{h['recall']:.1%}", f"{h['best']:.1%}"]
    text = f'<td class="t">{escape(h["pattern"])}</td><td>{h["pattern_recall"]:.1%}</td>'
    return f'<tr data-layer="{h["layer"]}"{poor}>{"".join(f"<td>{c}</td>" for c in cells)}{text}</tr>'


def _figure(h: Mapping[str, Any], mass: Any, kept: Any) -> str:
    plain, over = (_picture(mass, kept if shown else None) for shown in (False, True))
    said = f"layer {h['layer']}, head {h['head']}: {h['recall']:.0%} of the mass in {h['density']:.0%}; {h['pattern']}"
    return (
        f'<figure data-layer="{h["layer"]}"><img src="{over}" data-plain="{plain}" data-kept="{over}" alt="{escape(said)}">'
        f"<figcaption>{escape(said)}</figcaption></figure>"
    )


def _picture(mass: Any, kept: Any) -> str:
    """A PNG as a data address: mass on a root scale, each row by its largest cell; computed cells tinted."""
    import numpy as np
    from matplotlib.image import imsave

    values = np.asarray(mass, dtype=np.float64)
    values = np.sqrt(values / np.maximum(values.max(axis=-1, keepdims=True), 1e-12))
    rgb = np.repeat(values[..., None], 3, axis=-1)
    if kept is not None:
        tint = 0.45 * np.clip(np.asarray(kept, dtype=np.float64), 0, 1)[..., None]
        rgb = rgb * (1 - tint) + np.array([0.88, 0.48, 0.0]) * tint
    out = io.BytesIO()
    imsave(out, np.clip(rgb, 0, 1), format="png")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
