"""Two published benchmarks, each on the split that others used: python benchmarks/quality/published.py DATA_FOLDER

``beauty``: Amazon Beauty with the train/test split of PGPR (Xian et al. 2019), the best 10 of all items for every user,
the user's own left out. ``lastfm_kg``: Last.FM with its knowledge graph, a random 6:2:2 split of labelled pairs as in
KGCN (Wang et al. 2019), the test pairs told apart by their scores.

The product runs as the commands that users run; the pairs, for which there is no command, are scored by
``Engine.score``. Every cell becomes a JSON file under --output as soon as it is measured, and a cell that is there for
the same data is not measured again, so the command can be stopped and started. ``table.py`` puts the cells beside the
published figures. Nothing is tuned on a test pair.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from baselines import METHODS, Scorer, _ease_scores, _itemknn_scores, rank
from cases import Case
from cells import is_done, provenance, say, write
from product import NAME, run_product, train_product
from scipy import sparse
from sklearn.metrics import precision_recall_curve, roc_auc_score

from recommender import Engine
from recommender.metrics import hits, paired_bootstrap, ranking_metrics
from recommender.splits import read_shop

if TYPE_CHECKING:
    from numpy.typing import NDArray

K: Final = 10
_N_RESAMPLES: Final = 1000
BASELINES: Final = ("popularity", "itemknn", "ease")


@dataclass(frozen=True)
class Benchmark:
    """How a set is measured: ``measure(options, folder, work, method, seed)`` -> the numbers of a cell."""

    name: str
    protocol: str
    seeds: tuple[int, ...]
    files: tuple[str, ...]
    measure: Callable[[Path, Path, str, int], dict[str, Any]]

    def data_hash(self, folder: Path, seed: int) -> str:
        """Of the files that are read, and of the seed that splits them."""
        digest = hashlib.sha256(str(seed).encode())
        for file in self.files:
            digest.update((folder / file).read_bytes())
        return digest.hexdigest()[:16]


def main() -> None:
    options = _options()
    for name in options.sets:
        benchmark, folder = BENCHMARKS[name], options.data / name
        for seed in options.seeds or benchmark.seeds:
            split = {"data_hash": benchmark.data_hash(folder, seed)}
            for method in options.methods:
                cell = options.output / name / benchmark.protocol / f"{method}-{seed}.json"
                title = f"{name} {benchmark.protocol} seed {seed}  {method:12s}"
                if not options.again and is_done(cell, split["data_hash"]):
                    say(f"{title} is there")
                    continue
                say(f"{title} ...")
                started = time.perf_counter()
                about = {"set": name, "protocol": benchmark.protocol, "method": method, "seed": seed, "split": split}
                about |= provenance(f"python benchmarks/quality/published.py DATA_FOLDER --set {name} --seeds {seed}")
                numbers = benchmark.measure(
                    folder, options.work / "published" / f"{name}-{method}-{seed}", method, seed
                )
                split_facts = {**split, **numbers.pop("split")}
                seconds = round(time.perf_counter() - started, 1)
                write(cell, {**about, "split": split_facts, "seconds": seconds, **numbers})
                means = "  ".join(f"{measure} {value:.4f}" for measure, value in numbers["means"].items())
                say(f"{title} {means}  {seconds} s")


# ---------------------------------------------------------------- Beauty, the split of PGPR


def measure_beauty(folder: Path, work: Path, method: str, seed: int) -> dict[str, Any]:
    """Lists for every user, by the product or a baseline. ``seed`` is that of training and ties: the split is given."""
    case = read_beauty(folder, seed)
    users = np.arange(len(case.users))
    result: dict[str, Any] = {}
    if method == NAME:
        shop_folder = work.with_name(work.name + "-shop")
        _write_shop(shop_folder, case.items, case.users, case.train)
        run = run_product(case, shop_folder, work, method=method, pools={"all": users}, seed=seed, k=K)
        lists = run.lists["all"]
        result |= {"steps": run.steps, "training": run.training}
    else:
        fitted = METHODS[method](case)
        lists = rank(case, fitted.score, users, np.ones(len(case.items), dtype=bool), K)
        result["chosen"] = fitted.chosen
    values = list_metrics(lists, case.truth)
    intervals = {
        name: paired_bootstrap(each, np.zeros_like(each), n_resamples=_N_RESAMPLES) for name, each in values.items()
    }
    return {
        **result,
        "split": {
            "n_users": len(case.users),
            "n_items": len(case.items),
            "n_training_events": int(case.train.nnz),
            "n_test_events": int(case.truth.nnz),
        },
        "means": {name: round(float(each.mean()), 5) for name, each in values.items()},
        "intervals": {
            name: [round(found.difference_low, 5), round(found.difference_high, 5)] for name, found in intervals.items()
        },
        "filled": round(float((lists >= 0).mean()), 5),
    }


def read_beauty(folder: Path, seed: int) -> Case:
    """Categories and brands, the training pairs and the test pairs. No co-purchase edge of the published graph is read.

    The published files order a user's items by nothing that is known: the shop gets no ``position``.
    """
    items, renamed = _renamed(read_shop(folder).items, seed)
    item_nums = {item_id: num for num, item_id in enumerate(renamed)}
    train, test = (_read_pgpr(folder / f"pgpr_{part}.tsv.gz") for part in ("train", "test"))
    users = sorted(test)
    strangers = [user for user in users if user not in train]
    if strangers:
        raise ValueError(f"{len(strangers)} test users have no training line, for example {strangers[:3]}")

    def matrix(lists: dict[str, list[str]]) -> sparse.csr_array:
        pairs = [(row, item_nums[item_id]) for row, user in enumerate(users) for item_id in lists[user]]
        return _matrix(np.array(pairs), (len(users), len(items)))

    seen = matrix(train)
    return Case(items, users, seen, matrix(test), np.bincount(seen.indices, minlength=len(items)) == 0, seed)


def _read_pgpr(file: Path) -> dict[str, list[str]]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [line.rstrip("\n").split("\t") for line in lines]
    return {user: item_ids.split() for user, item_ids in rows}


def list_metrics(lists: NDArray[np.int64], relevant: sparse.csr_array) -> dict[str, NDArray[np.float64]]:
    """NDCG, recall, hit rate and precision at 10 in %, one number a user, as PGPR's and CAFE's own code counts them.

    That is ``evaluate`` in PGPR's test_agent.py and ``evaluate_with_insufficient_pred`` in CAFE's
    execute_neural_symbol.py: gains 1 / log2(1 + rank), the ideal list has min(test items, 10) hits, recall is over all
    test items of the user, HR is 1 where there is any hit, precision is hits / 10; all are means over test users,
    × 100. PGPR leaves out users for whom it finds fewer than 10 items; CAFE, and this, count every test user, and a
    slot without an item as a miss.
    """
    values = ranking_metrics(lists, relevant, ks=[K])
    return {
        f"ndcg@{K}": 100 * values[f"ndcg@{K}"],
        f"recall@{K}": 100 * values[f"recall@{K}"],
        f"hr@{K}": 100 * values[f"hit@{K}"],
        f"precision@{K}": 100 * hits(lists, relevant).sum(axis=1) / K,
    }


# ---------------------------------------------------------------- Last.FM, labelled pairs


@dataclass(frozen=True, eq=False)
class LabelledPairs:
    """A split of (user, item, label) rows, and the shop that may be known: the training rows with label 1, the facts.

    Pairs have shape (N, 3): rows of ``case.users``, rows of ``case.items``, 0 or 1.
    """

    case: Case
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


def measure_lastfm(folder: Path, work: Path, method: str, seed: int) -> dict[str, Any]:
    """AUC of the test pairs, and F1 at the threshold that is best on the validation pairs."""
    pairs = read_lastfm(folder, seed)
    result: dict[str, Any] = {}
    if method == NAME:
        shutil.rmtree(work, ignore_errors=True)
        _write_shop(work / "shop", pairs.case.items, pairs.case.users, pairs.case.train)
        workspace, steps, training = train_product(work / "shop", work, seed=seed)
        started = time.perf_counter()
        validation, test = product_scores(pairs, workspace)
        steps["score"] = {"seconds": round(time.perf_counter() - started, 1)}
        result |= {"steps": steps, "training": training}
        shutil.rmtree(workspace)
    else:
        scorer, result["chosen"] = _pair_baseline(pairs, method)
        validation, test = (_scores_of(scorer, part) for part in (pairs.validation, pairs.test))
    labels = pairs.test[:, 2]
    threshold = best_threshold(pairs.validation[:, 2], validation)
    cold = pairs.case.new[pairs.test[:, 1]]
    return {
        **result,
        "split": {
            "n_users": len(pairs.case.users),
            "n_items": len(pairs.case.items),
            "n_training_events": int(pairs.case.train.nnz),
            "n_validation_pairs": len(pairs.validation),
            "n_test_pairs": len(pairs.test),
        },
        "means": {"auc": round(float(roc_auc_score(labels, test)), 5), "f1": round(f1(labels, test >= threshold), 5)},
        "intervals": _pair_intervals(pairs.test, test, threshold, seed),
        "threshold": threshold,
        "validation": {"auc": round(float(roc_auc_score(pairs.validation[:, 2], validation)), 5)},
        "strata": {
            name: {
                "n_pairs": int(inside.sum()),
                "positive_share": round(float(labels[inside].mean()), 5),
                "auc": round(float(roc_auc_score(labels[inside], test[inside])), 5),
            }
            for name, inside in (("new items", cold), ("known items", ~cold))
        },
    }


def read_lastfm(folder: Path, seed: int) -> LabelledPairs:
    """Split the rows 6:2:2 at random, as ``dataset_split`` in KGCN's data_loader.py does.

    Pairs with label 0 were drawn from what a user never played; a shop has no such rows, so they are no events. Facts
    become attributes: the relation is the name, the tail a value. Their letters keep them from being read as numbers.
    """
    ratings, facts = (_read_numbers(folder / file) for file in ("ratings_final.txt.gz", "kg_final.txt.gz"))
    n_users, n_items = ratings[:, 0].max() + 1, ratings[:, 1].max() + 1
    attributes: list[dict[str, list[str]]] = [{} for _ in range(n_items)]
    for head, relation, tail in facts[facts[:, 0] < n_items].tolist():
        attributes[head].setdefault(f"relation {relation}", []).append(f"entity{tail}")
    catalogue = [{"item_id": str(num), "attributes": found} for num, found in enumerate(attributes)]
    items, renamed = _renamed(catalogue, seed)
    place = np.empty(n_items, dtype=np.int64)
    place[[int(item_id) for item_id in renamed]] = np.arange(n_items)
    ratings[:, 1] = place[ratings[:, 1]]
    order = np.random.default_rng(seed).permutation(len(ratings))
    fifth = int(len(ratings) * 0.2)
    validation, test, rest = (ratings[part] for part in np.split(order, [fifth, 2 * fifth]))
    train = _matrix(rest[rest[:, 2] == 1][:, :2], (n_users, n_items))
    new = np.bincount(train.indices, minlength=n_items) == 0
    users = [f"user{num}" for num in range(n_users)]
    return LabelledPairs(Case(items, users, train, sparse.csr_array(train.shape), new, seed), validation, test)


def product_scores(pairs: LabelledPairs, workspace: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``Engine.score`` of the validation and of the test pairs, shapes (N,)."""
    case = pairs.case
    both = np.concatenate([pairs.validation, pairs.test])
    scores = np.empty(len(both))
    with Engine.open(workspace) as engine:
        for user in np.unique(both[:, 0]):
            rows = np.flatnonzero(both[:, 0] == user)
            found = engine.score(case.users[user], [case.items[num]["item_id"] for num in both[rows, 1]])
            scores[rows] = [row.score for row in found]
    return scores[: len(pairs.validation)], scores[len(pairs.validation) :]


