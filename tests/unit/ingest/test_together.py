import math
import random
from collections import Counter
from itertools import permutations

import polars as pl
import pytest

from ingest import together
from ingest.facts import conform, edge_columns
from ingest.together import MAX_HISTORY, PARTNERS, bought_with
from kg import schema


def edges_of(rows):
    table = pl.DataFrame(rows, schema=["head", "tail", "at", "last_at"], orient="row")
    return conform(table.with_columns(source=pl.lit("behaviour")), edge_columns(schema.INTERACTED))


def partners(rows):
    return bought_with(edges_of(rows)).edges[schema.BOUGHT_WITH].rows()


def by_hand(rows):
    """The definition, pair by pair."""
    histories, customers = {}, Counter()
    for user, item, *_ in rows:
        histories.setdefault(user, set()).add(item)
    for history in histories.values():
        customers.update(history)
    support = Counter(pair for history in histories.values() for pair in permutations(sorted(history), 2))
    scored = {
        (head, tail): (count / math.sqrt(customers[head] * customers[tail]), count)
        for (head, tail), count in support.items()
        if count >= 2
    }
    kept = {}
    for head in sorted({head for head, _ in scored}):
        mine = sorted((-lift, -count, tail) for (other, tail), (lift, count) in scored.items() if other == head)
        kept |= {(head, tail): (round(-lift, 6), -count) for lift, count, tail in mine[:PARTNERS]}
    return kept


def test_a_pair_drawn_by_hand():
    """u1 and u2 take a and b; u3 takes a alone: support 2, n(a) = 3, n(b) = 2."""
    rows = [("u1", "a", 10, 10), ("u1", "b", 20, 25), ("u2", "a", 30, 30), ("u2", "b", 15, 15), ("u3", "a", 5, 99)]
    lift = round(2 / math.sqrt(6), 6)
    # head, tail, source, at, until, lift, support
    assert partners(rows) == [
        ("a", "b", "behaviour", 15, 99, lift, 2),
        ("b", "a", "behaviour", 15, 99, lift, 2),
    ]


def test_one_customer_is_no_evidence():
    assert partners([("u1", "a", 1, 1), ("u1", "b", 1, 1)]) == []
    assert partners([]) == []
    assert partners([("u1", "a", None, None), ("u2", "a", None, None)]) == []


def test_among_equal_lifts_the_larger_support_stays(monkeypatch):
    """a has 8 customers; 2 of them took b (and nobody else), 4 of them took c (and 4 others): lift .5 both."""
    monkeypatch.setattr(together, "PARTNERS", 1)
    rows = [(f"u{num}", "a", 1, 1) for num in range(8)] + [(f"u{num}", "b", 1, 1) for num in range(2)]
    rows += [(f"u{num}", "c", 1, 1) for num in (0, 1, 2, 3, 10, 11, 12, 13)]
    assert [row[1:2] + row[5:] for row in partners(rows) if row[0] == "a"] == [("c", 0.5, 4)]


@pytest.mark.parametrize("block_pairs", [20_000_000, 40])
def test_against_the_definition(monkeypatch, block_pairs):
    monkeypatch.setattr(together, "_BLOCK_PAIRS", block_pairs)
    rng = random.Random(1)
    rows = sorted({(f"u{rng.randrange(30)}", f"i{int(rng.expovariate(0.05)):02d}", 1, 1) for _ in range(900)})
    found = {(head, tail): (lift, support) for head, tail, _, _, _, lift, support in partners(rows)}
    assert found == by_hand(rows)
    assert max(Counter(head for head, _ in found).values()) == PARTNERS


def test_the_order_of_rows_does_not_matter():
    rng = random.Random(2)
    rows = sorted({(f"u{rng.randrange(20)}", f"i{rng.randrange(40):02d}", rng.randrange(9), 9) for _ in range(300)})
    shuffled = rng.sample(rows, len(rows))
    assert (
        bought_with(edges_of(rows))
        .edges[schema.BOUGHT_WITH]
        .equals(bought_with(pl.DataFrame(edges_of(shuffled))).edges[schema.BOUGHT_WITH])
    )


def test_a_robot_counts_with_its_latest_products_only():
    robots = [(f"r{robot}", f"i{num:04d}", num, num) for robot in (1, 2) for num in range(MAX_HISTORY + 100)]
    heads = {row[0] for row in partners(robots)}
    assert heads == {f"i{num:04d}" for num in range(100, MAX_HISTORY + 100)}


def test_hiding_a_product_changes_no_other_pair():
    rng = random.Random(3)
    rows = sorted({(f"u{rng.randrange(25)}", f"i{rng.randrange(12):02d}", 1, 1) for _ in range(200)})
    whole = {row[:2]: row[2:] for row in partners(rows)}
    without = {row[:2]: row[2:] for row in partners([row for row in rows if row[1] != "i03"])}
    assert without == {pair: rest for pair, rest in whole.items() if "i03" not in pair}
