"""What the pages of methods of codes say beside what all pages say."""

from __future__ import annotations

from typing import Any

from sparseworks.codes.method import CodeMethod
from sparseworks.core.pages import particulars


@particulars.register
def _coder(method: CodeMethod) -> dict[str, Any]:
    return {
        "needs": ["Signals, one a row, and a dictionary with one atom a row (or a linear map)."],
        "call": f'sw.code(signals, dictionary, "{method.name}").codes()',
    }
