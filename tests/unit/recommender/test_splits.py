"""Splits of a small shop: what is hidden, what stays, and that nothing leaks."""

from __future__ import annotations

import gzip
import json
import random
from datetime import datetime

import numpy as np
import polars as pl
import pytest

from ingest.together import bought_with
from kg import open_store, schema, snapshot
from kg.errors import SourceError
from recommender import splits


@pytest.fixture
def shop() -> splits.Shop:
    rng = random.Random(0)
    items = [{"item_id": f"p{n:02d}", "title": f"thing {n}", "attributes": {"n": n}} for n in range(40)]
    items.append({"item_id": "unsold", "title": "never sold", "attributes": {}})
    rows = []
    for user in range(30):
        for position, number in enumerate(rng.sample(range(40), 8)):
            at = 1_000_000 + 1000 * number + position  # high numbers are sold late
            rows.append({"user_id": f"u{user}", "item_id": f"p{number:02d}", "position": position, "timestamp": at})
    rows.append({"user_id": "u0", "item_id": "unknown", "position": 99, "timestamp": 1})
    return splits.Shop(items, pl.DataFrame(rows))


def original(folder, frame):
    names = dict(pl.read_csv(folder / "ids.csv").rows())
    return frame.with_columns(pl.col("item_id").replace_strict(names))


def training(folder):
    return original(folder, pl.read_csv(folder / "shop" / "events.csv"))


def test_a_fifth_of_the_sold_items_is_hidden_with_all_its_events(shop, tmp_path):
    truth = splits.split_shop(shop, tmp_path, seed=3)
    expected = sorted(f"p{n:02d}" for n in range(40))
    random.Random(3).shuffle(expected)
    cold = set(expected[:8])
    train, hidden = training(tmp_path), original(tmp_path, truth.hidden)
    assert set(hidden["item_id"]) == cold
    assert not set(train["item_id"]) & cold
    assert hidden["cold"].all()
    known = shop.events.filter(pl.col("item_id") != "unknown")
    pairs = set(known.select("user_id", "item_id").rows())
    assert set(train.select("user_id", "item_id").rows()) | set(hidden.select("user_id", "item_id").rows()) == pairs
    assert truth.n_cold_items == 9  # the unsold one is cold too
    assert truth.n_test_users == hidden["user_id"].n_unique()


def test_companions_are_renamed_and_tell_nothing_of_new_items(shop, tmp_path):
    everyone = [item["item_id"] for item in shop.items]
    listed = [{**item, "also_bought": [*everyone, "elsewhere"]} for item in shop.items]
    splits.split_shop(splits.Shop(listed, shop.events), tmp_path, seed=3)
    names = dict(pl.read_csv(tmp_path / "ids.csv").rows())
    sold = set(training(tmp_path)["item_id"])
    for line in (tmp_path / "shop" / "items.jsonl").read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        found = [names.get(one, one) for one in item["also_bought"]]
        assert found == (
            [*[one for one in everyone if one in sold], "elsewhere"] if names[item["item_id"]] in sold else []
        )


def test_ids_rows_and_positions_tell_nothing(shop, tmp_path):
    splits.split_shop(shop, tmp_path, seed=0)
    rows = [json.loads(line) for line in (tmp_path / "shop" / "items.jsonl").read_text().splitlines()]
    names = dict(pl.read_csv(tmp_path / "ids.csv").rows())
    found = [names[row["item_id"]] for row in rows]
    assert sorted(found) == sorted(item["item_id"] for item in shop.items)
    assert found != sorted(found)
    assert [names[new] for new in sorted(names)] != sorted(names.values())
    assert all(row["title"] == {i["item_id"]: i["title"] for i in shop.items}[names[row["item_id"]]] for row in rows)
    train = training(tmp_path)
    for (user,), events in train.group_by("user_id"):
        assert events["position"].to_list() == list(range(len(events)))
        before = shop.events.filter(pl.col("user_id") == user).sort("timestamp")["item_id"].to_list()
        kept = set(events["item_id"])
        assert events["item_id"].to_list() == [item for item in before if item in kept]


