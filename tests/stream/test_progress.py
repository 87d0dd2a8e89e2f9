"""A loop says how far it is."""

from sparseworks.stream.progress import bar


def test_progress_shows_on_request(capsys):
    assert list(bar([1, 2], "count", True)) == [1, 2]
    shown = capsys.readouterr()
    assert "count" in shown.err
    assert shown.out == ""  # standard output is for the answer
    assert list(bar([1, 2], "count", False)) == [1, 2]
    assert capsys.readouterr().err == ""
