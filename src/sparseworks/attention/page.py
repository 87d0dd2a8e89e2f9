"""What the pages of methods of attention say beside what all pages say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sparseworks.attention.cache.method import CacheMethod
from sparseworks.attention.method import AttentionMethod
from sparseworks.attention.trained.method import TrainedAttention
from sparseworks.core.pages import particulars


@particulars.register
def _attention(method: AttentionMethod) -> dict[str, Any]:
    call = f'with sw.attention(model, sw.method("{method.name}")):\n    model.generate(**inputs)'
    return {"needs": list(_needs(method)), "call": call}


def _needs(method: AttentionMethod) -> Iterator[str]:
    yield "A model whose attention goes through the attention interface of transformers, or the tensors themselves."
    unit = method.pattern.unit
    yield f"Its units are {unit} (queries x keys)."
    yield (
        f"It acts in {' and '.join(method.phases)}; the other phase stays dense."
        if len(method.phases) == 1
        else "It acts in prefill and in decoding."
    )
    if method.cache:
        yield f"`generate` is given a cache of kind `{method.cache}`, which keeps what the score looks at beside the keys and values."


@particulars.register
def _cache(method: CacheMethod) -> dict[str, Any]:
    call = (
        f'with sw.attention(model, sw.method("{method.name}")) as run:\n    model.generate(**inputs)\nrun.held.nbytes'
    )
    where = "a head" if method.pattern.group.rows is not None else "a layer"
    if method.form is not None:
        needs = [
            "A transformers model that generates with a cache; the prompt is attended to whole before tokens are recoded.",
            f"All tokens stay; the last {method.form.window} as they are, older ones recoded {method.form.group} at a time.",
        ]
        return {"needs": needs, "call": call}
    needs = [
        "A transformers model that generates with a cache; the prompt is attended to whole before tokens go.",
        f"Tokens of {where} compete; the cache holds as many for every head as it keeps.",
        f"It acts after {' and after '.join({'prefill': 'the prompt', 'decode': 'every token'}[p] for p in method.phases)}.",
    ]
    return {"needs": needs, "call": call}


@particulars.register
def _trained(method: TrainedAttention) -> dict[str, Any]:
    inner = method.trainable
    needs = ["Training: what it selects by is learned, with the model or beside it."]
    if inner.alone:
        call = f'module = sw.method("{method.name}").build(sizes)'
        return {
            "needs": [*needs, "It is a module of its own: `build` makes it, and it is trained as any module."],
            "call": call,
        }
    needs.append(
        "A transformers model whose attention goes through its attention interface; rows without padding in training."
    )
    setup = f'method = sw.method("{method.name}")\nattached = trained.attach(model, method)\n'
    if inner.replaces:
        needs.append(
            "It stands in the place of the attention modules, with weights of its own: the model is trained with it."
        )
        return {"needs": needs, "call": f"{setup}...   # train the model; call it with use_cache=False"}
    needs.append("Its weights are saved with the model, and read from there at inference.")
    call = (
        "with trained.training(attached):\n    loss = task_loss + attached.loss()   # ... train\n"
        "with sw.attention(model, *method.export()):\n    model.generate(**inputs)"
    )
    return {"needs": needs, "call": setup + call}
