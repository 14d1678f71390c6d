"""The leaderboard as a command on a small shop: its cells, going on where it stopped, the table made of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ingest import generate_shop

FOLDER = Path(__file__).parents[2] / "benchmarks" / "quality"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    generate_shop(folder / "scientific", seed=0)
    (folder / "scientific" / "categories.ttl").unlink()
    return folder


def run(program, *arguments):
    command = [sys.executable, str(FOLDER / program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_cells_are_measured_once_and_make_the_table(data, tmp_path):
    arguments = [data, "--seeds", 0, 1, "--output", tmp_path / "results", "--work", tmp_path / "work"]
    first = run("leaderboard.py", *arguments, "--methods", "random", "tfidf", "ease_carried")
    assert first.count("NDCG@20") == 6
    second = run("leaderboard.py", *arguments, "--methods", "random", "tfidf", "ease_carried", "rp3beta")
    assert second.count("is there") == 6
    assert second.count("NDCG@20") == 2
    cells = [json.loads(file.read_text()) for file in (tmp_path / "results" / "scientific" / "cold").glob("*.json")]
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
    assert text.startswith("before\n<!-- results:begin -->\n**scientific")
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
    cases.make_split(cases.SETS["scientific"], data, tmp_path / "split", seed=0, warm=False)
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

    shop = cases.SETS["scientific"].read(data)
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
