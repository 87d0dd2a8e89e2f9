from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from sparseworks.stream.activations import Activations


def test_within_the_limit_everything_stays_in_memory():
    store = Activations(limit=1000)
    store[0] = torch.ones(10)
    assert (store.resident, store.mapped, len(store)) == (40, 0, 1)


def test_beyond_the_limit_batches_lie_in_files(tmp_path):
    store, batches = Activations(limit=900, folder=tmp_path), [torch.randn(10, 10) for _ in range(5)]
    for i, x in enumerate(batches):
        store[i] = x
    assert (store.resident, store.mapped) == (800, 3)
    assert list(tmp_path.iterdir()) == []  # nothing is left behind, even by a process that is killed
    assert all(torch.equal(store[i], x) for i, x in enumerate(batches))


def test_the_temporary_folder_goes_with_the_store():
    store = Activations(limit=0)
    store[0] = torch.ones(4, dtype=torch.bfloat16)
    folder = store._folder
    assert folder is not None and folder.exists() and store[0].dtype == torch.bfloat16
    del store
    assert not folder.exists()


def test_a_batch_is_replaced_in_place_and_is_a_copy():
    store, x = Activations(limit=0), torch.ones(3)
    store[0] = x
    before = store[0]
    x += 1
    assert torch.equal(store[0], torch.ones(3))
    store[0] = x
    assert store[0] is before and torch.equal(store[0], x)


def test_a_batch_may_change_its_shape():
    store = Activations()
    store[0] = torch.ones(3, 4)
    store[0] = torch.zeros(2, 5)
    assert store[0].shape == (2, 5) and store.resident == 40


@given(sizes=st.lists(st.integers(0, 20), max_size=8), limit=st.integers(0, 200))
def test_memory_never_exceeds_the_limit_and_nothing_is_lost(sizes, limit):
    store, batches = Activations(limit=limit), [torch.randn(n) for n in sizes]
    for i, x in enumerate(batches):
        store[i] = x
    assert store.resident <= limit
    assert all(torch.equal(store[i], x) for i, x in enumerate(batches))
