import json
from collections import Counter, defaultdict
from datetime import datetime, timedelta

import pytest

from ingest import generate_shop, load
from kg import open_store, schema


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated") / "shop"
    tastes = generate_shop(folder)
    items = [json.loads(line) for line in (folder / "items.jsonl").open(encoding="utf-8")]
    events = [line.rstrip("\n").split(",") for line in (folder / "events.csv").open(encoding="utf-8")][1:]
    return folder, tastes, items, events


def test_the_same_seed_writes_the_same_bytes(generated, tmp_path):
    folder = generated[0]
    generate_shop(tmp_path / "again")
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    other = generate_shop(tmp_path / "other", seed=1)
    assert other != generated[1]


def test_it_is_a_whole_shop(generated):
    _, tastes, items, events = generated
    assert 300 <= len(items) <= 500
    assert len(tastes.customers) == 400 == len({user for user, *_ in events})
    assert len(tastes.new_items) == 30
    assert {len(item["category_path"]) for item in items} == {2}
    assert any("\u4e00" <= letter <= "\u9fff" for item in items for letter in item["title"])
    assert {kind for *_, kind in events} == {"view", "cart", "buy"}
    assert len({(item["item_id"]) for item in items}) == len(items)


def test_new_items_are_the_last_launched_and_have_no_event(generated):
    _, tastes, items, events = generated
    assert tastes.new_items == tuple(item["item_id"] for item in items[-30:])
    assert not set(tastes.new_items) & {item for _, item, *_ in events}
    assert len({tuple(item["category_path"]) for item in items[-30:]}) == 15


def test_nothing_is_taken_before_its_launch(generated):
    _, _, items, events = generated
    launched = {item["item_id"]: item["available_from"] for item in items}
    assert all(at >= launched[item] for _, item, at, _ in events)
    times = [datetime.fromisoformat(at) for _, _, at, _ in events]
    assert times == sorted(times)
    assert timedelta(days=330) < times[-1] - times[0] < timedelta(days=366)


def test_sales_follow_tastes(generated):
    _, tastes, items, events = generated
    by_id = {item["item_id"]: item for item in items}
    taken = [tastes.customers[user].affinity(by_id[item]) for user, item, *_ in events]
    offered = [taste.affinity(item) for taste in tastes.customers.values() for item in items]
    assert sum(taken) / len(taken) > 2 * sum(offered) / len(offered)
    bought = Counter(kind for *_, kind in events)
    assert bought["view"] > bought["cart"] > bought["buy"] > 1_000


def test_the_text_carries_the_signal(generated):
    """Mean TF-IDF of a customer's products finds new products to the customer's taste."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    _, tastes, items, events = generated
    num_of = {item["item_id"]: num for num, item in enumerate(items)}
    texts = [f"{item['title']} {item['description']} {' '.join(item['category_path'])}" for item in items]
    vectors = TfidfVectorizer(sublinear_tf=True).fit_transform(texts)
    histories = defaultdict(set)
    for user, item, *_ in events:
        histories[user].add(num_of[item])
    new = [num_of[item] for item in tastes.new_items]
    found, usual, best = [], [], []
    for user, history in histories.items():
        affinity = np.array([tastes.customers[user].affinity(items[num]) for num in new])
        scores = np.asarray(vectors[new] @ np.asarray(vectors[sorted(history)].mean(axis=0)).T).ravel()
        found.append(affinity[np.argsort(-scores)[:5]].mean())
        usual.append(affinity.mean())
        best.append(np.sort(affinity)[-5:].mean())
    assert np.mean(usual) < 0.4 * np.mean(best)
    assert np.mean(found) > 0.7 * np.mean(best)


def test_it_loads_without_a_reject(generated):
    folder = generated[0]
    store = open_store("memory:")
    report = load(folder, store)
    assert report.rows_rejected == 0
    assert report.ignored_files == ["tastes.json"]
    taxonomy = store.edges(schema.SUBCATEGORY_OF).filter(source="taxonomy")
    assert taxonomy.height == 15
    assert "Kitchen > Baking" in taxonomy["head"]


def test_tastes_are_written_beside_it(generated):
    folder, tastes, items, _ = generated
    written = json.loads((folder / "tastes.json").read_text(encoding="utf-8"))
    assert written["new_items"] == list(tastes.new_items)
    taste = tastes.customers["c001"]
    assert written["customers"]["c001"] == {
        "categories": [list(path) for path in taste.categories],
        "brands": list(taste.brands),
        "attributes": {name: list(values) for name, values in taste.attributes.items()},
    }
    no_match = {**items[0], "category_path": ["?"], "brand": "?", "attributes": {"style": "?", "material": "?"}}
    assert taste.affinity(no_match) == 0
    match = {
        "category_path": list(taste.categories[0]),
        "brand": taste.brands[0],
        "attributes": {"style": taste.attributes["style"][0], "material": taste.attributes["material"][0]},
    }
    assert taste.affinity(match) == pytest.approx(6.2)
