"""The registered methods of codes, one file a group."""

from __future__ import annotations

from sparseworks.codes.methods import autoencoders as autoencoders
