"""Is every path of a batch true? ``paths.py RECS.jsonl WORKSPACE [--pasted 500] [--output FILE]``.

A second, independent look at what ``recommend --explain --output`` wrote: every edge of every path is looked up
in the edge tables of the store, and for a sample of rows the printed Cypher is run with its parameters and has to
return the first path. Ends with exit code 1 where anything is false.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from kg import Workspace, schema


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recs", type=Path)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--pasted", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    store = Workspace.open(arguments.workspace).open_store()
    edges = {r.type: set(store.edges(r).select("head", "tail").iter_rows()) for r in schema.RELATIONS}
    warm = {tail for _, tail in edges["INTERACTED"]}
    counts: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    sample: list[dict[str, Any]] = []
    chance = random.Random(arguments.seed)
    with arguments.recs.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            counts["rows"] += 1
            counts["rows of items with an interaction"] += row["item_id"] in warm
            counts["rows of the user's own items"] += (row["user_id"], row["item_id"]) in edges["INTERACTED"]
            explanation = row["explanation"]
            if explanation is None:
                counts["rows that say that there is no path"] += 1
                continue
            counts["rows with a path"] += 1
            for path in explanation["paths"]:
                counts["paths"] += 1
                kinds[" ".join(edge["type"] for edge in path["edges"])] += 1
                nodes = [node["key"] for node in path["nodes"]]
                ends = (nodes[0], nodes[-1]) == (row["user_id"], row["item_id"])
                held = all(
                    ((before, after) if edge["forward"] else (after, before)) in edges[edge["type"]]
                    for before, edge, after in zip(nodes, path["edges"], nodes[1:], strict=False)
                )
                counts["false paths"] += not (ends and held and explanation["verified"] is True)
            if len(sample) < arguments.pasted:
                sample.append(explanation)
            elif (place := chance.randrange(counts["rows with a path"])) < arguments.pasted:
                sample[place] = explanation
    for explanation in sample:
        counts["queries pasted"] += 1
        first = [node["key"] for node in explanation["paths"][0]["nodes"]]
        found = store.run(explanation["cypher"], explanation["parameters"])
        shown = [[value for name, value in hit.items() if name.endswith("_key")] for hit in found]
        counts["queries that did not return the path"] += first not in shown
    store.close()
    report = {**counts, "share with a path": counts["rows with a path"] / max(1, counts["rows"]), "kinds": dict(kinds)}
    text = json.dumps(report, indent=2, ensure_ascii=False)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")
    wrong = ("false paths", "queries that did not return the path", "rows of items with an interaction")
    sys.exit(1 if any(counts[name] for name in (*wrong, "rows of the user's own items")) else 0)


if __name__ == "__main__":
    main()
