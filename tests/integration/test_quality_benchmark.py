"""The leaderboard as a command on a small shop: its cells, going on where it stopped, the table made of them."""

from __future__ import annotations

import csv
import gzip
import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

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
    held = np.mean([found["tfidf", seed]["means"]["recall@150 pooled"] for seed in (0, 1)])
    assert "| method | NDCG@20 | Recall@20 | in the first 150 |" in text
    assert re.search(rf"\| TF-IDF \| [0-9.]+ \| [0-9.]+ \| {held:.1%} \|", text)
    run("table.py", "--results", tmp_path / "results", "--readme", readme, "--check")


def test_a_control_is_compared_on_the_splits_that_it_has_and_a_baseline_on_all_or_none(data, tmp_path):
    """Lists of baselines, filed as the product's and a control's: the comparison reads lists alone."""
    places = [
        data,
        "--set",
        "generated",
        "--seeds",
        0,
        1,
        "--output",
        tmp_path / "results",
        "--work",
        tmp_path / "work",
    ]
    run("leaderboard.py", *places, "--cells-only", "--methods", "random", "tfidf", "popularity")
    cells = tmp_path / "results" / "generated" / "cold"
    lists = tmp_path / "work" / "lists" / "generated" / "cold"
    filed = [("tfidf", 0, "firstshelf"), ("tfidf", 1, "firstshelf"), ("random", 0, "firstshelf, graph removed")]
    for method, seed, name in filed:
        stem = f"{name.replace(', ', '-').replace(' ', '_')}-{seed}"
        cell = json.loads((cells / f"{method}-{seed}.json").read_text())
        (cells / f"{stem}.json").write_text(json.dumps({**cell, "method": name}))
        (lists / f"{stem}.npz").write_bytes((lists / f"{method}-{seed}.npz").read_bytes())
    (cells / "popularity-1.json").unlink()
    run("leaderboard.py", *places, "--compare-only")
    against = json.loads((cells / "comparison.json").read_text())["against"]
    found = {row["method"]: row for row in against if row["over"] == "users"}
    assert {method: row["seeds"] for method, row in found.items()} == {
        "firstshelf, graph removed": [0],
        "random": [0, 1],
        "tfidf": [0, 1],
    }
    assert found["tfidf"]["ratio"] == 1
    assert found["firstshelf, graph removed"]["ratio_low"] > 1
    assert found["firstshelf, graph removed"]["n"] < found["random"]["n"]
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results:begin -->\n<!-- results:end -->\n")
    run("table.py", "--results", tmp_path / "results", "--readme", readme)
    row = found["firstshelf, graph removed"]
    assert "| graph removed |" in readme.read_text()
    control = cells / "firstshelf-graph_removed-0.json"
    control.write_text(json.dumps({**json.loads(control.read_text()), "commit": "of before", "changed": False}))
    run("table.py", "--results", tmp_path / "results", "--readme", readme)
    assert "| graph removed (other code: of before) |" in readme.read_text()
    assert f"{row['ratio']:.3f} [{row['ratio_low']:.3f}, {row['ratio_high']:.3f}] |" in readme.read_text()
    (cells / "firstshelf-1.json").rename(tmp_path / "firstshelf-1.json")
    run("table.py", "--results", tmp_path / "results", "--readme", readme)
    assert re.search(r"\| TF-IDF \|[^\n]*\| – \|", readme.read_text()), "an interval is of other splits than its row"
    (tmp_path / "firstshelf-1.json").rename(cells / "firstshelf-1.json")
    (lists / "firstshelf-1.npz").rename(tmp_path / "firstshelf-1.npz")
    before = (cells / "comparison.json").read_text()
    assert "without the product's lists" in run("leaderboard.py", *places, "--compare-only")
    assert (cells / "comparison.json").read_text() == before
    (lists / "firstshelf-1.npz").write_bytes((lists / "random-1.npz").read_bytes())
    with pytest.raises(AssertionError, match="not of one measurement"):
        run("leaderboard.py", *places, "--compare-only")


