"""What every test starts from: one thread, a fixed seed, and a cache folder that is not the user's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

settings.register_profile("steady", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("steady")
# Before any fixture: those of modules are made before `_calm`, and threads of several workers on few cores wait for each other.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def _session_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _calm(_session_cache, monkeypatch):
    monkeypatch.setenv("SPARSEWORKS_CACHE", str(_session_cache))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
