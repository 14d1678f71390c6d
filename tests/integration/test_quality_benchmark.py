"""The leaderboard as a command on a small shop: its cells, going on where it stopped, the table made of them."""

from __future__ import annotations

import csv
import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from brief_shop import write_brief_shop
from scipy import sparse

FOLDER = Path(__file__).parents[2] / "benchmarks" / "quality"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_brief_shop(folder / "generated")
    return folder


def run(program, *arguments):
    command = [sys.executable, str(FOLDER / program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_cells_are_measured_once_and_make_the_table(data, tmp_path):
    arguments = [data, "--set", "generated", "--seeds", 0, 1]
    arguments += ["--output", tmp_path / "results", "--work", tmp_path / "work"]
    first = run("leaderboard.py", *arguments, "--methods", "random", "tfidf", "ease_carried")
    assert first.count("NDCG@20") == 6
    second = run("leaderboard.py", *arguments, "--methods", "random", "tfidf", "ease_carried", "rp3beta")
    assert second.count("is there") == 6
    assert second.count("NDCG@20") == 2
    cells = [json.loads(file.read_text()) for file in (tmp_path / "results" / "generated" / "cold").glob("*.json")]
    found = {(cell["method"], cell["seed"]): cell["pools"]["new"] for cell in cells}
    assert len(found) == 8
    for seed in (0, 1):
        assert found["tfidf", seed]["means"]["ndcg@20"] > 2 * found["random", seed]["means"]["ndcg@20"]
        low, high = found["tfidf", seed]["ndcg@20 interval"]["over users"]
        assert low < found["tfidf", seed]["means"]["ndcg@20"] < high
        assert found["tfidf", seed]["means"]["cold_share"] == 1
    assert {"commit", "command", "machine", "seconds", "split", "chosen"} <= set(cells[0])
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results:begin -->\nold\n<!-- results:end -->\nafter\n")
    run("table.py", "--results", tmp_path / "results", "--readme", readme)
    text = readme.read_text()
    assert text.startswith("before\n<!-- results:begin -->\n**generated")
    assert text.endswith("<!-- results:end -->\nafter\n")
    mean = np.mean([found["tfidf", seed]["means"]["ndcg@20"] for seed in (0, 1)])
    assert f"| TF-IDF | {mean:.4f} |" in text
    run("table.py", "--results", tmp_path / "results", "--readme", readme, "--check")


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import baselines
    import cases
    import product

    return baselines, cases, product


def test_ease_weights_solve_their_equation(modules):
    """B of eq. 8 is the least-squares solution with a zero diagonal: gradient zero off the diagonal."""
    baselines, _, _ = modules
    events = (np.random.default_rng(0).random((40, 9)) < 0.3).astype(np.float32)
    weights = baselines._ease_weights(events.T @ events, 5.0)
    gradient = events.T @ (events @ weights - events) + 5.0 * weights
    np.fill_diagonal(gradient, 0)
    assert np.abs(gradient).max() < 1e-3
    assert not np.diag(weights).any()


def test_inner_cases_hide_nothing_of_the_truth(modules, data, tmp_path):
    baselines, cases, _ = modules
    cases.make_split(cases.SETS["generated"], data, tmp_path / "split", seed=0, warm=False)
    case = cases.load_case(tmp_path / "split", 0)
    assert not case.train.multiply(case.truth).nnz
    assert not case.n_events[case.new].any()
    for inner in (case.inner(), baselines.pair_split(case)):
        assert not inner.train.multiply(inner.truth).nnz
        assert not inner.truth.multiply(case.truth).nnz
        assert (inner.truth.nnz, inner.train.nnz) < (case.train.nnz, case.train.nnz)
    assert not (case.inner().new & case.new).any()


def test_controls_take_away_what_they_name(modules, data):
    _, cases, product = modules
    import random

    shop = cases.SETS["generated"].read(data)
    rng = random.Random(0)
    bare, _ = product.graph_removed(shop.items, shop.events, rng)
    assert not any({"category_path", "brand", "attributes"} & set(item) for item in bare)
    assert all(
        old["brand"] in new["description"] for old, new in zip(shop.items, bare, strict=True) if old.get("brand")
    )
    mixed, _ = product.graph_shuffled(shop.items, shop.events, rng)
    same = [old.get("brand") == new.get("brand") for old, new in zip(shop.items, mixed, strict=True)]
    assert sum(same) < len(same) / 2
    wordless, _ = product.text_removed(shop.items, shop.events, rng)
    assert not any({"title", "description"} & set(item) for item in wordless)
    _, events = product.labels_shuffled(shop.items, shop.events, rng)
    assert events["user_id"].equals(shop.events["user_id"])
    assert sorted(events["item_id"]) == sorted(shop.events["item_id"])
    assert (events["item_id"] == shop.events["item_id"]).mean() < 0.2


@pytest.fixture(scope="module")
def published_data(tmp_path_factory):
    """The generated shop in the published layouts: half of each customer's items are to be found."""
    folder = tmp_path_factory.mktemp("published")
    items = write_brief_shop(folder / "beauty")
    with (folder / "beauty" / "events.csv").open(encoding="utf-8") as lines:
        bought = sorted({(row["user_id"], row["item_id"]) for row in csv.DictReader(lines)})
    rng = random.Random(0)
    lists = {user: [item for owner, item in bought if owner == user] for user, _ in bought}
    lists = {user: rng.sample(found, len(found)) for user, found in lists.items() if len(found) > 3}
    for part, side in (("train", slice(2, None)), ("test", slice(2))):
        with gzip.open(folder / "beauty" / f"pgpr_{part}.tsv.gz", "wt") as out:
            out.writelines(f"{user}\t{' '.join(found[side])}\n" for user, found in lists.items())
    (folder / "beauty" / "items.jsonl.gz").write_bytes(gzip.compress((folder / "beauty" / "items.jsonl").read_bytes()))
    (folder / "beauty" / "items.jsonl").unlink()
    (folder / "lastfm_kg").mkdir()
    nums = {item["item_id"]: num for num, item in enumerate(items)}
    with gzip.open(folder / "lastfm_kg" / "ratings_final.txt.gz", "wt") as out:
        for number, found in enumerate(lists.values()):
            others = rng.sample(sorted(set(nums) - set(found)), len(found))
            out.writelines(f"{number}\t{nums[item]}\t1\n" for item in found)
            out.writelines(f"{number}\t{nums[item]}\t0\n" for item in others)
    entities = {}
    with gzip.open(folder / "lastfm_kg" / "kg_final.txt.gz", "wt") as out:
        for item in items:
            for relation, value in enumerate((item.get("brand"), item["category_path"][-1])):
                tail = len(items) + entities.setdefault((relation, value), len(entities))
                out.write(f"{nums[item['item_id']]}\t{relation}\t{tail}\n")
    return folder


def test_published_benchmarks_are_measured_once_and_stand_beside_what_others_published(published_data, tmp_path):
    arguments = [published_data, "--seeds", 0, "--output", tmp_path / "results", "--work", tmp_path / "work"]
    arguments += ["--methods", "popularity", "firstshelf"]
    run("published.py", *arguments)
    assert run("published.py", *arguments).count("is there") == 4
    lists = {
        method: json.loads((tmp_path / "results" / "beauty" / "pgpr" / f"{method}-0.json").read_text())
        for method in ("popularity", "firstshelf")
    }
    assert lists["firstshelf"]["means"]["ndcg@10"] > 1.2 * lists["popularity"]["means"]["ndcg@10"]
    assert lists["firstshelf"]["filled"] == 1
    pairs = json.loads((tmp_path / "results" / "lastfm_kg" / "ctr" / "firstshelf-0.json").read_text())
    low, high = pairs["intervals"]["auc"]
    assert 0.6 < low < pairs["means"]["auc"] < high
    assert {"commit", "command", "machine", "seconds", "split", "steps", "training", "threshold"} <= set(pairs)
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results:begin -->\n<!-- results:end -->\n")
    run("table.py", "--results", tmp_path / "results", "--readme", readme)
    text = readme.read_text()
    assert f"| **firstshelf** | {lists['firstshelf']['means']['ndcg@10']:.2f} |" in text
    assert f"| **firstshelf** | {pairs['means']['auc']:.3f} | {pairs['means']['f1']:.3f} | measured, 95 % [" in text
    assert "| PGPR (2019) | 5.45 | 8.32 | 14.40 | 1.71 | its paper, as recalled |" in text


@pytest.fixture
def published(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import published

    return published


def test_list_metrics_are_those_of_the_published_code(published):
    """Two users by hand: hits at ranks 1 and 3 of 4 test items; no hit, with a list that ends early."""
    lists = np.full((2, 10), -1)
    lists[0] = np.arange(10)
    lists[1, :2] = (3, 4)
    truth = sparse.csr_array(np.zeros((2, 12), dtype=np.float32)).tolil()
    truth[0, [0, 2, 10, 11]] = 1
    truth[1, 5] = 1
    values = published.list_metrics(lists, truth.tocsr())
    ideal = sum(1 / np.log2(1 + rank) for rank in (1, 2, 3, 4))
    assert values["ndcg@10"] == pytest.approx([100 * (1 + 0.5) / ideal, 0])
    assert values["recall@10"] == pytest.approx([50, 0])
    assert values["hr@10"] == pytest.approx([100, 0])
    assert values["precision@10"] == pytest.approx([20, 0])


def test_labelled_pairs_are_split_and_the_shop_knows_only_the_training_part(published, published_data):
    pairs = published.read_lastfm(published_data / "lastfm_kg", seed=1)
    with gzip.open(published_data / "lastfm_kg" / "ratings_final.txt.gz", "rt") as lines:
        n_rows = len(list(lines))
    assert len(pairs.validation) == len(pairs.test) == n_rows // 5
    together = [{tuple(pair) for pair in part[:, :2].tolist()} for part in (pairs.validation, pairs.test)]
    together.append(set(zip(*(nums.tolist() for nums in pairs.case.train.nonzero()), strict=True)))
    assert len(set.union(*together)) == sum(map(len, together))
    positives = sum(int(part[:, 2].sum()) for part in (pairs.validation, pairs.test)) + pairs.case.train.nnz
    assert positives == n_rows // 2
    assert set(pairs.case.items[0]["attributes"]) == {"relation 0", "relation 1"}


def test_the_threshold_is_the_best_one(published):
    labels, scores = np.array([0, 1, 0, 1, 1]), np.array([0.1, 0.2, 0.3, 0.4, 0.4])
    threshold = published.best_threshold(labels, scores)
    quality = {at: published.f1(labels, scores >= at) for at in scores}
    assert quality[threshold] == max(quality.values()) == pytest.approx(6 / 7)