def test_what_may_be_chance_over_the_items_is_marked(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(FOLDER))
    import table

    folder = tmp_path / "shop" / "cold"
    write_cells(folder, ("firstshelf", 0, {}, {"changed": True}), *((name, 0, {}, {}) for name in ("tfidf", "bm25")))
    interval = {"pool": "new", "seeds": [0], "ratio": 1.2, "ratio_low": 1.1, "ratio_high": 1.3}
    p_values = {("tfidf", "users"): 0.001, ("tfidf", "items"): 0.2, ("bm25", "users"): 0.001, ("bm25", "items"): 0.01}
    against = [{**interval, "method": name, "over": over, "p_holm": p} for (name, over), p in p_values.items()]
    (folder / "comparison.json").write_text(json.dumps({"against": against}))
    lines = table.tables(tmp_path).splitlines()
    assert "| TF-IDF | 0.1000 | 0.2000 | 1.200 [1.100, 1.300] † |" in lines
    assert "| BM25 | 0.1000 | 0.2000 | 1.200 [1.100, 1.300] |" in lines
    assert lines[0].endswith("firstshelf of c0ffee+)")
    assert sum(line.startswith("† ") for line in lines) == 1


def test_the_newest_comes_first_and_equal_ones_are_ties(modules):
    baselines, _, _ = modules
    items = [{"available_from": time} for time in (30, None, 20, 20)]
    case = SimpleNamespace(items=items, new=np.array([False, True, True, True]))
    scores = baselines.newest(case).score(np.array([0]), np.arange(4))[0]
    assert scores[0] > scores[2] == scores[3] > scores[1]
    with pytest.raises(baselines.NotDefinedError):
        baselines.newest(SimpleNamespace(items=items, new=np.array([False, True, False, False])))


def test_a_shuffled_control_is_no_method_of_all_items(modules):
    import leaderboard

    _, _, product = modules
    asked = {
        protocol: leaderboard._methods(SimpleNamespace(methods=None, protocol=protocol))
        for protocol in ("cold", "warm")
    }
    assert set(product.CONTROLS) <= set(asked["cold"])
    assert not set(product.CONTROLS) & set(asked["warm"])
    assert product.NAME in asked["warm"]


def test_other_files_are_split_anew(modules, data, tmp_path):
    _, cases, _ = modules
    shutil.copytree(data / "generated", tmp_path / "data" / "generated")
    folder = cases.make_split(tmp_path, tmp_path / "data", "generated", "cold", 0)
    (folder / "kept").touch()
    assert (cases.make_split(tmp_path, tmp_path / "data", "generated", "cold", 0) / "kept").exists()
    (tmp_path / "data" / "generated" / "note.txt").write_text("more")
    folder = cases.make_split(tmp_path, tmp_path / "data", "generated", "cold", 0)
    assert not (folder / "kept").exists()
    assert (folder / "split.json").exists()


