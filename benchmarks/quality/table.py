"""Write the README's result table from the result files: python benchmarks/quality/table.py [--check]

The table stands between ``<!-- results:begin -->`` and ``<!-- results:end -->``. ``--check`` writes nothing and ends
with 1 where README and result files differ.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
PRODUCT: Final = "firstshelf"
REFERENCE: Final = "as_if_warm"
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
    "itemknn": "ItemKNN",
    "ease": "EASE",
    "popular_in_groups": "popular in category and brand",
    "predicted_popularity": "predicted popularity",
    "popularity": "most popular",
    "kg_degree": "graph degree",
    "newest": "newest",
    "random": "random",
}
VIEWS: Final = (
    ("cold", "new", "new items only"),
    ("warm", "warm only", "items sold before"),
)


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
    return "\n\n".join(
        "\n".join(_table(folder, view, pool, title))
        for folder in sorted(path for path in results.iterdir() if path.is_dir())
        for view, pool, title in VIEWS
        if (folder / view).is_dir()
    )


def _table(folder: Path, view: str, pool: str, title: str) -> Iterator[str]:
    cells = [json.loads(file.read_text(encoding="utf-8")) for file in sorted((folder / view).glob("*.json"))]
    cells = [cell for cell in cells if pool in cell.get("pools", {})]
    by_method: dict[str, dict[int, dict[str, Any]]] = {}
    for cell in cells:
        by_method.setdefault(cell["method"], {})[cell["seed"]] = cell
    # Rows compare only over the same splits: those that most methods have; what lacks one of them is left out.
    seen = Counter(tuple(sorted(found)) for found in by_method.values())
    if not seen:
        return
    seeds = max(seen, key=lambda found: (seen[found], len(found)))
    controls = {method: found for method, found in by_method.items() if method.startswith(f"{PRODUCT}, ")}
    by_method = {
        method: found for method, found in by_method.items() if set(seeds) <= set(found) and method not in controls
    }

    def mean(method: str, name: str) -> float:
        values = [by_method[method][seed]["pools"][pool]["means"][name] for seed in seeds]
        return float(sum(values) / len(values))

    users = sum(by_method[next(iter(by_method))][seed]["pools"][pool]["means"]["n_users"] for seed in seeds)
    split = cells[0]["split"]
    hidden = (
        f"launched from {split['cut']} on" if split["protocol"] == "time" else f"seeds {', '.join(map(str, seeds))}"
    )
    yield f"**{folder.name}, {title}** ({split['n_items']:,} items, {users // len(seeds):,} test users; {hidden})\n"
    intervals = _intervals(folder / view / "comparison.json", pool)
    column = " firstshelf × it [95 %] |" if intervals else ""
    yield f"| method | NDCG@20 | Recall@20 |{column}"
    yield "|---|---|---|" + ("---|" if intervals else "")
    ranked = sorted((method for method in by_method if method != REFERENCE), key=lambda m: -mean(m, "ndcg@20"))
    for method in [*ranked, *([REFERENCE] if REFERENCE in by_method else [])]:
        name = SHOWN.get(method, method) if method != REFERENCE else "*as if warm (reference, not a method)*"
        row = f"| {name} | {mean(method, 'ndcg@20'):.4f} | {mean(method, 'recall@20'):.4f} |"
        yield row + (f" {intervals.get(method, '–')} |" if intervals else "")
    if PRODUCT in by_method and REFERENCE in by_method:
        floor = max(ranked, key=lambda m: mean(m, "ndcg@20") if m.startswith("blend_ease") else -1.0)
        ours, low, high = (mean(method, "ndcg@20") for method in (PRODUCT, floor, REFERENCE))
        share = (ours - low) / (high - low)
        yield f"\nShare of the gap between “{SHOWN[floor]}” and “as if warm” that is closed: {share:.0%}."
    if PRODUCT in by_method and controls:
        yield "\n| control | NDCG@20 | the product on the same splits |"
        yield "|---|---|---|"
        for method, found in sorted(controls.items()):
            both = sorted(set(found) & set(by_method[PRODUCT]))
            pair = [
                sum(cells[seed]["pools"][pool]["means"]["ndcg@20"] for seed in both) / max(1, len(both))
                for cells in (found, by_method[PRODUCT])
            ]
            yield f"| {method.removeprefix(f'{PRODUCT}, ')} | {pair[0]:.4f} | {pair[1]:.4f} |"


def _intervals(file: Path, pool: str) -> dict[str, str]:
    if not file.exists():
        return {}
    against = json.loads(file.read_text(encoding="utf-8"))["against"]
    found = {}
    for row in against:
        if row["pool"] == pool and row["over"] == "users":
            interval = f"{row['ratio']:.3f} [{row['ratio_low']:.3f}, {row['ratio_high']:.3f}]"
            found[row["method"]] = interval + ("" if row["p_holm"] < 0.05 else " (not shown)")
    return found


if __name__ == "__main__":
    main()
