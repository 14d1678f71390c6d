"""Products taken by the same customers: the BOUGHT_WITH edges, counted from interactions."""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl

from ingest.facts import GraphTables, conform, edge_columns
from kg import schema

PARTNERS: Final = 20
"""Edges that leave one product, its best."""
MIN_SUPPORT: Final = 2
"""Customers who took both; one alone is chance."""
MAX_HISTORY: Final = 500
"""Products of one customer that are counted, the latest: pairs grow with the square, and who takes more is a robot or a
reseller, whose pairs say little."""
_BLOCK_PAIRS: Final = 20_000_000
"""Customer–product–product triples multiplied at a time; bounds the memory to some hundred MB."""


def bought_with(interactions: pl.DataFrame) -> GraphTables:
    """BOUGHT_WITH edges from INTERACTED edges (``kg.schema``; one row per customer and product).

    For each product its ``PARTNERS`` best partners by

        lift(i, j) = support(i, j) / sqrt(n(i) n(j))

    where n(i) is the number of customers of i and support the number of customers of both: the geometric mean of
    P(i|j) and P(j|i), the cosine of ItemKNN (Sarwar et al. 2001). Unlike the quotient P(ij)/P(i)P(j) it does not
    explode for rare products, and it depends on those two products' events alone, so hiding a third product changes
    no number. Ties go to the larger support, then to the smaller key. ``until`` is the last event of the two products,
    ``at`` the first time at which both had been taken by someone.
    """
    from scipy import sparse

    counted = interactions.select("head", "tail", "at", "last_at", "position")
    recent = counted.sort(
        ["head", "last_at", "position", "tail"], descending=[False, True, True, False], nulls_last=True
    )
    counted = recent.filter(pl.int_range(pl.len()).over("head") < MAX_HISTORY)
    products = counted.group_by("tail").agg(first=pl.col("at").min(), last=pl.col("last_at").max(), customers=pl.len())
    products = products.filter(pl.col("customers") >= MIN_SUPPORT).sort("tail")
    if products.height < 2:
        return _tables(pl.DataFrame(schema=edge_columns(schema.BOUGHT_WITH)))
    item_nums = products.select("tail", item_num=pl.int_range(pl.len()))
    counted = counted.join(item_nums, on="tail")
    user_nums = counted["head"].rank("dense").to_numpy().astype(np.int64) - 1
    shape = (int(user_nums.max()) + 1, products.height)
    taken = sparse.csr_array(
        (np.ones(len(user_nums), dtype=np.int32), (user_nums, counted["item_num"].to_numpy())), shape=shape
    )
    by_item = taken.T.tocsr()
    n_customers = products["customers"].to_numpy().astype(np.float64)
    # Triples that a product's row costs: the history lengths of its customers.
    cost = by_item @ np.diff(taken.indptr)
    blocks = (np.cumsum(cost) // _BLOCK_PAIRS).astype(np.int64)
    kept = []
    for block in np.unique(blocks):
        rows = np.flatnonzero(blocks == block)
        pairs = (by_item[rows] @ taken).tocoo()
        head, tail, support = rows[pairs.row], pairs.col, pairs.data
        good = (support >= MIN_SUPPORT) & (head != tail)
        head, tail, support = head[good], tail[good], support[good]
        lift = support / np.sqrt(n_customers[head] * n_customers[tail])
        order = np.lexsort((tail, -support, -lift, head))
        head = head[order]
        starts = np.flatnonzero(np.r_[True, head[1:] != head[:-1]]) if len(head) else np.zeros(0, dtype=np.int64)
        place = np.arange(len(head)) - np.repeat(starts, np.diff(np.r_[starts, len(head)]))
        best = order[place < PARTNERS]
        kept.append((head[place < PARTNERS], tail[best], support[best], lift[best]))
    heads, tails, supports, lifts = (np.concatenate(column) for column in zip(*kept, strict=True))
    keys, first, last = (products[name] for name in ("tail", "first", "last"))
    edges = pl.DataFrame(
        {
            "head": keys.gather(heads),
            "tail": keys.gather(tails),
            "support": supports,
            "lift": lifts,
            "first_head": first.gather(heads),
            "first_tail": first.gather(tails),
            "last_head": last.gather(heads),
            "last_tail": last.gather(tails),
        }
    ).with_columns(
        pl.col("lift").round(6),
        at=pl.max_horizontal("first_head", "first_tail"),
        until=pl.max_horizontal("last_head", "last_tail"),
        source=pl.lit("behaviour"),
    )
    return _tables(edges)


def _tables(edges: pl.DataFrame) -> GraphTables:
    return GraphTables({}, {schema.BOUGHT_WITH: conform(edges, edge_columns(schema.BOUGHT_WITH))})
