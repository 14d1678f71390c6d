"""Write the README's result table from the result files: python benchmarks/quality/table.py [--check]

The table stands between ``<!-- results:begin -->`` and ``<!-- results:end -->``. ``--check`` writes nothing and ends
with 1 where README and result files differ.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev
from typing import Any, Final

from recommender.metrics import SIGNIFICANCE

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
PRODUCT: Final = "firstshelf"
REFERENCE: Final = "as_if_warm"
SHORTLIST: Final = "recall@150 pooled"
"""Share of the hidden positives in lists of 150; cells of before it was measured lack it."""
SHOWN: Final = {
    "firstshelf": "**firstshelf**",
    "blend_ease_graph": "text + EASE carried over + graph walks",
    "blend_ease_tuned": "text + EASE carried over, tuned",
    "blend_ease": "text + EASE carried over",
    "text_blend": "TF-IDF + MiniLM",
    "tfidf": "TF-IDF",
    "minilm": "MiniLM as shipped",
    "bm25": "BM25",
    "cease": "CEASE",
    "content_to_cf": "content → collaborative factors",
    "itemknn_carried": "ItemKNN carried over",
    "ease_carried": "EASE carried over",
    "ppr": "personalised PageRank",
    "rp3beta": "RP3β over the graph",
    "content_head": "content head, trained",
    "clcrec": "CLCRec",
    "dropoutnet": "DropoutNet",
    "aldi": "ALDI",
    "lightgcn": "LightGCN",
    "lightfm": "LightFM, of RecTools",
    "kgin": "KGIN, of RecBole",
    "implicit_als": "iALS, of implicit",
    "implicit_bm25": "BM25 neighbours, of implicit",
    "itemknn": "ItemKNN",
    "ease": "EASE",
    "popular_in_groups": "popular in category and brand",
    "predicted_popularity": "predicted popularity",
    "popularity": "most popular",
    "kg_degree": "graph degree",
    "newest": "newest",
    "random": "random",
}
_OVER_USERS_ALONE: Final = "†"
VIEWS: Final = (
    ("cold", "new", "new items only"),
    ("warm", "warm only", "items sold before"),
)


@dataclass(frozen=True)
class Published:
    """A benchmark that others have published on: measures (name in the cells → column), and rows that are not ours."""

    title: str
    measures: dict[str, str]
    digits: int
    rows: tuple[tuple[str, tuple[float, ...], str], ...]
    """Method, values in the order of ``measures``, source."""
    note: str


_RECALLED: Final = "its paper, as recalled"
PUBLISHED: Final = {
    ("beauty", "pgpr"): Published(
        "the train/test split published with PGPR, all items, in %",
        {"ndcg@10": "NDCG@10", "recall@10": "Recall@10", "hr@10": "HR@10", "precision@10": "Precision@10"},
        2,
        (
            ("PGPR (2019)", (5.45, 8.32, 14.40, 1.71), _RECALLED),
            ("CKE (2016)", (3.72, 5.94, 11.04, 1.37), "PGPR's paper, as recalled"),
        ),
        "PGPR also reads the words of reviews and what is viewed and bought together; the rows measured here read the "
        "training purchases, firstshelf the categories and brands too.",
    ),
    ("lastfm_kg", "ctr"): Published(
        "labelled pairs, random 6:2:2 splits",
        {"auc": "AUC", "f1": "F1"},
        3,
        (
            ("KGCN (2019)", (0.794, 0.719), "a public file"),
            ("KGAT (2019)", (0.829, 0.742), "MCCLK's paper, as recalled"),
            ("CKAN (2020)", (0.842, 0.759), _RECALLED),
            ("KGIN (2021)", (0.849, 0.760), "MCCLK's paper, as recalled"),
            ("MCCLK (2022)", (0.876, 0.801), _RECALLED),
        ),
        "KGCN's code learns from the training pairs with label 0 too, and takes .5 as the threshold of F1; the rows "
        "measured here see events only, and take the threshold that is best on validation pairs.",
    ),
}
"""What others published on the same files. "As recalled" means that we have not read it again in the paper."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--readme", type=Path, default=Path(__file__).parents[2] / "README.md")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    text = options.readme.read_text(encoding="utf-8")
    before, begun, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not begun or not ended:
        raise SystemExit(f"{options.readme} lacks the lines {BEGIN} and {END}")
    written = f"{before}{BEGIN}\n{tables(options.results)}\n{END}{after}"
    if options.check and written != text:
        raise SystemExit(f"{options.readme} differs from the result files; run: python benchmarks/quality/table.py")
    if not options.check:
        options.readme.write_text(written, encoding="utf-8")
        sys.stderr.write(f"{options.readme} written\n")


def tables(results: Path) -> str:
    """All tables as Markdown."""
    ours = [
        "\n".join(_table(folder, view, pool, title))
        for folder in sorted(path for path in results.iterdir() if path.is_dir())
        for view, pool, title in VIEWS
        if (folder / view).is_dir()
    ]
    published = [
        "\n".join(_published_table(results / name / protocol, name, benchmark))
        for (name, protocol), benchmark in PUBLISHED.items()
        if (results / name / protocol).is_dir()
    ]
    return "\n\n".join([*ours, *published])


