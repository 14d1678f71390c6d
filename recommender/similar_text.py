"""SIMILAR_TO edges: which older products a product is described like."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

from kg import schema

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from kg.snapshot import KnowledgeGraph
    from kg.store import GraphStore

N_NEIGHBOURS: Final = 10
_ROWS_AT_ONCE: Final = 1024
_ROUNDING: Final = 1e-5
"""Two ways to compute one cosine differ by less: where many descriptions are equal, "close" is 1, and they are it."""


def replace_similar_text(
    store: GraphStore, graph: KnowledgeGraph, vectors: NDArray[np.float32], heads: NDArray[np.int64]
) -> pl.DataFrame:
    """Write the SIMILAR_TO edges of the given products to the store, and take away those that no longer hold.

    Products point at products with behaviour: a reason leads back to what somebody has in their history.
    """
    tails = np.flatnonzero(graph.n_events > 0)
    edges = similar_text_edges(vectors, graph.items.keys, heads=heads, tails=tails)
    facts = graph.facts[schema.SIMILAR_TO]
    mine = np.isin(facts.heads, heads)
    old = pl.DataFrame(
        {
            "head": [graph.items.keys[num] for num in facts.heads[mine]],
            "tail": [graph.items.keys[num] for num in facts.tails[mine]],
        },
        schema={"head": pl.String, "tail": pl.String},
    )
    store.delete_edges(schema.SIMILAR_TO, old.join(edges, on=["head", "tail"], how="anti"))
    store.write_edges(schema.SIMILAR_TO, edges)
    return edges


def similar_text_edges(
    vectors: NDArray[np.float32],
    item_ids: Sequence[str],
    *,
    heads: NDArray[np.int64],
    tails: NDArray[np.int64],
    seed: int = 0,
) -> pl.DataFrame:
    """Edges from each head item to at most 10 tail items whose descriptions are closest to its own.

    "Close" is set by the shop: the cosine that only 1 % of random pairs of its items reach. Below it nothing is called
    similar. Items without text (a zero vector) have no edges.

    Args:
        vectors: text vectors of all items, L2-normalised, shape (I, D).
        item_ids: I ids.
        heads: item nums that get edges, shape (H,).
        tails: item nums that may be pointed at, shape (T,).
        seed: for the sample of random pairs.

    Returns:
        Frame with head, tail, score (cosine), source ``text``, at (now, epoch seconds), sorted by head and score.
    """
    left, right = np.random.default_rng(seed).integers(len(item_ids), size=(2, 20_000))
    sample = np.einsum("nd,nd->n", vectors[left], vectors[right])[left != right]
    close = (float(np.quantile(sample, 0.99)) if len(sample) else 1.0) - _ROUNDING
    rows: list[tuple[str, str, float]] = []
    for start in range(0, len(heads), _ROWS_AT_ONCE):
        part = heads[start : start + _ROWS_AT_ONCE]
        scores = vectors[part] @ vectors[tails].T
        scores[part[:, None] == tails[None, :]] = -np.inf
        k = min(N_NEIGHBOURS, len(tails))
        best = np.argpartition(-scores, k - 1, axis=1)[:, :k] if k else np.empty((len(part), 0), dtype=np.int64)
        for row, head in enumerate(part):
            for column in best[row][np.argsort(-scores[row, best[row]], kind="stable")]:
                score = float(scores[row, column])
                if score >= close and score > 0:
                    rows.append((item_ids[head], item_ids[tails[column]], round(min(score, 1.0), 6)))
    frame = pl.DataFrame(rows, schema={"head": pl.String, "tail": pl.String, "score": pl.Float64}, orient="row")
    return frame.with_columns(source=pl.lit("text"), at=pl.lit(int(time.time())))
