"""The leaderboard: python benchmarks/quality/leaderboard.py DATA_FOLDER --set scientific --seeds 0 1 2 3 4

DATA_FOLDER holds one folder a set (cases.py says how each is read). Every cell, one method on one split, becomes a JSON
file under --output as soon as it is measured; a cell that is there for the same data is not measured again, so the
command can be stopped and started. The lists behind the cells are kept under --work, and the comparisons (paired
intervals over users and over new items, Holm over methods) are made from them at the end.

Protocol "cold" hides what the set's split hides and ranks new items only; protocol "warm" (--protocol warm) hides a
tenth of the other pairs too and ranks all items. A set that is split by time has one split for both.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from baselines import METHODS, WARM_ONLY, NotDefinedError, _tfidf, rank
from cases import SETS, Case, load_case, make_split
from cells import is_done, provenance, say, write
from mixing import compare_ways, product_scores
from peers import PEERS
from peers import PYTHON as PEERS_PYTHON
from product import CONTROLS, NAME, ControlNotDefinedError, run_product
from scipy import sparse
from trained import TRAINED

from recommender.evaluation import measure
from recommender.metrics import hits, holm, ndcg_by_item, paired_bootstrap, ranking_metrics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

BASELINES: Final = {**METHODS, **TRAINED, **PEERS}
REFERENCE: Final = "as_if_warm"
K: Final = 20
_LONG: Final = 150
"""Slots asked for: a shortlist that another ranker would start from. The first 50 are measured by rank, and the rest
lets warm items be looked at alone."""
_KEPT: Final = 50
_ROUNDED: Final = 1e-5
"""How far a mean may be from the rounded one of its cell."""


def main() -> None:
    options = _options()
    for name in options.sets:
        for seed in () if options.compare_only else options.seeds:
            folder = make_split(options.work, options.data, name, options.protocol, seed)
            case = None
            for method in _methods(options):
                cell = (
                    options.output / name / options.protocol / f"{method.replace(', ', '-').replace(' ', '_')}-{seed}"
                )
                cell = cell.with_name(cell.name + ".json")
                facts = json.loads((folder / "split.json").read_text(encoding="utf-8"))
                if not options.again and is_done(cell, facts["data_hash"]):
                    say(f"{name} {options.protocol} seed {seed}  {method:32s} is there")
                    continue
                if case is None:
                    case = load_case(folder, seed)
                    _tfidf(case)  # Its words are chosen on this case; an inner one, asked first, has fewer items.
                _measure_cell(options, case, folder, name, method, seed, cell, facts)
        if not options.cells_only:
            _compare(options, name)


def _measure_cell(
    options: argparse.Namespace,
    case: Case,
    folder: Path,
    name: str,
    method: str,
    seed: int,
    cell: Path,
    facts: dict[str, Any],
) -> None:
    pools = _pools(case, options.protocol)
    users = {pool: case.test_users(shown) for pool, shown in pools.items()}
    started = time.perf_counter()
    result: dict[str, Any] = {
        "set": name,
        "protocol": options.protocol,
        "method": method,
        "seed": seed,
        "split": facts,
        **provenance(_command_line(options)),
    }
    try:
        if method == NAME or method in CONTROLS:
            work = (
                options.work
                / "runs"
                / f"{name}-{options.protocol}-{method.replace(', ', '-').replace(' ', '_')}-{seed}"
            )

            def mix(workspace: Path) -> None:
                scores = product_scores(case, workspace, users["all"])
                result["mixing"] = compare_ways(scores, case.truth[users["all"]], case.new, k=K)

            look = mix if method == NAME and "all" in users else None
            run = run_product(case, folder / "shop", work, method=method, pools=users, seed=seed, k=_LONG, look=look)
            lists = run.lists
            result |= {"steps": run.steps, "training": run.training}
        else:
            fitted = BASELINES[method](case)
            fit_seconds = time.perf_counter() - started
            lists = {pool: rank(case, fitted.score, users[pool], shown, _LONG) for pool, shown in pools.items()}
            result |= {"chosen": fitted.chosen, "fit_seconds": round(fit_seconds, 1)}
    except (NotDefinedError, ControlNotDefinedError) as error:
        write(cell, {**result, "not_defined": str(error)})
        say(f"{name} {options.protocol} seed {seed}  {method:32s} not defined: {error}")
        return
    result["seconds"] = round(time.perf_counter() - started, 1)
    result["pools"] = {}
    for pool, shown in pools.items():
        result["pools"][pool] = _numbers(case, lists[pool], users[pool], shown)
    if "all" in lists:
        result["pools"]["warm only"] = _warm_only(case, lists["all"], users["all"])
    kept = options.work / "lists" / name / options.protocol
    kept.mkdir(parents=True, exist_ok=True)
    begun = kept / f"{cell.stem}.part"
    with begun.open("wb") as file:
        np.savez_compressed(file, **{pool: values.astype(np.int32) for pool, values in lists.items()})
    begun.replace(kept / f"{cell.stem}.npz")
    write(cell, result)  # last: a cell that is there has its lists
    shown = "  ".join(f"{pool} {numbers['means'][f'ndcg@{K}']:.4f}" for pool, numbers in result["pools"].items())
    say(f"{name} {options.protocol} seed {seed}  {method:32s} NDCG@{K} {shown}  {result['seconds']} s")


def _pools(case: Case, protocol: str) -> dict[str, NDArray[np.bool_]]:
    everything = np.ones(len(case.items), dtype=bool)
    return {"new": case.new} if protocol == "cold" else {"new": case.new, "all": everything}


def _numbers(
    case: Case, lists: NDArray[np.int64], users: NDArray[np.int64], shown: NDArray[np.bool_]
) -> dict[str, Any]:
    relevant = _within(case.truth[users], shown)
    means = measure(
        lists[:, :_KEPT],
        relevant,
        histories=case.train[users],
        n_events=case.n_events,
        n_customers=int((np.diff(case.train.indptr) > 0).sum()),
        pool=shown,
        vectors=_tfidf(case),
        categories=case.groups,
        k=K,
    )
    buckets = means.pop("buckets")
    means[f"recall@{_LONG} pooled"] = pooled_recall(lists, relevant)
    values = ranking_metrics(lists[:, :_KEPT], relevant)[f"ndcg@{K}"]
    interval = paired_bootstrap(values, np.zeros_like(values), n_resamples=1000)
    gains, counts = ndcg_by_item(lists, relevant, K)
    by_item = paired_bootstrap(gains, np.zeros_like(gains), counts=counts, n_resamples=1000)
    return {
        "means": {name: None if value is None else round(value, 5) for name, value in means.items()},
        f"ndcg@{K} interval": {
            "over users": [round(interval.difference_low, 5), round(interval.difference_high, 5)],
            "over items": [round(by_item.difference_low, 5), round(by_item.difference_high, 5)],
        },
        "buckets": {
            bucket: {measure_: round(value, 5) for measure_, value in numbers.items()}
            for bucket, numbers in buckets.items()
        },
    }


def pooled_recall(lists: NDArray[np.int64], relevant: sparse.csr_array) -> float:
    """Share of all positives, those of all users counted together, that are in their users' lists.

    Args:
        lists: -1 padded, shape (B, K).
        relevant: non-zero where the item is a positive of the user, shape (B, I).
    """
    return float(hits(lists, relevant).sum() / relevant.count_nonzero())


def _warm_only(case: Case, lists: NDArray[np.int64], users: NDArray[np.int64]) -> dict[str, Any]:
    """The lists of all items without their new ones, against the warm positives: the collaborative comparison."""
    filtered = _drop_new(lists, case.new)[:, :_KEPT]
    relevant = _within(case.truth[users], ~case.new)
    tested = np.flatnonzero(np.diff(relevant.indptr))
    values = ranking_metrics(filtered[tested], sparse.csr_array(relevant[tested]))
    means = {name: round(float(value.mean()), 5) for name, value in values.items()}
    full = float((filtered[tested, :K] >= 0).mean())
    return {"means": {**means, "n_users": len(tested), "filled": round(full, 5)}}


def _drop_new(lists: NDArray[np.int64], new: NDArray[np.bool_]) -> NDArray[np.int64]:
    dropped = (lists < 0) | new[lists]
    order = np.argsort(dropped, axis=1, kind="stable")
    return np.where(np.take_along_axis(dropped, order, axis=1), -1, np.take_along_axis(lists, order, axis=1))


def _within(truth: sparse.csr_array, shown: NDArray[np.bool_]) -> sparse.csr_array:
    kept = sparse.csr_array(truth @ sparse.diags_array(shown.astype(np.float32)))
    kept.eliminate_zeros()
    return kept


def _compare(options: argparse.Namespace, name: str) -> None:
    """Paired intervals of NDCG@20 of the product against each other method, on all splits of the product's cells."""
    folder = options.output / name / options.protocol
    cells: dict[str, dict[int, dict[str, Any]]] = {}
    lacking: list[str] = []
    for file in sorted(folder.glob("*.json")):
        if file.name == "comparison.json":
            continue
        cell = json.loads(file.read_text(encoding="utf-8"))
        lists = options.work / "lists" / name / options.protocol / f"{file.stem}.npz"
        if "pools" in cell and lists.exists():
            cells.setdefault(cell["method"], {})[cell["seed"]] = {"cell": cell, "lists": lists}
        elif "pools" in cell:
            lacking.append(file.stem)
    if lacking:
        say(f"{name} {options.protocol}: no lists under {options.work} of {', '.join(lacking)}; they are not compared")
    if any(stem.rpartition("-")[0] == NAME for stem in lacking):
        say(f"{name} {options.protocol}: no comparison without the product's lists; measure them with --again")
        return
    ours = cells.get(NAME)
    if not ours:
        say(f"{name} {options.protocol}: no comparison without a cell of the product")
        return
    seeds = sorted(ours)
    compared: list[dict[str, Any]] = []
    # A baseline is compared on all of the product's splits or not at all, a control on those that it has.
    shared = {method: tuple(seed for seed in seeds if seed in found) for method, found in cells.items()}
    shared = {method: on for method, on in shared.items() if len(on) == len(seeds) or (on and method in CONTROLS)}
    product = {on: _gather(options, name, ours, on) for on in set(shared.values())}
    scores = {method: _gather(options, name, cells[method], on) for method, on in shared.items() if method != NAME}
    for pool in product[shared[NAME]]:
        for over in ("users", "items"):
            intervals = {}
            for method, theirs in scores.items():
                if (pool == "new" and method in WARM_ONLY) or pool not in theirs:
                    continue
                mine, counts = product[shared[method]][pool][over]
                intervals[method] = paired_bootstrap(mine, theirs[pool][over][0], counts=counts)
            corrected = holm({method: interval.p_value for method, interval in intervals.items()})
            for method, interval in intervals.items():
                numbers = {
                    field: value if value is None else round(value, 5)
                    for field, value in interval.to_json().items()
                    if field not in {"level", "n"}
                }
                compared.append(
                    {
                        "method": method,
                        "seeds": list(shared[method]),
                        "pool": pool,
                        "over": over,
                        "n": interval.n,
                        **numbers,
                        "p_holm": corrected[method],
                    }
                )
    write(folder / "comparison.json", {"set": name, "protocol": options.protocol, "seeds": seeds, "against": compared})
    say(f"{name} {options.protocol}: {len(compared)} comparisons with the product, seeds {seeds}")


