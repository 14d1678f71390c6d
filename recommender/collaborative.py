"""Item-to-item models of behaviour alone: what a history of warm items says about other warm items."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from encoders.content import MAX_PAIRED, latest, top_of_rows
from kg.errors import TrainingError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy import sparse

MAX_DENSE_ITEMS: Final = 12_000
"""Above it EASE's dense inverse (4 bytes × items²) costs more memory than it is worth: ItemKNN takes its place."""
_N_NEIGHBOURS: Final = 200


def fit_item_model(interactions: sparse.csr_array, *, l2: float) -> NDArray[np.float32] | sparse.csr_array:
    """EASE where its inverse fits in memory, ItemKNN above. Shape (I, I): ``history @ weights`` are scores."""
    if interactions.shape[1] <= MAX_DENSE_ITEMS:
        return ease(interactions, l2=l2)
    return item_knn(interactions, k=_N_NEIGHBOURS, shrink=l2 / 5)


def ease(interactions: sparse.csr_array, *, l2: float) -> NDArray[np.float32]:
    """EASE, the closed-form linear autoencoder with a zero diagonal (Steck 2019, eq. 8): B = I − P · diag(1 / diag P).

    P is the inverse of XᵀX + l2 · I.

    Args:
        interactions: users × items, shape (U, I).
        l2: ridge penalty, in events.

    Returns:
        Shape (I, I). Columns of items without events are zero.

    Raises:
        TrainingError: single precision cannot hold the inverse.
    """
    gram = (interactions.T @ interactions).toarray().astype(np.float32)
    diagonal = np.arange(len(gram))
    cold = gram[diagonal, diagonal] == 0
    gram[diagonal, diagonal] += l2
    inverse = inverse_of(gram)
    weights = -inverse / inverse[diagonal, diagonal]
    weights[diagonal, diagonal] = 0
    weights[:, cold] = 0
    return np.ascontiguousarray(weights, dtype=np.float32)


def inverse_of(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Inverse of a symmetric, positive definite matrix, which is overwritten. Shape (n, n).

    Raises:
        TrainingError: not positive definite, as far as single precision tells.
    """
    from scipy.linalg import lapack

    factor, failed = lapack.spotrf(matrix, lower=1, overwrite_a=1)
    if failed:
        raise TrainingError(
            f"a matrix of {len(matrix):,} items is singular in single precision (row {failed}): its penalty is too "
            "small beside its largest entries; please report the numbers of items and events"
        )
    inverse = lapack.spotri(factor, lower=1, overwrite_c=1)[0]
    symmetric: NDArray[np.float32] = np.tril(inverse) + np.tril(inverse, -1).T
    return symmetric


def item_knn(interactions: sparse.csr_array, *, k: int, shrink: float) -> sparse.csr_array:
    """Cosine neighbours with shrinkage (Deshpande and Karypis 2004), the k best per item. Shape (I, I)."""
    from scipy import sparse

    interactions = latest(interactions, MAX_PAIRED)
    together = sparse.csr_array(interactions.T @ interactions, dtype=np.float32)
    counts = together.diagonal()
    together = sparse.csr_array(together - sparse.diags_array(counts, format="csr"))
    together.eliminate_zeros()
    rows = np.repeat(np.arange(together.shape[0]), np.diff(together.indptr))
    together.data /= np.sqrt(counts[rows] * counts[together.indices]) + shrink
    best = top_of_rows(together, k)
    return sparse.csr_array(best.T)


def co_walk(interactions: sparse.csr_array) -> sparse.csr_array:
    """Probability of a step item → customer → other item, both uniform (RP3's middle step). Shape (I, I)."""
    from scipy import sparse

    interactions = latest(interactions, MAX_PAIRED)
    per_user = interactions.sum(axis=1)
    uniform = sparse.diags_array(np.divide(1, per_user, out=np.zeros(len(per_user)), where=per_user > 0))
    together = sparse.csr_array(interactions.T @ uniform @ interactions)
    together = sparse.csr_array(together - sparse.diags_array(together.diagonal(), format="csr"))
    together.eliminate_zeros()
    totals = together.sum(axis=1)
    scale = np.divide(1, totals, out=np.zeros(len(totals)), where=totals > 1e-9)
    rows = np.repeat(np.arange(together.shape[0]), np.diff(together.indptr))
    together.data = (together.data * scale[rows]).astype(np.float32)
    return together