def best_threshold(labels: NDArray[np.int64], scores: NDArray[np.float64]) -> float:
    """The score from which on to say 1, so that F1 is best.

    The published code says 1 from .5 on, for models that were trained on as many pairs with label 0 as with label 1.
    The product's scores are odds of an event, which are far below that.
    """
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    quality = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return float(thresholds[np.argmax(quality[:-1])])


def f1(labels: NDArray[np.int64], said: NDArray[np.bool_], weights: NDArray[np.float64] | float = 1.0) -> float:
    """2 · true positives / (said 1 + are 1)."""
    return float(2 * (weights * labels * said).sum() / (weights * (labels + said)).sum())


def _pair_intervals(
    pairs: NDArray[np.int64], scores: NDArray[np.float64], threshold: float, seed: int
) -> dict[str, list[float]]:
    """95 % percentile bootstrap over users."""
    rng = np.random.default_rng(seed)
    n_users = pairs[:, 0].max() + 1
    labels, drawn = pairs[:, 2], []
    for _ in range(_N_RESAMPLES):
        weights = np.bincount(rng.integers(n_users, size=n_users), minlength=n_users)[pairs[:, 0]].astype(float)
        auc = roc_auc_score(labels, scores, sample_weight=weights)
        drawn.append((auc, f1(labels, scores >= threshold, weights)))
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return {name: [round(float(low[n]), 5), round(float(high[n]), 5)] for n, name in enumerate(("auc", "f1"))}