def _table(folder: Path, view: str, pool: str, title: str) -> Iterator[str]:
    cells = [json.loads(file.read_text(encoding="utf-8")) for file in sorted((folder / view).glob("*.json"))]
    cells = [cell for cell in cells if pool in cell.get("pools", {})]
    by_method: dict[str, dict[int, dict[str, Any]]] = {}
    for cell in cells:
        by_method.setdefault(cell["method"], {})[cell["seed"]] = cell
    # Rows compare only over the same splits, the product's or those that most methods have; what lacks one is left out.
    seen = Counter(tuple(sorted(found)) for found in by_method.values())
    if not seen:
        return
    most = max(seen, key=lambda found: (seen[found], len(found)))
    seeds = tuple(sorted(by_method[PRODUCT])) if PRODUCT in by_method else most
    controls = {method: found for method, found in by_method.items() if method.startswith(f"{PRODUCT}, ")}
    by_method = {
        method: found for method, found in by_method.items() if set(seeds) <= set(found) and method not in controls
    }

    def has(method: str, name: str) -> bool:
        return all(name in by_method[method][seed]["pools"][pool]["means"] for seed in seeds)

    def mean(method: str, name: str) -> float:
        values = [by_method[method][seed]["pools"][pool]["means"][name] for seed in seeds]
        return float(sum(values) / len(values))

    users = sum(by_method[next(iter(by_method))][seed]["pools"][pool]["means"]["n_users"] for seed in seeds)
    split = cells[0]["split"]
    hidden = (
        f"launched from {split['cut']} on" if split["protocol"] == "time" else f"seeds {', '.join(map(str, seeds))}"
    )
    about = f"{split['n_items']:,} items, {users // len(seeds):,} test users; {hidden}"
    if PRODUCT in by_method:
        about += f"; firstshelf of {', '.join(_commits(by_method[PRODUCT][seed] for seed in seeds))}"
    yield f"**{folder.name}, {title}** ({about})\n"
    intervals = _intervals(folder / view / "comparison.json", pool)
    shortlist = view == "cold" and any(has(method, SHORTLIST) for method in by_method)
    columns = ["method", "NDCG@20", "Recall@20"]
    columns += ["in the first 150"] * shortlist + ["firstshelf × it [95 %]"] * bool(intervals)
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    ranked = sorted((method for method in by_method if method != REFERENCE), key=lambda m: -mean(m, "ndcg@20"))
    for method in [*ranked, *([REFERENCE] if REFERENCE in by_method else [])]:
        name = SHOWN.get(method, method) if method != REFERENCE else "*as if warm (reference, not a method)*"
        row = [name, f"{mean(method, 'ndcg@20'):.4f}", f"{mean(method, 'recall@20'):.4f}"]
        row += [f"{mean(method, SHORTLIST):.1%}" if has(method, SHORTLIST) else "–"] * shortlist
        row += [intervals.get((method, seeds), "–")] * bool(intervals)
        yield f"| {' | '.join(row)} |"
    if any(_OVER_USERS_ALONE in interval for interval in intervals.values()):
        yield f"\n{_OVER_USERS_ALONE} over the items instead of the customers the difference may be chance."
    if PRODUCT in by_method:
        yield from _cost([by_method[PRODUCT][seed] for seed in seeds])
    if PRODUCT in by_method and REFERENCE in by_method:
        floor = max(ranked, key=lambda m: mean(m, "ndcg@20") if m.startswith("blend_ease") else -1.0)
        ours, low, high = (mean(method, "ndcg@20") for method in (PRODUCT, floor, REFERENCE))
        share = (ours - low) / (high - low)
        yield f"\nShare of the gap between “{SHOWN[floor]}” and “as if warm” that is closed: {share:.0%}."
    if PRODUCT in by_method and controls:
        yield "\n| control | NDCG@20 | the product on the same splits | firstshelf × it [95 %] |"
        yield "|---|---|---|---|"
        for method, found in sorted(controls.items()):
            both = sorted(set(found) & set(by_method[PRODUCT]))
            pair = [
                sum(cells[seed]["pools"][pool]["means"]["ndcg@20"] for seed in both) / max(1, len(both))
                for cells in (found, by_method[PRODUCT])
            ]
            # A control tells something only beside the product of the same code.
            product = _commits(by_method[PRODUCT][seed] for seed in both)
            other = [commit for commit in _commits(found[seed] for seed in both) if commit not in product]
            name = method.removeprefix(f"{PRODUCT}, ") + (f" (other code: {', '.join(other)})" if other else "")
            row = [name, *(f"{value:.4f}" for value in pair), intervals.get((method, tuple(both)), "–")]
            yield f"| {' | '.join(row)} |"
    if PRODUCT in by_method:
        yield from _mixing_table([by_method[PRODUCT][seed] for seed in seeds])


