"""Small vectors of whole numbers, and a browser."""

from __future__ import annotations

import shutil

import pytest

from sparseworks.testing.index import example_vectors

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def vectors():
    return example_vectors(90, 50, 0)


@pytest.fixture
def queries():
    return example_vectors(7, 50, 1)


@pytest.fixture
def ids(vectors):
    return [f"d{i}" for i in range(len(vectors))]


@pytest.fixture
def chromium() -> str:
    if CHROMIUM is None:
        pytest.skip("needs Chromium (apt-get install chromium); the CI entry point installs it")
    return CHROMIUM