def test_same_seed_same_files(shop, tmp_path):
    first = splits.split_shop(shop, tmp_path / "a", seed=1)
    second = splits.split_shop(shop, tmp_path / "b", seed=1)
    other = splits.split_shop(shop, tmp_path / "c", seed=2)
    assert first.data_hash == second.data_hash != other.data_hash
    for name in ("shop/items.jsonl", "shop/events.csv", "truth.csv", "split.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    again = splits.read_truth(tmp_path / "a")
    assert again.hidden.equals(first.hidden)
    assert again.data_hash == first.data_hash


def test_time_split_hides_everything_from_the_cut_on(shop, tmp_path):
    cut = 1_030_000
    shop.items[35]["available_from"] = "2031-01-01"
    shop.items[3]["available_from"] = 1_000_000
    truth = splits.split_shop(shop, tmp_path, seed=0, protocol="time", cut=cut)
    train, hidden = training(tmp_path), original(tmp_path, truth.hidden)
    assert train["timestamp"].max() < cut
    assert set(hidden.filter("cold")["item_id"]) == {f"p{n}" for n in range(30, 40)}
    rows = [json.loads(line) for line in (tmp_path / "shop" / "items.jsonl").read_text().splitlines()]
    launches = {row["title"]: row["available_from"] for row in rows if "available_from" in row}
    assert launches == {"thing 35": None, "thing 3": 1_000_000}


def test_warm_pairs_are_hidden_without_making_anything_cold(shop, tmp_path):
    truth = splits.split_shop(shop, tmp_path, seed=0, warm_share=0.25)
    warm = truth.hidden.filter(~pl.col("cold"))
    without = splits.split_shop(shop, tmp_path / "without", seed=0)
    assert len(warm) == int(0.25 * (240 - len(without.hidden)))
    assert set(truth.hidden.filter("cold").rows()) == set(without.hidden.rows())
    train = pl.read_csv(tmp_path / "shop" / "events.csv")
    assert warm.join(train, on="item_id", how="anti").is_empty()
    assert warm.join(train, on=["user_id", "item_id"], how="semi").is_empty()


def test_a_leak_is_caught():
    train = pl.DataFrame({"user_id": ["u1", "u2"], "item_id": ["a", "b"], "timestamp": [1, 9]})
    rest = pl.DataFrame({"user_id": ["u1", "u3"], "item_id": ["b", "c"]})
    hidden = rest.with_columns(cold=True)
    with pytest.raises(AssertionError, match=r"cold items.*without a training event.*after the cut"):
        splits._check(train, hidden, rest, cut=5)
    with pytest.raises(AssertionError, match="hidden pairs in training"):
        splits._check(train, train.select("user_id", "item_id", cold=pl.lit(False)), train, cut=None)


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "csv", "parquet"])
def test_every_form_of_a_folder_is_read(form, tmp_path):
    items = [{"item_id": f"p{n}", "title": "t"} for n in range(10)]
    events = [{"user_id": "1", "item_id": f"p{n}", "timestamp": "2024-01-01T00:00:00"} for n in range(10)]
    for name, rows in (("items", items), ("events", events)):
        file = tmp_path / f"{name}.{form}"
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if form == "parquet":
            pl.DataFrame(rows).write_parquet(file)
        elif form == "csv":
            pl.DataFrame(rows).write_csv(file)
        elif form == "jsonl.gz":
            file.write_bytes(gzip.compress(text.encode()))
        else:
            file.write_text(text)
    shop = splits.read_shop(tmp_path)
    assert [item["item_id"] for item in shop.items] == [f"p{n}" for n in range(10)]
    assert shop.events["timestamp"].to_list() == [1704067200] * 10
    truth = splits.split_shop(tmp_path, tmp_path / "out", seed=0)
    assert truth.n_cold_items == 2


def test_times():
    assert splits.parse_time("2011-06-01") == splits.parse_time(datetime(2011, 6, 1)) == 1306886400  # UTC
    assert splits.parse_time("2011-06-01T02:00:00+02:00") == splits.parse_time("1306886400") == 1306886400
    with pytest.raises(SourceError, match="no time"):
        splits.parse_time("soon")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": "time"}, "needs a cut"),
        ({"protocol": "time", "cut": 5}, "0 training events"),
        ({"protocol": "time", "cut": 9_000_000}, "0 hidden pairs"),
    ],
)
def test_impossible_splits_say_why(shop, tmp_path, change, message):
    with pytest.raises(SourceError, match=message):
        splits.split_shop(shop, tmp_path, seed=0, **change)


def test_a_folder_that_can_not_be_split_says_why(tmp_path):
    with pytest.raises(SourceError, match="no shop folder"):
        splits.read_shop(tmp_path / "none")
    with pytest.raises(SourceError, match=r"no items\.jsonl"):
        splits.read_shop(tmp_path)
    (tmp_path / "items.jsonl").write_text('{"item_id": "a"}\n')
    (tmp_path / "events.csv").write_text("who,what\n1,a\n")
    with pytest.raises(SourceError, match="user_id"):
        splits.read_shop(tmp_path)
    (tmp_path / "more.ttl").write_text("")
    with pytest.raises(SourceError, match="RDF"):
        splits.read_shop(tmp_path)


