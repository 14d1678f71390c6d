"""``Engine``: the one object that merchandising tools hold. It wires the graph, the ranker and the explanations."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import numpy as np

from kg import KnowledgeGraph, Workspace, schema, snapshot
from kg.errors import UnknownItemError, UnknownUserError, WorkspaceError
from recommender.changed import changed_items
from recommender.explain import Explainer
from recommender.results import (
    Audience,
    AudienceMember,
    Explanation,
    Launch,
    Neighbour,
    Neighbours,
    Origin,
    Recommendation,
    Recommendations,
    Score,
    Scores,
)
from recommender.similar_text import replace_similar_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kg.store import GraphStore
    from recommender.ranker import Ranker

Pool = Literal["new", "all"]
_USERS_AT_ONCE: Final = 512
_PATHS: Final = 3


class Engine:
    """Recommends, launches, explains. Open one per process; it is not safe for threads that launch.

    >>> engine = Engine.open("shop.workspace")                                              # doctest: +SKIP
    >>> engine.recommend("u1", k=20, pool="new", explain=True)                              # doctest: +SKIP
    """

    def __init__(self, workspace: Workspace, store: GraphStore, graph: KnowledgeGraph, ranker: Ranker) -> None:
        self._workspace = workspace
        self._store = store
        self._ranker = ranker
        self._launched = False
        self._adopt(graph)

    @classmethod
    def open(cls, workspace: str | Path) -> Engine:
        """Open a trained workspace.

        Items that were ingested, launched or changed after training are taken up now, without retraining.

        Raises:
            WorkspaceError: no workspace, none trained yet, a damaged model, or one of a newer format.
            StoreError: the graph store cannot be opened.
        """
        place = Workspace.open(workspace)
        ranker = load_ranker(place)
        store = place.open_store()
        try:
            graph = current_graph(place, store).aligned(ranker.item_ids)
            changed = changed_items(graph, place.model_folder)
            if len(changed):
                ranker.add(graph, changed)
            return cls(place, store, graph, ranker)
        except BaseException:
            store.close()
            raise

    @property
    def item_ids(self) -> tuple[str, ...]:
        """Every item id that can be asked for."""
        return self._graph.items.keys

    @property
    def user_ids(self) -> tuple[str, ...]:
        """Every customer with a history."""
        return self._graph.users.keys

    @property
    def fingerprint(self) -> str:
        """Changes with the graph and with the model: two engines with the same fingerprint give the same lists."""
        return f"{self._graph.content_hash}-{len(self._graph.items)}-{self._ranker.fingerprint}"

    @property
    def store(self) -> GraphStore:
        """The graph store, for queries of your own."""
        return self._store

    def recommend(
        self,
        users: str | Sequence[str] | None = None,
        *,
        history: Sequence[str] | None = None,
        k: int = 20,
        pool: Pool = "all",
        explain: bool = False,
        n_paths: int = _PATHS,
    ) -> Recommendations:
        """The k best items for one user, for many, or for a bare history.

        Args:
            users: one user id or many. A user without a known history gets what is most likely to sell to anyone,
                marked ``source="popularity"``.
            history: item ids, oldest first, instead of users; unknown ids are left out and named in the notes.
            k: list length; shorter only where fewer items may be shown.
            pool: ``"new"`` ranks only items without any interaction, ``"all"`` every item. A user's own never show.
            explain: add paths that are found true in the graph store during this call.
            n_paths: at most so many paths per explanation.

        Raises:
            ValueError: neither users nor a history, both, k < 1, or another pool.
        """
        if (users is None) == (history is None):
            raise ValueError("recommend() takes either users or a history; give exactly one of them")
        if k < 1:
            raise ValueError(f"k is {k}; a list holds at least 1 item")
        if pool not in ("new", "all"):
            raise ValueError(f"pool is {pool!r}; expected 'new' or 'all'")
        notes: list[str] = []
        if pool == "new" and not self._cold.any():
            notes.append("every item has interactions already: nothing is new, so there is nothing to rank")
        user_ids: list[str | None]
        if history is not None:
            history = [history] if isinstance(history, str) else history
            nums = self._graph.items.nums(history)
            unknown = [item_id for item_id, num in zip(history, nums, strict=True) if num < 0]
            if unknown:
                notes.append(f"left out {len(unknown)} history items that the workspace does not hold: {unknown[:5]}")
            user_ids, histories = [None], [nums[nums >= 0]]
        else:
            user_ids = [users] if isinstance(users, str) else list(users or ())
            histories = [self._history(user_id) for user_id in user_ids]
        unknown_users = sum(not self._is_readable(history) for history in histories)
        if unknown_users:
            notes.append(f"{unknown_users} without a known history: answered with what sells to anyone (popularity)")
        rows: list[Recommendation] = []
        for start in range(0, len(user_ids), _USERS_AT_ONCE):
            part = slice(start, start + _USERS_AT_ONCE)
            rows += self._recommend(user_ids[part], histories[part], k, pool, explain, n_paths)
        return Recommendations(tuple(rows), explained=explain, notes=tuple(notes))

    def score(self, users: str | Sequence[str], item_ids: str | Sequence[str]) -> Scores:
        """How likely each user is to take each item up: every user with every item, for candidates of your own.

        A score is the calibrated probability that ``recommend`` shows for the same pair; an item that the user has
        already gets one too.

        Args:
            users: one user id or many; without a known history the score is what the item would get from anyone,
                marked ``source="popularity"``.
            item_ids: one item id or many.

        Raises:
            UnknownItemError: the workspace does not hold an item.
        """
        user_ids = [users] if isinstance(users, str) else list(users)
        asked = [item_ids] if isinstance(item_ids, str) else list(item_ids)
        item_nums = np.array([self._item_num(item_id) for item_id in asked], dtype=np.int64)
        rows: list[Score] = []
        for start in range(0, len(user_ids), _USERS_AT_ONCE):
            part = user_ids[start : start + _USERS_AT_ONCE]
            histories = [self._history(user_id) for user_id in part]
            chances = _probability(self._ranker.score(histories, item_nums)).tolist()
            for user_id, history, row in zip(part, histories, chances, strict=True):
                source: Origin = "fusion" if self._is_readable(history) else "popularity"
                rows += [Score(user_id, item_id, chance, source) for item_id, chance in zip(asked, row, strict=True)]
        return Scores(tuple(rows))

    def launch(self, item: Mapping[str, Any], *, audience: int = 20, neighbours: int = 10) -> Launch:
        """Put a product live: in the graph, encoded, indexed, recommendable when this call returns. No retraining.

        A known item id is updated in place. The launch is kept in the workspace and survives a restart.

        Args:
            item: the fields of an items row; only ``item_id`` is required.
            audience: how many customers to name, each with verified paths.
            neighbours: how many products to name beside it.

        Raises:
            SourceError: the item is not valid; the message names the field.
        """
        from ingest import launch_item

        started = time.perf_counter()
        self._workspace.remember(snapshot=None)
        self._launched = True
        nodes, edges = launch_item(item, self._workspace, self._store, known=self._graph.vocabularies)
        item_id = nodes[schema.PRODUCT]["key"][0]
        created = item_id not in self._graph.items
        graph = self._graph.extended(nodes, edges)
        item_nums = graph.items.nums([item_id])
        self._ranker.add(graph, item_nums)
        similar = replace_similar_text(self._store, graph, self._ranker.text_vectors, item_nums)
        product = {schema.PRODUCT: nodes[schema.PRODUCT]}
        self._adopt(graph.extended(product, {schema.SIMILAR_TO: similar}))
        seconds = time.perf_counter() - started
        notes = () if similar.height else ("no older product is described much like it: no SIMILAR_TO edge",)
        return Launch(
            item_id,
            created,
            round(seconds, 4),
            self.audience_for(item_id, k=audience, explain=True) if audience else Audience(item_id, ()),
            self.similar(item_id, k=neighbours) if neighbours else Neighbours(item_id, ()),
            notes,
        )

    def audience_for(self, item_id: str, *, k: int = 1000, explain: bool = False) -> Audience:
        """The k customers for whom an item is most of a find, best first, but for those who have it already.

        Customers are ranked by the lift of the item's score over the customer's own usual score, so that heavy buyers
        do not win every launch.

        Raises:
            UnknownItemError: the workspace does not hold the item.
        """
        item_num = self._item_num(item_id)
        facts = self._graph.facts[schema.INTERACTED]
        owners = facts.heads[facts.tails == item_num]
        scores = self._ranker.audience(item_num, self._histories)
        scores = np.where(np.isin(np.arange(len(scores)), owners), -np.inf, scores)
        best = np.lexsort((np.arange(len(scores)), -scores))[:k]
        best = best[np.isfinite(scores[best])]
        user_ids = [self.user_ids[num] for num in best]
        explanations: list[Explanation | None] = [None] * len(best)
        if explain:
            histories = [self._histories[num] for num in best]
            explanations = self._explainer.explain(user_ids, histories, np.full(len(best), item_num), n_paths=1)
        rows = tuple(
            AudienceMember(user_id, rank, float(score), explanation)
            for rank, (user_id, score, explanation) in enumerate(
                zip(user_ids, _probability(scores[best]), explanations, strict=True), start=1
            )
        )
        return Audience(item_id, rows, explained=explain)

    def similar(self, item_id: str, *, k: int = 10) -> Neighbours:
        """The k products that belong beside an item, closest first; new and old products alike.

        Raises:
            UnknownItemError: the workspace does not hold the item.
        """
        nums, scores = self._ranker.similar(self._item_num(item_id), k)
        return Neighbours(
            item_id,
            tuple(
                Neighbour(self._graph.items.keys[num], self._title(num), float(score), bool(self._cold[num]))
                for num, score in zip(nums, scores, strict=True)
            ),
        )

    def explain(
        self, user_id: str | None, item_id: str, *, history: Sequence[str] | None = None, n_paths: int = 5
    ) -> Explanation | None:
        """Why this item for this user (or for a bare history): paths that the store holds now, or ``None``.

        Raises:
            UnknownItemError, UnknownUserError: the workspace does not hold them.
        """
        item_num = self._item_num(item_id)
        if user_id is not None and user_id not in self._graph.users:
            raise UnknownUserError(user_id, self._where())
        if history is not None:
            nums = np.array([self._item_num(item) for item in history], dtype=np.int64)
        elif user_id is not None:
            nums = self._history(user_id)
        else:
            raise ValueError("explain() takes a user_id or a history; give one of them")
        asked = None if history is not None else user_id
        return self._explainer.explain([asked], [nums], np.array([item_num]), n_paths=n_paths)[0]

    def close(self) -> None:
        """Keep the snapshot for a fast start next time, and release the graph store."""
        if self._launched:
            save_graph(self._workspace, self._store, self._graph)
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _adopt(self, graph: KnowledgeGraph) -> None:
        graph = graph.aligned(self._ranker.item_ids)
        untrained = np.arange(len(self._ranker.item_ids), len(graph.items))
        if len(untrained):
            self._ranker.add(graph, untrained)
        self._graph = graph
        self._explainer = Explainer(graph, self._store)
        self._cold = graph.n_events == 0
        # The ranker knows which items were new when it was trained; since then some have been bought.
        self._learned = ~self._ranker.is_cold
        self._sold_since = np.flatnonzero(~self._learned & ~self._cold)
        self._titles = graph.products["name"].to_list()
        self._histories = histories(graph)

    def _recommend(
        self,
        user_ids: Sequence[str | None],
        histories: Sequence[NDArray[np.int64]],
        k: int,
        pool: Pool,
        explain: bool,
        n_paths: int,
    ) -> list[Recommendation]:
        exclude = [self._sold_since] * len(histories) if pool == "new" and len(self._sold_since) else None
        ranking = self._ranker.rank(histories, k=k, pool=pool, exclude=exclude)
        shown = np.nonzero(ranking.item_nums >= 0)
        item_nums = ranking.item_nums[shown]
        scores = _probability(ranking.scores[shown])
        users, slots = (places.tolist() for places in shown)
        readable = [self._is_readable(history) for history in histories]
        explanations: list[Explanation | None] = [None] * len(users)
        if explain:
            pair_users = [user_ids[user] for user in users]
            pair_histories = [histories[user] for user in users]
            explanations = self._explainer.explain(pair_users, pair_histories, item_nums, n_paths=n_paths)
        return [
            Recommendation(
                user_ids[user],
                self._graph.items.keys[num],
                self._title(num),
                int(slot) + 1,
                float(score),
                "fusion" if readable[user] else "popularity",
                explanation,
            )
            for user, slot, num, score, explanation in zip(users, slots, item_nums, scores, explanations, strict=True)
        ]

    def _history(self, user_id: str | None) -> NDArray[np.int64]:
        if user_id not in self._graph.users:
            return np.empty(0, dtype=np.int64)
        return self._histories[self._graph.users.num(str(user_id))]

    def _is_readable(self, history: NDArray[np.int64]) -> bool:
        """Whether the model can read anything of a history: it learned from items that had events at training."""
        return bool(self._learned[history].any())

    def _item_num(self, item_id: str) -> int:
        if item_id not in self._graph.items:
            raise UnknownItemError(item_id, self._where())
        return self._graph.items.num(item_id)

    def _title(self, num: int) -> str:
        return self._titles[num] or self._graph.items.keys[num]

    def _where(self) -> str:
        size = f"{len(self._graph.items):,} items, {len(self._graph.users):,} customers"
        return f"workspace {str(self._workspace.path)!r} ({size})"


def _probability(log_odds: NDArray[np.float32]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-log_odds.astype(np.float64)))


def histories(graph: KnowledgeGraph) -> list[NDArray[np.int64]]:
    """Each customer's item nums, oldest first. U arrays."""
    facts = graph.facts[schema.INTERACTED]
    by_user = np.lexsort((facts.order, facts.heads))
    ends = np.cumsum(np.bincount(facts.heads, minlength=len(graph.users)))
    return np.split(facts.tails[by_user], ends[:-1]) if len(ends) else []


