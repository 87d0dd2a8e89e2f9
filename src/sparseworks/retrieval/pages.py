"""What the pages of learned sparse retrievers say beside what all pages say."""

from __future__ import annotations

from typing import Any

from sparseworks.core.pages import particulars
from sparseworks.retrieval.encoders.method import TermMethod


@particulars.register
def _encoder(method: TermMethod) -> dict[str, Any]:
    needs = ["A masked or causal language model with its tokenizer, and pairs of queries and documents."]
    if method.loss.needs_teacher:
        needs.append("At least one teacher that scores queries with documents.")
    if method.query.importance.needs_idf or method.document.importance.needs_idf:
        needs.append("The idf of every term (`idf_of`).")
    options = ", idf=idf" if len(needs) > 1 and "idf" in needs[-1] else ""
    taught = ", teachers=(teacher,)" if method.loss.needs_teacher else ""
    return {
        "needs": needs,
        "call": f'encoder = sw.method("{method.name}").encoder(model, tokenizer{options})\n'
        f'train_retriever(encoder, "{method.name}", pairs{taught})',
    }