def _gather(
    options: argparse.Namespace, name: str, found: dict[int, dict[str, Any]], seeds: Sequence[int]
) -> dict[str, dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]]:
    """Pool → over → (sums of NDCG@20, counts) of the same users, and of the same items by their original ids."""
    sums: dict[str, dict[str, dict[str, list[float]]]] = {}
    for seed in seeds:
        case, originals = _case(options, name, seed)
        cell = found[seed]["cell"]
        with np.load(found[seed]["lists"]) as stored:
            lists = {pool: stored[pool].astype(np.int64) for pool in stored.files}
        pools = _pools(case, options.protocol)
        views = {pool: (lists[pool], pools[pool], case.test_users(pools[pool])) for pool in lists}
        if "all" in views:
            views["warm only"] = (_drop_new(lists["all"], case.new), ~case.new, views["all"][2])
        for pool, (shown, inside, users) in views.items():
            relevant = _within(case.truth[users], inside)
            tested = np.flatnonzero(np.diff(relevant.indptr))
            shown, relevant, users = shown[tested], sparse.csr_array(relevant[tested]), users[tested]
            values = ranking_metrics(shown, relevant, [K])[f"ndcg@{K}"]
            measured = cell["pools"][pool]["means"][f"ndcg@{K}"]
            if abs(values.mean() - measured) > _ROUNDED:
                raise SystemExit(
                    f"{found[seed]['lists']} gives NDCG@{K} {values.mean():.5f} where the cell of {cell['method']}, "
                    f"seed {seed}, has {measured}: they are not of one measurement; measure it with --again"
                )
            gains, parts = ndcg_by_item(shown, relevant, K)
            sides = sums.setdefault(pool, {"users": {}, "items": {}})
            for user, value in zip(users, values, strict=True):
                both = sides["users"].setdefault(case.users[user], [0.0, 0.0])
                both[0] += value
                both[1] += 1
            for num in np.flatnonzero(parts):
                both = sides["items"].setdefault(originals[num], [0.0, 0.0])
                both[0] += gains[num]
                both[1] += parts[num]
    return {
        pool: {over: tuple(np.array([units[key] for key in sorted(units)]).T) for over, units in sides.items()}
        for pool, sides in sums.items()
    }