def _pair_baseline(pairs: LabelledPairs, method: str) -> tuple[Scorer, dict[str, Any]]:
    """A baseline with the setting that has the best AUC on validation pairs."""
    makers: dict[str, tuple[Callable[[Case, Any], Scorer], Sequence[Any]]] = {
        "popularity": (lambda case, _: METHODS["popularity"](case).score, (None,)),
        "itemknn": (_itemknn_scores, (20, 50, 100, 400, 1600)),
        "ease": (_ease_scores, (20.0, 50.0, 150.0, 400.0, 1000.0, 3000.0)),
    }
    make, grid = makers[method]
    labels = pairs.validation[:, 2]
    quality = [roc_auc_score(labels, _scores_of(make(pairs.case, setting), pairs.validation)) for setting in grid]
    best = int(np.argmax(quality))
    return make(pairs.case, grid[best]), {"setting": grid[best], "validation_auc": round(float(quality[best]), 4)}


def _scores_of(scorer: Scorer, pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    n_items = pairs[:, 1].max() + 1
    users, rows = np.unique(pairs[:, 0], return_inverse=True)
    return scorer(users, np.arange(n_items))[rows, pairs[:, 1]].astype(np.float64)


# ---------------------------------------------------------------- parts


def _renamed(items: list[dict[str, Any]], seed: int) -> tuple[list[dict[str, Any]], list[str]]:
    """The items in random order under new ids, and their old ids: order and ids of a catalogue tell popularity."""
    items = list(items)
    random.Random(f"{seed} published").shuffle(items)
    return [{**item, "item_id": f"item{num:05d}"} for num, item in enumerate(items)], [
        item["item_id"] for item in items
    ]


def _matrix(pairs: NDArray[np.int64], shape: tuple[int, int]) -> sparse.csr_array:
    """Binary, from (row, column) pairs of shape (N, 2)."""
    matrix = sparse.csr_array((np.ones(len(pairs), dtype=np.float32), tuple(pairs.T)), shape=shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def _write_shop(folder: Path, items: list[dict[str, Any]], users: Sequence[str], train: sparse.csr_array) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    (folder / "items.jsonl").write_text(lines, encoding="utf-8")
    pairs = zip(*train.nonzero(), strict=True)
    events = "".join(f"{users[row]},{items[num]['item_id']}\n" for row, num in pairs)
    (folder / "events.csv").write_text("user_id,item_id\n" + events, encoding="utf-8")


def _read_numbers(file: Path) -> NDArray[np.int64]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return np.loadtxt(lines, dtype=np.int64, ndmin=2)


BENCHMARKS: Final = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("lastfm_kg", "ctr", (0, 1, 2, 3, 4), ("ratings_final.txt.gz", "kg_final.txt.gz"), measure_lastfm),
        Benchmark("beauty", "pgpr", (0,), ("items.jsonl.gz", "pgpr_train.tsv.gz", "pgpr_test.tsv.gz"), measure_beauty),
    )
}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with one folder a set")
    parser.add_argument("--set", dest="sets", nargs="+", choices=list(BENCHMARKS), default=list(BENCHMARKS))
    parser.add_argument("--seeds", nargs="+", type=int, help="by default 0 to 4 for lastfm_kg, 0 for beauty")
    parser.add_argument("--methods", nargs="+", choices=[*BASELINES, NAME], default=[*BASELINES, NAME])
    parser.add_argument("--again", action="store_true", help="measure cells that are there once more")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/quality/results"))
    parser.add_argument("--work", type=Path, default=Path(".cache/quality"), help="shops, logs; may be deleted")
    return parser.parse_args()


if __name__ == "__main__":
    main()
