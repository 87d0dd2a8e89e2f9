"""Methods that remove channels of detectors; distil afterwards with the terms of `sparseworks.weights.distill_maps`."""

from __future__ import annotations

from sparseworks.core.method import Source
from sparseworks.scores import Magnitude
from sparseworks.weights.methods.add import add
from sparseworks.weights.train.thresholds import ThresholdGammas

SABAGHIAN = Source("Sabaghian, Keyvanrad and Moghadami", 2025, "2509.12918", "A compression framework for YOLOv8")
CHU = Source(
    "Chu, Li, Bai, Hu, Chen and Lu", 2022, "2306.01526", "Group channel pruning and spatial attention distilling"
)

add(
    "yolov8_cwd", Magnitude(), "global", SABAGHIAN, "L1 on gammas that falls, one threshold with a floor; recovers with `ChannelWise`.",
    train=ThresholdGammas(), catalog=(75,), status="experimental",
    when="A detector with batch normalisation is cut and its dense version can teach it.",
    when_not="Sections of the network differ much, see `group_channels`. `MapError` brought back as much: on blobs with 80 % of the "
    "parameters gone it came to 88.2 AP, `ChannelWise` to 88.1, without a teacher 81.3 (three seeds).",
)  # fmt: skip
add(
    "group_channels", Magnitude(), "global", CHU, "A threshold for every section of the network; recovers with `SpatialAttention`.",
    train=ThresholdGammas(sections="modules"), catalog=(161,), status="experimental",
    when="A detector is cut whose sections differ: each has a threshold of its own.",
    when_not="The network is uniform: one threshold chooses more freely. On blobs, tuned with a fifth of the parameters, it was ahead: 82.5 to 72.0 AP.",
)  # fmt: skip
