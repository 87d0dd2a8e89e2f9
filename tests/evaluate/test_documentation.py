from __future__ import annotations

from pathlib import Path

import pytest

from sparseworks.core.errors import CalibrationError
from sparseworks.evaluate import documentation
from sparseworks.evaluate.documentation import documentation_passages, documentation_retrieval, is_held_out

PARTS = {"json/decoder": True, "argparse": False, "shutil": False, "subprocess": True, "heapq": True, "ast": False}


def test_there_is_enough_text_in_an_order_that_does_not_follow_the_modules():
    passages = documentation_passages()
    assert len(passages) > 800
    assert sum(len(p.whole.split()) for p in passages) > 60_000
    assert len({p.id.partition(":")[0] for p in passages[:20]}) > 10
    assert passages == documentation_passages() != sorted(passages, key=lambda p: p.id)


def test_parts_and_order_come_from_names_alone():
    """Fixed values: another machine, process or Python must not move a module from one part to the other."""
    parts = {
        m: is_held_out(f"{m}.py:x#0") for m in ("json/decoder", "argparse", "shutil", "subprocess", "heapq", "ast")
    }
    assert parts == PARTS


def test_no_text_and_no_module_is_in_both_parts():
    calibration, held_out = documentation_passages(), documentation_passages(held_out=True)
    assert len(held_out) > 300
    assert not {p.text for p in calibration} & {p.text for p in held_out}
    assert not {p.id.partition(":")[0] for p in calibration} & {p.id.partition(":")[0] for p in held_out}
    assert all(is_held_out(p.id) for p in held_out)
    assert len({p.text for p in calibration}) == len(calibration)


def test_the_collection_is_made_of_held_out_passages_only():
    found = documentation_retrieval(50)
    held_out = {p.id: p for p in documentation_passages(held_out=True)}
    assert len(found.judged) == 50
    assert set(found.documents) == set(held_out)
    for query in found.judged:
        for document in found.qrels[query]:
            assert held_out[document].heading == found.queries[query]
            assert not found.documents[document].startswith(found.queries[query])


def test_a_smaller_collection_keeps_what_is_relevant():
    small = documentation_retrieval(10, documents=40)
    assert len(small.documents) == 40
    assert all(d in small.documents for q in small.judged for d in small.qrels[q])
    assert list(documentation_retrieval(20).queries)[:10] == list(small.queries)


def test_packages_add_text_to_the_calibration_part_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    words = " ".join(f"word{i}" for i in range(30))
    package = tmp_path / "documented_package"
    package.mkdir()
    (package / "__init__.py").write_text(
        f'"""About it.\n\n{words}\n"""\nraise RuntimeError("imported")\n', encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    extra = set(documentation_passages(packages=["documented_package"])) - set(documentation_passages())
    assert [(p.heading, p.text) for p in extra] == [("About it.", words)]
    with pytest.raises(CalibrationError, match="not installed"):
        documentation_passages(packages=["no_such_package"])


def test_a_docstring_is_cut_at_paragraphs_and_its_heading_taken_off(tmp_path: Path):
    paragraphs = ["a " * 100, "b " * 100, "c " * 30]
    body = "\n\n    ".join(p.strip() for p in paragraphs)
    source = f'class Thing:\n    def run(self):\n        """Run a\n        thing.\n\n        {body}\n        """\n'
    (tmp_path / "mod.py").write_text(source, encoding="utf-8")
    (tmp_path / "broken.py").write_text("def (", encoding="utf-8")
    found = list(documentation._docstrings(tmp_path))
    assert [p.id for p in found] == ["mod.py:Thing.run#0", "mod.py:Thing.run#1"]
    assert {p.heading for p in found} == {"Run a thing."}
    assert [len(p.text.split()) for p in found] == [100, 130]
    assert found[0].whole == f"Run a thing.\n\n{found[0].text}"


def test_a_python_without_documentation_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(documentation, "_library", tuple)
    with pytest.raises(CalibrationError, match="no readable documentation"):
        documentation_passages()