_CASES: Final[dict[tuple[str, int], tuple[Case, list[str]]]] = {}


def _case(options: argparse.Namespace, name: str, seed: int) -> tuple[Case, list[str]]:
    if (name, seed) not in _CASES:
        folder = make_split(options.work, options.data, name, options.protocol, seed)
        case = load_case(folder, seed)
        import polars as pl

        renamed = dict(pl.read_csv(folder / "ids.csv", infer_schema=False).rows())
        _CASES[name, seed] = case, [renamed[item["item_id"]] for item in case.items]
    return _CASES[name, seed]


def _methods(options: argparse.Namespace) -> list[str]:
    unfit = WARM_ONLY if options.protocol == "cold" else {REFERENCE}
    groups = {
        "baselines": [method for method in METHODS if method not in unfit],
        "trained": [method for method in TRAINED if method not in unfit],
        "peers": [method for method in PEERS if method not in unfit],
        "product": [NAME],
        "controls": list(CONTROLS),
    }
    # Of all items, one whose events were shuffled may show what its customer has: it does not know.
    asked = options.methods or [group for group in groups if group != "controls" or options.protocol == "cold"]
    if "peers" in asked and not PEERS_PYTHON.exists():
        say("peers are left out: they have no environment yet; run 'make peers'")
        groups["peers"] = []
    known = [*groups, *BASELINES, NAME, *CONTROLS]
    unknown = [method for method in asked if method not in known]
    if unknown:
        raise SystemExit(f"unknown methods {unknown}; there are {known}")
    return list(dict.fromkeys(method for name in asked for method in groups.get(name, [name])))


def _command_line(options: argparse.Namespace) -> str:
    seeds = " ".join(str(seed) for seed in options.seeds)
    command = f"python benchmarks/quality/leaderboard.py DATA_FOLDER --set {' '.join(options.sets)} --seeds {seeds}"
    return command + (" --protocol warm" if options.protocol == "warm" else "")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with one folder a set")
    parser.add_argument("--set", dest="sets", nargs="+", choices=sorted(SETS), default=["scientific"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--protocol", choices=("cold", "warm"), default="cold")
    parser.add_argument(
        "--methods", nargs="+", help="names, or baselines, trained, peers, product, controls; all by default"
    )
    parser.add_argument("--again", action="store_true", help="measure cells that are there once more")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--cells-only", action="store_true", help="compare nothing")
    part.add_argument("--compare-only", action="store_true", help="measure nothing")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/quality/results"))
    parser.add_argument("--work", type=Path, default=Path(".cache/quality"), help="splits, lists, runs; may be deleted")
    return parser.parse_args()


if __name__ == "__main__":
    main()
