"""``Companions``: what is bought together by another source than the shop's events, as baskets without a customer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import numpy as np
from scipy import sparse

from kg import schema

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kg.snapshot import KnowledgeGraph

_LARGEST: Final = 100
"""Items of a basket; what more than these are bought with is bought with anything."""


@dataclass(frozen=True, slots=True, eq=False)
class Companions:
    """Each companion and the items that are bought with it, itself among them where the shop sells it.

    Attributes:
        baskets: companions × items, binary, shape (C, I).
        own: the companion's item num, -1 where it is none of the shop's, shape (C,).
    """

    baskets: sparse.csr_array
    own: NDArray[np.int64]

    @classmethod
    def of(cls, graph: KnowledgeGraph) -> Self:
        """Read the ALSO_BOUGHT edges."""
        own = graph.items.nums(graph.vocabularies[schema.COMPANION].keys)
        sold = np.flatnonzero(own >= 0)
        listed = graph.facts[schema.ALSO_BOUGHT]
        rows, columns = np.append(listed.tails, sold), np.append(listed.heads, own[sold])
        entries = (np.ones(len(rows), dtype=np.float32), (rows, columns))
        return cls(sparse.csr_array(entries, shape=(len(own), len(graph.items))), own)

    def among(self, known: NDArray[np.bool_]) -> sparse.csr_array:
        """The baskets of items that are known, at least two in each; nothing is heard of the other items.

        Args:
            known: shape (I,).

        Returns:
            Shape (B, I).
        """
        baskets = sparse.csr_array(self.baskets @ sparse.diags_array(known.astype(np.float32), format="csr"))
        baskets.eliminate_zeros()
        lengths = np.diff(baskets.indptr)
        heard = np.append(known, True)[self.own]  # -1 is the last: what is not the shop's is not new here
        return baskets[np.flatnonzero(heard & (lengths >= 2) & (lengths <= _LARGEST))]
