"""The suite for GPUs, asked about the CPU: it runs, and it notices what differs."""

from __future__ import annotations

import pytest
import torch

from sparseworks.core.published import METHODS
from sparseworks.testing import device

ONE_OF_A_KIND = ("wanda", "rigl", "monarch", "quest", "h2o", "teal", "topk_sae", "logistic_l1")


@pytest.mark.parametrize("name", ONE_OF_A_KIND)
def test_the_cpu_does_what_the_cpu_does(name):
    assert device.check_device(name, "cpu")


def test_what_has_no_device_is_not_called_checked():
    assert not device.check_device("seismic", "cpu")
    assert {"wanda", "seismic"} <= set(METHODS.names())


def test_other_selections_and_other_outputs_are_noticed():
    here = torch.rand(64, generator=torch.Generator().manual_seed(0)) > 0.5
    device._same(here, here, "x")
    with pytest.raises(AssertionError, match="keeps something else"):
        device._same(here, here.roll(1), "x")
    with pytest.raises(AssertionError, match="gives something else"):
        device._near(torch.ones(4), torch.tensor([1.0, 1.0, 1.1, 1.0]), "x")


def test_the_command_names_who_fails_and_counts_them(capsys):
    assert device.main(["meta", "omp"]) == 1
    said = capsys.readouterr().out
    assert said.startswith("omp: ") and "1 do not" in said
    assert device.main(["cpu", "omp"]) == 0


def test_the_command_says_that_a_device_is_not_there(capsys):
    for wrong in ("nodevice", "xla"):
        with pytest.raises(SystemExit):
            device.main([wrong])
        assert f"no device '{wrong}'" in capsys.readouterr().err