def test_pooled_recall_counts_positives_not_users(monkeypatch):
    """User 0 has one of three positives in a list that ends early, user 1 the only one: 2 of 4, not (1/3 + 1) / 2."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import leaderboard

    relevant = np.zeros((2, 5), dtype=np.float32)
    relevant[0, [0, 1, 4]] = relevant[1, 2] = 1
    lists = np.array([[1, 3, -1], [0, 2, 3]])
    assert leaderboard.pooled_recall(lists, sparse.csr_array(relevant)) == 0.5


def write_cells(folder, *cells):
    """Result files as ``table.py`` reads them: (method, seed, means, more), all of one split of protocol ``items``."""
    folder.mkdir(parents=True)
    split = {"protocol": "items", "n_items": 9}
    pool = "warm only" if folder.name == "warm" else "new"
    for method, seed, means, more in cells:
        means = {"n_users": 7, "ndcg@20": 0.1, "recall@20": 0.2, **means}
        code = {"commit": "c0ffee", "changed": False}
        cell = {"method": method, "seed": seed, "split": split, "pools": {pool: {"means": means}}, **code, **more}
        (folder / f"{method}-{seed}.json").write_text(json.dumps(cell))


def test_cells_without_a_shortlist_stay_in_the_table(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(FOLDER))
    import table

    folder = tmp_path / "shop" / "cold"
    write_cells(folder, ("firstshelf", 0, {"recall@150 pooled": 0.654}, {}), ("tfidf", 0, {}, {}))
    lines = table.tables(tmp_path).splitlines()
    assert "| **firstshelf** | 0.1000 | 0.2000 | 65.4% |" in lines
    assert "| TF-IDF | 0.1000 | 0.2000 | – |" in lines
    (folder / "firstshelf-0.json").unlink()
    assert "| TF-IDF | 0.1000 | 0.2000 |" in table.tables(tmp_path).splitlines()


def test_published_rows_compare_over_the_same_splits(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(FOLDER))
    import table

    folder = tmp_path / "lastfm_kg" / "ctr"
    folder.mkdir(parents=True)
    aucs = {"firstshelf": (0.9, 0.8), "ease": (0.7, 0.5, 0.1), "popularity": (0.6,)}
    for method, values in aucs.items():
        for seed, auc in enumerate(values):
            cell = {
                "method": method,
                "seed": seed,
                "split": {"n_items": 9, "n_users": 9},
                "means": {"auc": auc, "f1": 0.5},
            }
            (folder / f"{method}-{seed}.json").write_text(json.dumps(cell))
    text = table.tables(tmp_path)
    assert "| EASE | 0.600 | 0.500 | measured, 2 splits, ± 0.141 |" in text
    assert "| **firstshelf** | 0.850 |" in text
    assert "most popular" not in text


def test_the_table_shows_how_new_and_known_items_mix(monkeypatch, tmp_path):
    """Means over the splits that have the entry, of the bounds too; the product's own row is compared with nothing."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import table

    ours = {"ndcg@20 new": 0.3, "ndcg@20 all": 0.2}
    entries = [
        {"new_share": 0.2, "ways": {"calibrated": ours, "other": {**ours, "ours minus it": bounds}}}
        for bounds in ([0.1, 0.05, 0.15], [0.02, -0.03, 0.07])
    ]
    cells = [("firstshelf", seed, {}, {"mixing": entry}) for seed, entry in enumerate(entries)]
    write_cells(tmp_path / "shop" / "warm", *cells, ("firstshelf", 2, {}, {}))
    lines = table.tables(tmp_path).splitlines()
    assert lines[-4].startswith("| new and known items in one list, 20% of it new | NDCG@20 of new positives |")
    assert lines[-2:] == [
        "| calibrated | 0.3000 | 0.2000 | – |",
        "| other | 0.3000 | 0.2000 | +0.0600 [+0.0100, +0.1100] |",
    ]