def load_ranker(workspace: Workspace) -> Ranker:
    """The trained model of a workspace.

    Raises:
        WorkspaceError: none is trained yet, it is damaged, or one of a newer format.
    """
    from safetensors import SafetensorError

    from recommender.ranker import Ranker

    train = f"run: firstshelf train --workspace {workspace.path}"
    if not workspace.model_folder.exists():
        raise WorkspaceError(f"workspace {str(workspace.path)!r} holds no trained model; {train}")
    try:
        return Ranker.load(workspace.model_folder)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise WorkspaceError(f"the model in {str(workspace.model_folder)!r} is damaged ({error}); {train}") from error


def current_graph(workspace: Workspace, store: GraphStore) -> KnowledgeGraph:
    """The store's graph as arrays: the workspace's saved snapshot where it is still good, else read from the store.

    A load, a training and a launch make the saved snapshot void.

    Raises:
        WorkspaceError: the last load did not finish.
    """
    mark = store.get_mark()
    if mark is None:
        raise WorkspaceError(
            f"the last load into {store.address!r} did not finish; run the same 'firstshelf ingest' again, it continues"
        )
    if workspace.get("snapshot") == mark:
        return KnowledgeGraph.load(workspace.path / "snapshot")
    graph = snapshot(store, until=None)
    save_graph(workspace, store, graph)
    return graph


def save_graph(workspace: Workspace, store: GraphStore, graph: KnowledgeGraph) -> None:
    """Save a snapshot that equals the store's graph now."""
    graph.save(workspace.path / "snapshot")
    workspace.remember(snapshot=store.get_mark())
