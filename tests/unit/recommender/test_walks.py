from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from checkerboard import histories_of

from kg import METAPATHS, KnowledgeGraph, open_store, schema, snapshot
from kg.paths import Metapath, Step
from kg.store import GraphStore
from recommender.walks import WalkFinder, _Plan


def find(graph: KnowledgeGraph, history: list[str], item: str, n_paths: int = 20) -> dict[str, tuple[list[str], float]]:
    nums = graph.items.nums([item])
    histories = histories_of(graph.items.nums(history), n_items=len(graph.items))
    walks = WalkFinder(graph).find(histories, nums, n_paths=n_paths)[0]
    return {
        walk.metapath.name: (
            [
                graph.vocabularies[label].keys[num]
                for label, num in zip(walk.metapath.labels[1:], walk.nums, strict=True)
            ],
            walk.score,
        )
        for walk in walks
    }


def test_every_kind_of_walk_of_the_tiny_shop_is_found(graph: KnowledgeGraph) -> None:
    epoxy = {name: keys for name, (keys, _) in find(graph, ["glue", "drill"], "epoxy").items()}
    assert epoxy == {
        "same_brand": ["glue", "gorilla", "epoxy"],
        "same_category": ["glue", "Tools > Adhesives", "epoxy"],
        "sibling_category": ["drill", "Tools > Drills", "Tools", "Tools > Adhesives", "epoxy"],
        "bought_with_similar_text": ["glue", "tape", "epoxy"],
    }
    cable = {name: keys for name, (keys, _) in find(graph, ["glue"], "cable").items()}
    assert cable == {"bought_with_shared_attribute": ["glue", "tape", "colour=black", "cable"]}
    assert find(graph, ["tape"], "cable")["shared_attribute"][0] == ["tape", "colour=black", "cable"]
    assert find(graph, ["tape"], "epoxy")["similar_text"][0] == ["tape", "epoxy"]
    assert find(graph, ["glue"], "tape")["bought_with"][0] == ["glue", "tape"]


def test_no_walk_is_an_empty_answer(graph: KnowledgeGraph) -> None:
    assert find(graph, ["glue", "drill"], "stone") == {}
    assert find(graph, [], "epoxy") == {}


def test_scores_are_products_of_recency_strength_and_specificity(graph: KnowledgeGraph) -> None:
    specificity = 1 - np.log(2) / np.log(7)
    found = find(graph, ["glue", "drill"], "epoxy")
    assert found["same_brand"][1] == pytest.approx(0.97 * specificity)
    assert found["bought_with_similar_text"][1] == pytest.approx(0.97 * 0.5 * 0.8)
    # The category Tools holds five of the seven products, those of its subcategories counted.
    assert found["sibling_category"][1] == pytest.approx(1 - np.log(5) / np.log(7))


def test_n_paths_keeps_the_best_first(graph: KnowledgeGraph) -> None:
    everything = find(graph, ["glue", "drill"], "epoxy")
    best = find(graph, ["glue", "drill"], "epoxy", n_paths=2)
    assert [score for _, score in best.values()] == sorted((s for _, s in everything.values()), reverse=True)[:2]


def random_graph(seed: int) -> tuple[GraphStore, KnowledgeGraph]:
    random = np.random.default_rng(seed)
    store = open_store("memory:")
    keys = {label: [f"{label[0].lower()}{n}" for n in range(8)] for label in schema.LABELS}
    for label, names in keys.items():
        store.write_nodes(label, pl.DataFrame({"key": names}))
    for relation in schema.RELATIONS:
        pairs = {
            (keys[relation.head_label][a], keys[relation.tail_label][b])
            for a, b in random.integers(8, size=(14, 2))
            if relation.head_label != relation.tail_label or a != b
        }
        frame = pl.DataFrame(sorted(pairs), schema=["head", "tail"], orient="row").with_columns(source=pl.lit("person"))
        store.write_edges(relation, frame)
    return store, snapshot(store, until=None)


@pytest.mark.parametrize("seed", range(8))
def test_found_walks_are_walks_of_the_store_and_none_is_missed(seed: int) -> None:
    store, graph = random_graph(seed)
    for user in graph.users.keys[:4]:
        history = sorted(
            {keys[1] for keys in store.match(Metapath("h", METAPATHS[0].steps[:1]), [user], graph.items.keys)}
        )
        for item in graph.items.keys:
            if item in history:
                continue
            found = find(graph, history, item)
            for metapath in METAPATHS:
                truth = store.match(metapath, [user], [item])
                if metapath.name in found:
                    assert (user, *found[metapath.name][0]) in truth
                # Where the sides meet only the best way from the item is kept, so a sibling walk whose best category
                # is also the history's may be passed over; every other kind is complete.
                elif metapath.name != "sibling_category":
                    assert truth == []


def test_a_metapath_that_turns_twice_cannot_be_planned() -> None:
    steps = (Step(schema.MADE_BY, True), Step(schema.MADE_BY, False), Step(schema.MADE_BY, True))
    with pytest.raises(ValueError, match="forward after it went backward"):
        _Plan.of(Metapath("zigzag", steps))