def _cost(cells: list[dict[str, Any]]) -> Iterator[str]:
    """What the product's trainings took, where the cells know it."""
    steps = [cell["steps"]["train"] for cell in cells if "steps" in cell]
    if steps:
        seconds = [step["seconds"] for step in steps]
        took = f"{min(seconds):.0f}" + (f" to {max(seconds):.0f}" if len(seconds) > 1 else "")
        places = {f"{cell['machine']['cpu_count']} cores" + " and a GPU" * ("gpu" in cell["machine"]) for cell in cells}
        memory = max(step["peak_mb"] for step in steps) / 1024
        yield f"\nTraining took {took} s and {memory:.1f} GB on {' or '.join(sorted(places))}."


def _mixing_table(cells: list[dict[str, Any]]) -> Iterator[str]:
    """Ways to merge new and known items, means over the splits of the product's cells that have them.

    The mean of the splits' intervals is no narrower than an interval of the mean would be.
    """
    entries = [cell["mixing"] for cell in cells if "mixing" in cell]
    if not entries:
        return
    share = sum(entry["new_share"] for entry in entries) / len(entries)
    title = f"new and known items in one list, {share:.0%} of it new"
    yield f"\n| {title} | NDCG@20 of new positives | NDCG@20 of all | ours minus it, new [95 %] |"
    yield "|---|---|---|---|"
    for way in entries[0]["ways"]:
        found = [entry["ways"][way] for entry in entries]
        new, every = (sum(each[f"ndcg@20 {of}"] for each in found) / len(found) for of in ("new", "all"))
        apart = zip(*(each["ours minus it"] for each in found if "ours minus it" in each), strict=True)
        bounds = [sum(values) / len(found) for values in apart]
        shown = f"{bounds[0]:+.4f} [{bounds[1]:+.4f}, {bounds[2]:+.4f}]" if bounds else "–"
        yield f"| {way} | {new:.4f} | {every:.4f} | {shown} |"


def _published_table(folder: Path, name: str, benchmark: Published) -> Iterator[str]:
    by_method: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(folder.glob("*.json")):
        cell = json.loads(file.read_text(encoding="utf-8"))
        by_method.setdefault(cell["method"], []).append(cell)
    rows = list(benchmark.rows)
    seeds = {cell["seed"] for cell in by_method.get(PRODUCT, [])}  # as above: only over the product's splits
    for method, found in by_method.items():
        cells = [cell for cell in found if cell["seed"] in seeds or not seeds]
        if seeds and len(cells) < len(seeds):
            continue
        values = tuple(sum(cell["means"][measure] for cell in cells) / len(cells) for measure in benchmark.measures)
        rows.append((SHOWN[method], values, _measured(cells, next(iter(benchmark.measures)), benchmark.digits)))
    split = next(iter(by_method.values()))[0]["split"]
    yield f"**{name}, {benchmark.title}** ({split['n_items']:,} items, {split['n_users']:,} users)\n"
    yield f"| method | {' | '.join(benchmark.measures.values())} | source |"
    yield "|---|" + "---|" * (len(benchmark.measures) + 1)
    for method, values, source in sorted(rows, key=lambda row: -row[1][0]):
        shown = " | ".join(f"{value:.{benchmark.digits}f}" for value in values)
        yield f"| {method} | {shown} | {source} |"
    yield f"\n{benchmark.note}"


def _measured(cells: list[dict[str, Any]], measure: str, digits: int) -> str:
    """How sure the first column is: over splits where there are several, else over users."""
    values = [cell["means"][measure] for cell in cells]
    if len(values) > 1:
        return f"measured, {len(values)} splits, ± {stdev(values):.{digits}f}"
    low, high = cells[0]["intervals"][measure]
    return f"measured, 95 % [{low:.{digits}f}, {high:.{digits}f}]"


def _commits(cells: Iterable[dict[str, Any]]) -> list[str]:
    """The commits of some cells, each with a + where the code differed from it."""
    return sorted({cell["commit"] + "+" * cell["changed"] for cell in cells})


def _intervals(file: Path, pool: str) -> dict[tuple[str, tuple[int, ...]], str]:
    """Of each method on its splits: the ratio over customers, and whether it is shown over them and over the items."""
    if not file.exists():
        return {}
    against = [row for row in json.loads(file.read_text(encoding="utf-8"))["against"] if row["pool"] == pool]
    by_items = {row["method"]: row["p_holm"] for row in against if row["over"] == "items"}
    found = {}
    for row in against:
        if row["over"] == "users" and row["ratio_low"] is not None:
            interval = f"{row['ratio']:.3f} [{row['ratio_low']:.3f}, {row['ratio_high']:.3f}]"
            if row["p_holm"] >= SIGNIFICANCE:
                interval += " (not shown)"
            elif by_items[row["method"]] >= SIGNIFICANCE:
                interval += f" {_OVER_USERS_ALONE}"
            found[row["method"], tuple(row["seeds"])] = interval
    return found


if __name__ == "__main__":
    main()