@pytest.fixture
def mixing(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import mixing

    return mixing


@pytest.fixture
def scored():
    """Log odds of 12 new and 48 known items for 50 users, who like new ones more or less; a tenth is hidden."""
    rng = np.random.default_rng(0)
    is_new = np.arange(60) < 12
    scores = rng.normal(size=(50, 60)) + np.where(is_new, rng.normal(size=(50, 1)), 1)
    scores[rng.random(scores.shape) < 0.1] = -np.inf
    return scores.astype(np.float32), is_new


def lists_of(mixing, scores, is_new, new_share, k=20):
    new, known = (mixing.best_of(scores, inside, k) for inside in (is_new, ~is_new))
    assert new[1].shape == (3, len(scores), k)
    return {
        way: mixing.merge(new[0], new[1][place], known[0], known[1][place], new_share, orders=orders)[0]
        for way, (place, orders) in mixing.WAYS.items()
    }


@pytest.mark.parametrize("new_share", [0.03, 0.2, 0.37])
def test_every_way_gives_new_items_the_share_and_shows_nothing_hidden(mixing, scored, new_share):
    scores, is_new = scored
    for lists in lists_of(mixing, scores, is_new, new_share).values():
        assert lists.shape == (50, 20)
        assert is_new[lists].sum() == round(new_share * lists.size)
        assert np.isfinite(np.take_along_axis(scores, lists, axis=1)).all()
        assert all(len(set(shown)) == 20 for shown in lists.tolist())


def test_calibrated_lists_are_those_of_the_scores_with_the_offset(mixing, scored):
    """It chooses them; their order is that of the scores alone, unless it is asked to order them."""
    scores, is_new = scored
    (new_nums, new), (known_nums, known) = (mixing.best_of(scores, inside, 20) for inside in (is_new, ~is_new))
    ordered, offset = mixing.merge(new_nums, new[0], known_nums, known[0], 0.2, orders=True)
    assert ordered.tolist() == np.argsort(-(scores + offset * is_new), axis=1)[:, :20].tolist()
    chosen, same_offset = mixing.merge(new_nums, new[0], known_nums, known[0], 0.2, orders=False)
    assert same_offset == offset
    assert np.sort(chosen).tolist() == np.sort(ordered).tolist()
    assert (np.diff(np.take_along_axis(scores, chosen, axis=1), axis=1) <= 0).all()


def test_only_the_calibrated_way_sees_who_likes_new_items(mixing, scored):
    """What is added to a user's new items changes nothing where they are normalised or ranked by themselves."""
    scores, is_new = scored
    liking = np.where(is_new, np.linspace(-4, 4, 50)[:, None], 0).astype(np.float32)
    before, after = (lists_of(mixing, given, is_new, 0.2) for given in (scores, scores + liking))
    same = {way: bool((before[way] == after[way]).all()) for way in mixing.WAYS}
    assert [way for way, unchanged in same.items() if not unchanged] == ["calibrated"]


def test_merits_of_one_stratum_by_hand(mixing):
    """Known items 1 to 3 score 4, 0 and 2: mean 2, deviation √(8/3). The other user has bought all but one of them."""
    scores = np.array([[9, 4, 0, 2], [9, -np.inf, 5, -np.inf]], dtype=np.float32)
    item_nums, merits = mixing.best_of(scores, np.array([False, True, True, True]), 4)
    assert item_nums.tolist() == [[1, 3, 2, -1], [2, -1, -1, -1]]
    nothing = -np.inf
    assert merits[0].tolist() == [[4, 2, 0, nothing], [5, nothing, nothing, nothing]]
    assert merits[1, 0] == pytest.approx([np.sqrt(1.5), 0, -np.sqrt(1.5), nothing])
    assert np.exp(merits[2, 0]) == pytest.approx([1 / 61, 1 / 62, 1 / 63, 0])
    assert merits[1:, 1, 0] == pytest.approx([0, -np.log(61)])


def test_a_list_is_filled_with_what_there_is(mixing):
    """No new item is asked for, but two slots of user 0, who can get one known item, take one, and so does user 1."""
    scores = np.array([[1, 2, 9], [3, -np.inf, -np.inf], [-np.inf] * 3], dtype=np.float32)
    for lists in lists_of(mixing, scores, np.array([True, True, False]), 0.0, k=2).values():
        assert sorted(lists[0].tolist()) == [1, 2]
        assert lists[1:].tolist() == [[0, -1], [-1, -1]]


def test_ways_are_compared_on_the_new_positives(mixing):
    """User 0 buys both new items, 0 and 1, and the scores say so; user 1 buys the two known ones.

    Half of all slots are for new items. Log odds give them all to user 0. By itself, each stratum looks alike for both
    users: each gets one new item, then one known.
    """
    scores = np.array([[5, 4, 0, -1], [-5, -6, 0, -1]], dtype=np.float32)
    relevant = sparse.csr_array(np.array([[1, 1, 0, 0], [0, 0, 1, 1]], dtype=np.float32))
    found = mixing.compare_ways([scores[:1], scores[1:]], relevant, np.array([True, True, False, False]), k=2)
    assert (found["new_share"], found["n_users"]) == (0.5, {"new": 1, "all": 2})
    first = 1 / (1 + 1 / np.log2(3))
    for way, numbers in found["ways"].items():
        ours = way == "calibrated"
        assert numbers["cold_share"] == 0.5
        assert numbers["ndcg@2 new"] == pytest.approx(1 if ours else first, abs=1e-5)
        assert numbers["ndcg@2 all"] == pytest.approx(1 if ours else 0.5, abs=1e-5)
        assert numbers.get("ours minus it") == (None if ours else pytest.approx([1 - first] * 3, abs=1e-5))


def test_a_warm_cell_of_the_product_says_how_new_and_known_items_mix(monkeypatch, mixing, data, tmp_path):
    monkeypatch.syspath_prepend(str(FOLDER))
    import leaderboard

    seen = []

    def compare_ways(scores, *arguments, **options):
        seen.extend(scores)
        return leaderboard_compares(seen, *arguments, **options)

    leaderboard_compares = leaderboard.compare_ways
    monkeypatch.setattr(leaderboard, "compare_ways", compare_ways)
    arguments = [data, "--set", "generated", "--protocol", "warm", "--seeds", 0, "--methods", "firstshelf"]
    arguments += ["--output", tmp_path / "results", "--work", tmp_path / "work"]
    monkeypatch.setattr(sys, "argv", ["leaderboard.py", *map(str, arguments)])
    leaderboard.main()
    cell = json.loads((tmp_path / "results" / "generated" / "warm" / "firstshelf-0.json").read_text())
    found, split = cell["mixing"], cell["split"]
    assert found["new_share"] == pytest.approx(split["n_cold_items"] / split["n_items"], abs=0.1)
    assert list(found["ways"]) == list(mixing.WAYS)
    for numbers in found["ways"].values():
        assert numbers["cold_share"] == pytest.approx(found["new_share"], abs=1e-3)
    with np.load(tmp_path / "work" / "lists" / "generated" / "warm" / "firstshelf-0.npz") as lists:
        scores = np.concatenate(seen)
        assert len(scores) == len(lists["all"]) == found["n_users"]["all"]
        # Without a share and without a clock, known items are taken to have more ahead of them than was rehearsed.
        scores += np.where(np.isin(np.arange(scores.shape[1]), lists["new"]), 0, np.log(0.5 / 0.2))
        shown = np.take_along_axis(scores, lists["all"][:, :20].astype(np.int64), axis=1)
        assert np.allclose(shown, -np.sort(-scores, axis=1)[:, :20], atol=1e-4)


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
    some = baselines._ease_weights(events.T @ events, 5.0, np.array([1, 7]))
    np.testing.assert_allclose(some, weights[:, [1, 7]], atol=1e-5)


def test_words_are_chosen_on_the_whole_case_whichever_method_comes_first(modules, data, tmp_path, monkeypatch):
    """An inner case that chose would hide items of its own; a tuned method that came first had chosen so."""
    _, cases, _ = modules
    import leaderboard

    asked = []
    inner = cases.Case.inner
    monkeypatch.setattr(cases.Case, "inner", lambda case: asked.append(case.truth.nnz) or inner(case))
    arguments = [data, "--set", "generated", "--seeds", 0, "--methods", "ease_carried"]
    arguments += ["--output", tmp_path / "results", "--work", tmp_path / "work"]
    monkeypatch.setattr(sys, "argv", ["leaderboard.py", *map(str, arguments)])
    leaderboard.main()
    case = cases.load_case(cases.make_split(tmp_path / "work", data, "generated", "cold", 0), 0)
    assert asked == [case.truth.nnz] * 2


def test_inner_cases_hide_nothing_of_the_truth(modules, data, tmp_path):
    baselines, cases, _ = modules
    case = cases.load_case(cases.make_split(tmp_path, data, "generated", "cold", 0), 0)
    assert not case.train.multiply(case.truth).nnz
    assert not case.n_events[case.new].any()
    for inner in (case.inner(), baselines.pair_split(case)):
        assert not inner.train.multiply(inner.truth).nnz
        assert not inner.truth.multiply(case.truth).nnz
        assert (inner.truth.nnz, inner.train.nnz) < (case.train.nnz, case.train.nnz)
    assert not (case.inner().new & case.new).any()


def test_lists_of_what_is_bought_together_are_read_without_the_new_items(modules, tmp_path):
    """What is in an also_bought list makes more users for the baselines, in the catalogue or not; views do not."""
    _, cases, _ = modules
    shop = tmp_path / "data" / "beauty"
    shop.mkdir(parents=True)
    events = [(f"u{user}", f"p{(user + step) % 20}", step) for user in range(20) for step in range(4)]
    with gzip.open(shop / "items.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"item_id": f"p{num}", "brand": "b"}) + "\n" for num in range(20))
    with gzip.open(shop / "events.csv.gz", "wt") as file:
        csv.writer(file).writerows([("user_id", "item_id", "position"), *events])
    pairs = [(f"p{num}", "also_bought", "asin:elsewhere") for num in range(20)]
    pairs += [(f"p{num}", "bought_together", f"p{(num + 1) % 20}") for num in range(20)]
    pairs += [(f"p{num}", "also_viewed", "asin:seen") for num in range(20)]
    with gzip.open(shop / "behavioural_edges.tsv.gz", "wt") as file:
        csv.writer(file, delimiter="\t").writerows([("head_item_id", "relation", "tail"), *pairs])
    case = cases.load_case(cases.make_split(tmp_path, tmp_path / "data", cases.LISTED, "cold", 0), 0)
    assert case.new.sum() == 4
    for one in (case, case.inner()):
        baskets = one.taken[len(one.users) :]
        known = int((one.n_events > 0).sum())
        assert baskets[np.diff(baskets.indptr) > 2].sum() == known, "all known items are bought with what is elsewhere"
        assert 0 < baskets.shape[0] <= known + 1, "what is only seen together makes no basket"
        assert not baskets[:, np.flatnonzero(one.n_events == 0)].nnz


_STUB = """
import json, sys
import numpy as np
peer, given, found, settings = sys.argv[1:]
with np.load(given) as arrays:
    shape, indptr, indices, facts = (arrays[name] for name in ("train.shape", "train.indptr", "train.indices", "facts"))
    n_items = int(shape[1])
    assert indptr[-1] == len(indices) and arrays["features.shape"][0] == n_items and facts.shape[0] == 3
if peer == "fails":
    sys.exit("no such peer")
if peer == "bm25":
    data, columns = np.ones(n_items), np.roll(np.arange(n_items), 1)
    csr = {"data": data, "indices": columns, "indptr": np.arange(n_items + 1), "shape": (n_items, n_items)}
    np.savez(found, **{f"similarity.{part}": array for part, array in csr.items()})
else:
    factors = json.loads(settings)["factors"]
    users, items = np.ones((shape[0], factors)), np.arange(n_items)[:, None] * np.ones(factors)
    np.savez(found, users=users, items=items)
"""


def test_a_peer_is_a_process_of_its_own_that_gives_factors_or_similarities(modules, data, tmp_path, monkeypatch):
    """Only the process is a stub: the packages themselves live in an environment that tests do not have."""
    import peers

    _, cases, _ = modules
    (tmp_path / "stub.py").write_text(_STUB)
    monkeypatch.setattr(peers, "_FIT", tmp_path / "stub.py")
    case = cases.load_case(cases.make_split(tmp_path, data, "generated", "warm", 0), 0)
    rows, columns = np.array([0, 2]), np.array([3, 4, 9])
    monkeypatch.setattr(peers, "PYTHON", tmp_path / "none")
    with pytest.raises(RuntimeError, match="run 'make peers'"):
        peers._fit(case, "als", {"factors": 4})
    monkeypatch.setattr(peers, "PYTHON", Path(sys.executable))
    scores = peers._fit(case, "als", {"factors": 4})(rows, columns)
    np.testing.assert_array_equal(scores, [[12, 16, 36]] * 2)
    scores = peers._fit(case, "bm25", {})(rows, columns)
    np.testing.assert_array_equal(scores, case.train[rows].toarray()[:, columns + 1])
    with pytest.raises(RuntimeError, match="no such peer"):
        peers._fit(case, "fails", {})
    heads, relations, entities = peers._triples(case)
    assert len(set(entities)) == case.groups.shape[1]
    assert np.bincount(heads, minlength=len(case.items)).tolist() == np.diff(case.groups.indptr).tolist()
    assert relations.max() < 10


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
    silent, _ = product.facts_removed(shop.items, shop.events, rng)
    assert all(
        new == {name: value for name, value in old.items() if name not in {"category_path", "brand", "attributes"}}
        for old, new in zip(shop.items, silent, strict=True)
    )
    names_alone = [{"item_id": item["item_id"], "title": item["title"]} for item in shop.items]
    for control in (product.graph_removed, product.facts_removed, product.graph_shuffled):
        with pytest.raises(product.ControlNotDefinedError, match="no category, brand or attribute"):
            control(names_alone, shop.events, rng)
    facts_alone = [{"item_id": item["item_id"], "brand": "any"} for item in shop.items]
    with pytest.raises(product.ControlNotDefinedError, match="nothing but facts"):
        product.facts_removed(facts_alone, shop.events, rng)
    with pytest.raises(product.ControlNotDefinedError, match="no title or description"):
        product.text_removed(facts_alone, shop.events, rng)
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


def test_the_whole_leaderboard_goes_on_after_a_failed_step(modules, data, tmp_path, monkeypatch, capfd):
    import everything

    cells = ["leaderboard.py", "--cells-only", "--set", "generated", "--seeds", "0", "--methods"]
    monkeypatch.setattr(everything, "SPLITS", (("generated", "cold", ("0",)),))
    monkeypatch.setattr(everything, "steps", lambda: [[*cells, "no such method"], [*cells, "random", "tfidf"]])
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results:begin -->\n<!-- results:end -->\n")
    places = ["--output", tmp_path / "results", "--work", tmp_path / "work", "--readme", readme]
    monkeypatch.setattr(sys, "argv", ["everything.py", *map(str, [data, *places])])
    with pytest.raises(SystemExit, match=r"failed: .*no such method$"):
        everything.main()
    assert "TF-IDF" in readme.read_text()
    said = capfd.readouterr().err
    assert "no comparison without a cell of the product" in said
    assert "[3 of 3 steps" in said


def test_the_whole_leaderboard_measures_every_training_that_the_tables_show(modules):
    """A training whose cell was measured by hand and that the command would leave out is found here."""
    import everything

    steps = everything.steps()
    assert len({tuple(step) for step in steps}) == len(steps)
    files = [
        *(FOLDER / "results").glob("*/cold/firstshelf*.json"),
        *(FOLDER / "results").glob("*/warm/firstshelf*.json"),
    ]
    cells = [json.loads(file.read_text()) for file in files]
    assert len(cells) > 5
    for cell in cells:
        split = ["--set", cell["set"], "--protocol", cell["protocol"], "--seeds", str(cell["seed"])]
        assert ["leaderboard.py", "--cells-only", *split, "--methods", cell["method"]] in steps
