"""An index over label dimensions (place, date, person ...): inverted lists per cell, and the number of cells that match as score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from sparseworks.core.errors import BudgetError, UnknownNameError

Labels = Mapping[str, Sequence[str]]
"""Dimension -> labels, of a document or of a query."""


@dataclass
class LabelCube:
    """Documents by (dimension, label); a query is answered by a look-up of its cells, whatever the number of documents.

    Labels are matched exactly after case folding; one that no document has is matched to all labels of its dimension that are
    similar enough. Documents are ranked by how many matches they have: two labels similar to one that was asked for are two.

    Attributes:
        dimensions: names.
        similar: (label asked, known labels) -> similarity of each; None: exact matches only.
        least: similarity above which labels match.

    Source: Shi et al., 2025 (Hypercube-RAG), as released; extraction of labels by a language model is the caller's.
    """

    dimensions: tuple[str, ...]
    similar: Callable[[str, list[str]], Sequence[float]] | None = None
    least: float = 0.9
    _cells: dict[str, dict[str, set[str]]] = field(init=False, repr=False)
    _labels: dict[str, Labels] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self):
        self._cells = {dimension: {} for dimension in self.dimensions}

    def __len__(self) -> int:
        return len(self._labels)

    def add(self, document: str, labels: Labels) -> None:
        """File a document; one that is there already is replaced.

        Raises:
            UnknownNameError: a dimension that the cube does not have.
        """
        known = self._known(labels)
        if document in self._labels:
            self.delete(document)
        self._labels[document] = labels
        for dimension, found in known.items():
            for label in found:
                self._cells[dimension].setdefault(label, set()).add(document)

    def delete(self, document: str) -> None:
        """Take a document out.

        Raises:
            BudgetError: it is not there.
        """
        if document not in self._labels:
            raise BudgetError(f"There is no document {document!r}.")
        for dimension, found in self._known(self._labels.pop(document)).items():
            for label in found:
                self._cells[dimension][label].discard(document)
                if not self._cells[dimension][label]:
                    del self._cells[dimension][label]

    def search(self, labels: Labels, k: int = 5, ties: Mapping[str, float] | None = None) -> list[tuple[str, int]]:
        """The k documents with most matches of the query's labels, and how many; equal ones by `ties`, then by name.

        Raises:
            UnknownNameError: a dimension that the cube does not have.
        """
        count: dict[str, int] = {}
        for dimension, asked in self._known(labels).items():
            for label in asked:
                for document in chain.from_iterable(self._match(dimension, label)):
                    count[document] = count.get(document, 0) + 1
        second = ties or {}
        return sorted(count.items(), key=lambda item: (-item[1], -second.get(item[0], 0.0), item[0]))[:k]

    def _match(self, dimension: str, label: str) -> list[set[str]]:
        """The documents of the label, or of each label like it."""
        cell = self._cells[dimension]
        if label in cell or self.similar is None or not cell:
            return [cell.get(label, set())]
        names = list(cell)
        return [cell[n] for n, s in zip(names, self.similar(label, names), strict=True) if s > self.least]

    def _known(self, labels: Labels) -> dict[str, list[str]]:
        for dimension in labels:
            if dimension not in self._cells:
                raise UnknownNameError("dimension", dimension, self._cells)
        return {d: list(dict.fromkeys(label.casefold().strip() for label in found)) for d, found in labels.items()}