@pytest.fixture
def store(shop):
    """The shop's interactions and BOUGHT_WITH edges in a graph, with SIMILAR_TO edges of some earlier training."""
    store = open_store("memory:")
    items = pl.DataFrame({"key": [item["item_id"] for item in shop.items], "name": [i["title"] for i in shop.items]})
    launched = 1_000_000 + 1000 * pl.int_range(pl.len())
    store.write_nodes(schema.PRODUCT, items.with_columns(available_from=launched))
    events = shop.events.filter(pl.col("item_id") != "unknown")
    store.write_nodes(schema.CUSTOMER, events.select(key="user_id").unique())
    bought = events.select(
        head="user_id",
        tail="item_id",
        at="timestamp",
        last_at="timestamp",
        position=pl.col("position"),
        weight=pl.lit(1.0),
        source=pl.lit("behaviour"),
    )
    store.write_edges(schema.INTERACTED, bought)
    store.write_edges(schema.BOUGHT_WITH, bought_with(bought).edges[schema.BOUGHT_WITH])
    store.write_nodes(schema.COMPANION, pl.DataFrame({"key": ["elsewhere", *(f"p{n:02d}" for n in range(40))]}))
    listed = [(f"p{n:02d}", tail) for n in range(40) for tail in ("elsewhere", f"p{(n + 1) % 40:02d}")]
    listed = pl.DataFrame(listed, schema=["head", "tail"], orient="row").with_columns(source=pl.lit("behaviour"))
    store.write_edges(schema.ALSO_BOUGHT, listed)
    similar = pl.DataFrame({"head": ["p01"], "tail": ["p02"], "score": [0.5], "source": ["text"]})
    store.write_edges(schema.SIMILAR_TO, similar)
    return store


def pairs(split):
    rows, columns = split.hidden.nonzero()
    graph = split.graph
    return {(graph.users.keys[u], graph.items.keys[i]) for u, i in zip(rows, columns, strict=True)}


def test_a_graph_is_split_as_its_folder_is(shop, store, tmp_path):
    split = splits.split_graph(snapshot(store, until=None), seed=3)
    truth = splits.split_shop(shop, tmp_path, seed=3)
    assert pairs(split) == set(original(tmp_path, truth.hidden).select("user_id", "item_id").rows())
    assert split.cold.sum() == truth.n_cold_items
    assert split.hidden.shape == (30, 41)
    new = {split.graph.items.keys[num] for num in np.flatnonzero(split.cold)}
    for relation in schema.BEHAVIOURAL:
        facts = split.graph.facts[relation]
        assert len(facts)
        for nums, label in ((facts.heads, relation.head_label), (facts.tails, relation.tail_label)):
            assert not new & {split.graph.vocabularies[label].keys[num] for num in nums}
    assert not len(split.graph.facts[schema.SIMILAR_TO])
    assert list(split.graph.items.keys) != sorted(split.graph.items.keys)
    facts = split.graph.facts[schema.INTERACTED]
    order = training(tmp_path)
    for user in range(30):
        mine = facts.heads == user
        history = [split.graph.items.keys[num] for num in facts.tails[mine][np.argsort(facts.order[mine])]]
        assert sorted(facts.order[mine]) == list(range(len(history)))
        assert history == order.filter(pl.col("user_id") == split.graph.users.keys[user])["item_id"].to_list()


def test_warm_pairs_of_a_graph_count_in_nothing_that_is_trained_on(store):
    graph = snapshot(store, until=None)
    split = splits.split_graph(graph, seed=0, warm_share=0.3)
    n_warm = split.hidden[:, ~split.cold].nnz
    n_left = split.graph.interactions.nnz
    assert n_warm == int(0.3 * (n_warm + n_left))
    assert split.cold.sum() == 9
    # BOUGHT_WITH must be what a count over the training pairs alone gives
    together = split.graph.facts[schema.BOUGHT_WITH]
    taken = split.graph.interactions.toarray()
    for head, tail, lift in zip(together.heads, together.tails, together.weights, strict=True):
        both = (taken[:, head] * taken[:, tail]).sum()
        assert lift == pytest.approx(both / (taken[:, head].sum() * taken[:, tail].sum()) ** 0.5, abs=1e-5)


def test_a_graph_is_cut_as_its_folder_is(shop, store, tmp_path):
    cut = 1_030_000
    split = splits.cut_graph(snapshot(store, until=None), snapshot(store, until=cut - 1), cut)
    truth = splits.split_shop(shop, tmp_path, seed=0, protocol="time", cut=cut)
    assert pairs(split) == set(original(tmp_path, truth.hidden).select("user_id", "item_id").rows())
    assert split.graph.facts[schema.INTERACTED].at.max() < cut
    assert split.graph.products["available_from"].max() < cut
    assert len(split.graph.items) == 41
    assert not split.cold[split.graph.facts[schema.BOUGHT_WITH].tails].any()


def test_the_default_cut_leaves_a_fifth_of_the_items_to_come(store):
    graph = snapshot(store, until=None)
    cut = splits.default_cut(graph)
    split = splits.cut_graph(graph, snapshot(store, until=cut - 1), cut)
    assert split.cold.sum() == 8 + 1  # a fifth of 40, and the one never sold
