"""Cases as tasks of a local Ray: results come back, and what a case raises is what is raised here."""

from __future__ import annotations

from functools import partial

import pytest

from sparseworks.core.errors import ModelError
from sparseworks.jobs.compare import _run

ray = pytest.importorskip("ray", reason="Ray is an optional extra")


def _work(offset: int, case: int) -> int:
    if case == 3:
        raise ModelError("There is no model 3.")
    return case + offset


@pytest.fixture(scope="module", autouse=True)
def _local():
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False, configure_logging=False)
    yield
    ray.shutdown()


def test_cases_run_as_tasks_and_their_errors_arrive():
    assert dict(_run(partial(_work, 10), [0, 1], 1, True)) == {0: 10, 1: 11}
    with pytest.raises(ModelError, match="no model 3"):
        list(_run(partial(_work, 10), [3], 1, True))
    assert ray.is_initialized()  # it was not ours to end
