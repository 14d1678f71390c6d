"""From a walk to a reason: found in the snapshot, told in one sentence, checked in the store, shown as Cypher."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from kg import cypher, schema
from kg.paths import Metapath, Path, PathEdge, PathNode
from recommender.results import Explanation
from recommender.walks import Walk, WalkFinder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from scipy import sparse

    from kg.snapshot import KnowledgeGraph
    from kg.store import GraphStore


class Explainer:
    """Explains pairs of a history and an item against one snapshot and the store that it was taken from."""

    def __init__(self, graph: KnowledgeGraph, store: GraphStore) -> None:
        self._graph = graph
        self._store = store
        self._finder = WalkFinder(graph)
        self._names = {label: _names(graph, label) for label in graph.vocabularies}

    def explain(
        self,
        user_ids: Sequence[str | None],
        histories: sparse.csr_array,
        item_nums: NDArray[np.int64],
        *,
        n_paths: int = 3,
    ) -> list[Explanation | None]:
        """One explanation per pair, or ``None`` where no walk joins the history and the item.

        Every path shown was found true by the store during this call; a walk that the store no longer holds is dropped.

        Args:
            user_ids: P ids; ``None`` where a bare history was given: then paths begin at the history item.
            histories: as ``KnowledgeGraph.histories`` has them, one row a pair, shape (P, I).
            item_nums: shape (P,).
            n_paths: at most so many paths each, of different kinds, best first.
        """
        found = self._finder.find(histories, item_nums, n_paths=n_paths)
        asked: dict[Metapath, list[tuple[str, ...]]] = defaultdict(list)
        places: dict[Metapath, list[tuple[int, Walk]]] = defaultdict(list)
        for pair, walks in enumerate(found):
            user_id = user_ids[pair]
            for walk in walks:
                metapath = walk.metapath if user_id is not None else walk.metapath.from_history()
                asked[metapath].append(self._keys(walk, user_id))
                places[metapath].append((pair, walk))
        paths: list[list[tuple[Path, Metapath]]] = [[] for _ in found]
        for metapath, key_rows in asked.items():
            sources = self._store.holds(metapath, key_rows)
            for keys, edge_sources, (pair, walk) in zip(key_rows, sources, places[metapath], strict=True):
                if edge_sources is not None:
                    paths[pair].append((self._path(metapath, keys, edge_sources, walk.score), metapath))
        checked_at = datetime.now(UTC).isoformat(timespec="seconds")
        return [_explanation(pair_paths, checked_at) for pair_paths in paths]

    def _keys(self, walk: Walk, user_id: str | None) -> tuple[str, ...]:
        labels = walk.metapath.labels[1:]
        keys = tuple(self._graph.vocabularies[label].keys[num] for label, num in zip(labels, walk.nums, strict=True))
        return keys if user_id is None else (user_id, *keys)

    def _path(self, metapath: Metapath, keys: Sequence[str], sources: Sequence[str], score: float) -> Path:
        nodes = tuple(
            PathNode(label, key, self._name(label, key)) for label, key in zip(metapath.labels, keys, strict=True)
        )
        edges = tuple(
            PathEdge(step.relation.type, step.forward, source)
            for step, source in zip(metapath.steps, sources, strict=True)
        )
        return Path(nodes, edges, round(score, 6), metapath.name)

    def _name(self, label: str, key: str) -> str:
        return self._names[label].get(key) or key


def _explanation(paths: list[tuple[Path, Metapath]], checked_at: str) -> Explanation | None:
    if not paths:
        return None
    paths.sort(key=lambda found: (-found[0].score, found[0].metapath))
    best, metapath = paths[0]
    return Explanation(
        sentence=sentence(best),
        paths=tuple(path for path, _ in paths),
        cypher=cypher.explain_query(metapath),
        parameters={"start": best.nodes[0].key, "end": best.nodes[-1].key},
        verified=True,
        checked_at=checked_at,
    )


def _names(graph: KnowledgeGraph, label: str) -> dict[str, str]:
    pairs = zip(graph.vocabularies[label].keys, graph.names.get(label, ()), strict=False)
    return {key: name for key, name in pairs if name}


def sentence(path: Path) -> str:
    """One plain English sentence that says no more than the path's edges say."""
    nodes = path.nodes[1:] if path.nodes[0].label == schema.CUSTOMER else path.nodes
    history, item = f"“{nodes[0].name}”", f"“{nodes[-1].name}”"
    beside = f"“{nodes[1].name}”, which is often bought with {history} of the history," if len(nodes) > 2 else ""
    by_kind = {
        "similar_text": lambda: f"{item} is described much like {history}, which is in the history.",
        "bought_with": lambda: f"{item} is often bought with {history}, which is in the history.",
        "same_brand": lambda: f"{item} is made by {nodes[1].name}, like {history} in the history.",
        "same_category": lambda: f"{item} is in the category {nodes[1].name}, like {history} in the history.",
        "shared_attribute": lambda: f"{item} has {nodes[1].name}, like {history} in the history.",
        "sibling_category": lambda: (
            f"{item} is in {nodes[3].name} and {history} of the history in {nodes[1].name}: both belong to "
            f"{nodes[2].name}."
        ),
        "bought_with_similar_text": lambda: f"{item} is described much like {beside[:-1]}.",
        "bought_with_same_brand": lambda: f"{item} is made by {nodes[2].name}, like {beside[:-1]}.",
        "bought_with_same_category": lambda: f"{item} is in the category {nodes[2].name}, like {beside[:-1]}.",
        "bought_with_shared_attribute": lambda: f"{item} has {nodes[2].name}, like {beside[:-1]}.",
    }
    return by_kind[path.metapath]()
