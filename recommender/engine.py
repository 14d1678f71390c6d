"""``Engine``: the one object that merchandising tools hold. It wires the graph, the ranker and the explanations."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import numpy as np

from kg import KnowledgeGraph, Workspace, schema, snapshot
from kg.errors import StoreError, UnknownItemError, UnknownUserError, WorkspaceError
from kg.snapshot import strength_of
from recommender.changed import changed_items, load_added, save_added
from recommender.explain import Explainer
from recommender.new_share import boost_for
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
    from scipy import sparse

    from kg.snapshot import Facts
    from kg.store import GraphStore
    from recommender.ranker import Histories, Progress, Ranker

Pool = Literal["new", "all"]
Id = str | int
"""An id as the shop has it. Numbers (numpy's too) mean what they mean to ``ingest``: 1001 is ``"1001"``."""
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
        self._graph_state: list[Any] | None = None
        self._interacted: Facts | None = None
        self._read: Histories | None = None
        self._adopt(graph)

    @classmethod
    def open(cls, workspace: str | Path, *, progress: Progress | None = None) -> Engine:
        """Open a trained workspace.

        Items that were ingested, launched or changed after training are taken up now, without retraining, and what was
        read of them is kept for the next opening. A launch that was cut off half-way is finished.

        Args:
            workspace: its folder.
            progress: called with the stage, steps done, steps in all, while items are taken up.

        Raises:
            WorkspaceError: no workspace, none trained yet, a damaged model, or one of another format.
            StoreError: the graph store cannot be opened.
        """
        place = Workspace.open(workspace)
        ranker = load_ranker(place)
        store = place.open_store()
        try:
            digests = load_added(ranker, place.model_folder)
            graph_state = _state_of(place, store)
            graph = current_graph(place, store).aligned(ranker.item_ids)
            changed = changed_items(graph, digests)
            if len(changed):
                ranker.add(graph, changed, progress=progress)
                save_added(ranker, graph, place.model_folder)
            engine = cls(place, store, graph, ranker)
            engine._graph_state = graph_state
            for item_id in engine._cut_off:
                engine._finish_launch(item_id)
            return engine
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
        return f"{self._graph.content_hash}-{self._ranker.fingerprint}"

    @property
    def store(self) -> GraphStore:
        """The graph store, for queries of your own."""
        return self._store

    def recommend(
        self,
        users: Id | Iterable[Id] | None = None,
        *,
        history: Id | Iterable[Id] | None = None,
        k: int = 20,
        pool: Pool = "all",
        explain: bool = False,
        n_paths: int = _PATHS,
        new_share: float | None = None,
    ) -> Recommendations:
        """The k best items for one user, for many, or for a bare history.

        Args:
            users: one user id or many. A user without a known history gets what is most likely to sell to anyone,
                marked ``source="popularity"``.
            history: item ids, oldest first, instead of users; one that comes again counts for more. Unknown ids are
                left out and named in the notes.
            k: list length; shorter only where fewer items may be shown.
            pool: ``"new"`` ranks only items without any interaction, ``"all"`` every item. A user's own never show.
            explain: add paths that are found true in the graph store during this call.
            n_paths: at most so many paths per explanation.
            new_share: for pool ``"all"``, the share of the slots that new items get on average over the shop's
                customers, from 0 to 1. The same for every call: one customer's list is what it is in a batch of all.
                ``None`` leaves it to the scores. The share decides which items are in a list; they are ordered by
                the odds that were rehearsed, which are those of ``score`` where the shop has a clock.

        Raises:
            ValueError: neither users nor a history, both, k < 1, another pool, or a share that is none.
            TypeError: an id that is neither text nor a whole number.
        """
        if (users is None) == (history is None):
            raise ValueError("recommend() takes either users or a history; give exactly one of them")
        check_request(k, pool, new_share)
        notes: tuple[str, ...]
        user_ids: Sequence[str | None]
        if history is None:
            user_ids = ids_of(users, "user id")
            histories = self._histories_of(user_ids)
            notes = self._notes(histories, k, pool, new_share)
        else:
            user_ids = [None]
            item_ids = ids_of(history, "history item")
            nums = self._graph.items.nums(item_ids)
            histories = history_of(nums[nums >= 0], len(self._graph.items))
            notes = self._notes(histories, k, pool, new_share)
            unknown = [item_id for item_id, num in zip(item_ids, nums, strict=True) if num < 0]
            if unknown:
                left_out = f"left out {len(unknown)} history items that the workspace does not hold: {unknown[:5]}"
                notes = (left_out, *notes)
        boost = None if new_share is None else self._boost(k, new_share)
        rows: list[Recommendation] = []
        for start in range(0, len(user_ids), _USERS_AT_ONCE):
            part = slice(start, start + _USERS_AT_ONCE)
            rows += self._recommend(user_ids[part], histories[part], k, pool, explain, n_paths, boost)
        return Recommendations(tuple(rows), explained=explain, notes=notes)

    def notes(
        self, user_ids: Sequence[str], *, k: int = 20, pool: Pool = "all", new_share: float | None = None
    ) -> tuple[str, ...]:
        """What is degraded in the answer of ``recommend`` for these users, in words; empty where nothing is."""
        return self._notes(self._histories_of(user_ids), k, pool, new_share)

    def score(self, users: Id | Iterable[Id], item_ids: Id | Iterable[Id]) -> Scores:
        """How likely each user is to take each item up: every user with every item, for candidates of your own.

        A score is the calibrated probability that ``recommend`` shows for the same pair; an item that the user has
        already gets one too.

        Args:
            users: one user id or many; without a known history the score is what the item would get from anyone,
                marked ``source="popularity"``.
            item_ids: one item id or many.

        Raises:
            UnknownItemError: the workspace does not hold an item.
            TypeError: an id that is neither text nor a whole number.
        """
        user_ids, asked = ids_of(users, "user id"), ids_of(item_ids, "item id")
        item_nums = np.array([self._item_num(item_id) for item_id in asked], dtype=np.int64)
        rows: list[Score] = []
        for start in range(0, len(user_ids), _USERS_AT_ONCE):
            part = user_ids[start : start + _USERS_AT_ONCE]
            histories = self._histories_of(part)
            chances = _probability(self._ranker.score(histories, item_nums)).tolist()
            for user_id, readable, row in zip(part, self._are_readable(histories), chances, strict=True):
                source: Origin = "fusion" if readable else "popularity"
                rows += [Score(user_id, item_id, chance, source) for item_id, chance in zip(asked, row, strict=True)]
        return Scores(tuple(rows))

    def launch(self, item: Mapping[str, Any], *, audience: int = 20, neighbours: int = 10) -> Launch:
        """Put a product live: in the graph, encoded, indexed, recommendable when this call returns. No retraining.

        A known item id is updated in place. The launch is kept in the workspace and survives a restart; one that fails
        or is interrupted is finished by launching the same item again, or by the next ``open``.

        Args:
            item: the fields of an items row; only ``item_id`` is required.
            audience: how many customers to name, each with verified paths.
            neighbours: how many products to name beside it.

        Raises:
            SourceError: the item is not valid; the message names the field. Nothing has been changed then.
            StoreError: the store failed.
        """
        from ingest import launch_item, validate_item
        from ingest.rows import ITEM_FIELDS, meant_fields, say_ignored

        started = time.perf_counter()
        item_id = validate_item(item).item_id
        # From here to the end the store holds what neither the snapshot nor the model folder knows.
        self._workspace.remember(launching=[*self._cut_off, item_id])
        self._launched = True
        is_current = self._graph_state == _state_of(self._workspace, self._store)
        nodes, edges = launch_item(item, self._workspace, self._store, known=self._graph.vocabularies)
        # What another process launched or loaded is not in this engine's graph, which then must not be kept as whole.
        self._graph_state = _state_of(self._workspace, self._store) if is_current else None
        created = item_id not in self._graph.items
        graph = self._graph.extended(nodes, edges)
        item_nums = graph.items.nums([item_id])
        try:
            self._ranker.add(graph, item_nums)
            similar = replace_similar_text(self._store, graph, self._ranker.text_vectors, item_nums)
            product = {schema.PRODUCT: nodes[schema.PRODUCT]}
            self._adopt(graph.extended(product, {schema.SIMILAR_TO: similar}))
            if not created:  # scores may be scaled by it
                self._read = None
        except BaseException:
            self._adopt(self._graph)  # the ranker may rank the item by now: the graph must know its number
            raise
        self._workspace.remember(launching=[other for other in self._cut_off if other != item_id])
        seconds = time.perf_counter() - started
        notes = []
        ignored = meant_fields(sorted(str(name) for name in item if name not in ITEM_FIELDS), ITEM_FIELDS)
        if ignored:
            notes.append(f"fields that nothing reads: {say_ignored(ignored)}")
        if not similar.height:
            notes.append("no SIMILAR_TO edge: the text model finds no older product that is described much like it")
        return Launch(
            item_id,
            created,
            round(seconds, 4),
            self.audience_for(item_id, k=audience, explain=True) if audience else Audience(item_id, ()),
            self.similar(item_id, k=neighbours) if neighbours else Neighbours(item_id, ()),
            tuple(notes),
        )

    def audience_for(self, item_id: Id, *, k: int = 1000, explain: bool = False) -> Audience:
        """The k customers for whom an item is most of a find, best first, but for those who have it already.

        Customers are ranked by the lift of the item's score over the customer's own usual score, so that heavy buyers
        do not win every launch.

        Raises:
            UnknownItemError: the workspace does not hold the item.
            ValueError: k < 1.
        """
        _check_length(k)
        item_id = id_of(item_id, "item id")
        item_num = self._item_num(item_id)
        facts = self._graph.facts[schema.INTERACTED]
        owners = facts.heads[facts.tails == item_num]
        if self._read is None:
            self._read = self._ranker.read(self._histories)
        scores = self._ranker.audience(item_num, self._read)
        scores = np.where(np.isin(np.arange(len(scores)), owners), -np.inf, scores)
        best = np.lexsort((np.arange(len(scores)), -scores))[:k]
        best = best[np.isfinite(scores[best])]
        user_ids = [self.user_ids[num] for num in best]
        explanations: list[Explanation | None] = [None] * len(best)
        if explain:
            explanations = self._explainer.explain(
                user_ids, self._histories[best], np.full(len(best), item_num), n_paths=1
            )
        rows = tuple(
            AudienceMember(user_id, rank, float(score), explanation)
            for rank, (user_id, score, explanation) in enumerate(
                zip(user_ids, _probability(scores[best]), explanations, strict=True), start=1
            )
        )
        return Audience(item_id, rows, explained=explain)

    def similar(self, item_id: Id, *, k: int = 10) -> Neighbours:
        """At most k products that belong beside an item, closest first; new and old products alike.

        One that has nothing in common with the item is not among them.

        Raises:
            UnknownItemError: the workspace does not hold the item.
            ValueError: k < 1.
        """
        _check_length(k)
        item_id = id_of(item_id, "item id")
        nums, scores = self._ranker.similar(self._item_num(item_id), k)
        return Neighbours(
            item_id,
            tuple(
                Neighbour(self._graph.items.keys[num], self._title(num), float(score), bool(self._cold[num]))
                for num, score in zip(nums, scores, strict=True)
                if score > 0
            ),
        )

    def explain(
        self, user_id: Id | None, item_id: Id, *, history: Id | Iterable[Id] | None = None, n_paths: int = 5
    ) -> Explanation | None:
        """Why this item for this user (or for a bare history): paths that the store holds now, or ``None``.

        Raises:
            UnknownItemError, UnknownUserError: the workspace does not hold them.
        """
        item_id = id_of(item_id, "item id")
        item_num = self._item_num(item_id)
        asked: str | None = None
        if user_id is not None:
            asked = id_of(user_id, "user id")
            if asked not in self._graph.users:
                raise UnknownUserError(asked, self._where())
        if history is not None:
            asked = None
            nums = np.array([self._item_num(item) for item in ids_of(history, "history item")], dtype=np.int64)
            histories = history_of(nums, len(self._graph.items))
        elif asked is not None:
            histories = self._histories_of([asked])
        else:
            raise ValueError("explain() takes a user_id or a history; give one of them")
        return self._explainer.explain([asked], histories, np.array([item_num]), n_paths=n_paths)[0]

    def close(self) -> None:
        """Keep the snapshot and what was read of launched items for a fast start, and release the graph store."""
        try:
            if self._launched and not self._cut_off:
                save_added(self._ranker, self._graph, self._workspace.model_folder)
                if self._graph_state == _state_of(self._workspace, self._store):
                    _save_graph(self._workspace, self._graph, self._graph_state)
        finally:
            self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def _cut_off(self) -> list[str]:
        """Items of launches that were begun and not finished."""
        return self._workspace.get("launching") or []

    def _finish_launch(self, item_id: str) -> None:
        from ingest import launched_item

        item = launched_item(self._workspace, item_id)
        if item is None:  # cut off before anything was written, or taken up by a load since
            self._workspace.remember(launching=[other for other in self._cut_off if other != item_id])
            return
        try:
            self.launch(item, audience=0, neighbours=0)
        except StoreError as error:
            warnings.warn(f"the launch of {item_id!r} was cut off and cannot be finished now: {error}", stacklevel=3)

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
        if graph.facts[schema.INTERACTED] is not self._interacted:
            self._interacted = graph.facts[schema.INTERACTED]
            self._histories = graph.histories
            self._read = None
        else:  # a launch brings an item and no events
            self._histories = _widened(self._histories, len(graph.items))
        self._boosts: dict[tuple[int, float], float] = {}

    def _recommend(
        self,
        user_ids: Sequence[str | None],
        histories: sparse.csr_array,
        k: int,
        pool: Pool,
        explain: bool,
        n_paths: int,
        boost: NDArray[np.float32] | None,
    ) -> list[Recommendation]:
        exclude = [self._sold_since] * len(user_ids) if pool == "new" and len(self._sold_since) else None
        # A list is never longer than the catalogue, and a k of a billion must not take memory for it.
        ranking = self._ranker.rank(
            histories, k=min(k, len(self._graph.items)), pool=pool, exclude=exclude, boost=boost
        )
        shown = np.nonzero(ranking.item_nums >= 0)
        item_nums = ranking.item_nums[shown]
        scores = _probability(ranking.scores[shown]).tolist()
        users, slots = (places.tolist() for places in shown)
        readable = self._are_readable(histories)
        explanations: list[Explanation | None] = [None] * len(users)
        if explain:
            pair_users = [user_ids[user] for user in users]
            explanations = self._explainer.explain(pair_users, histories[users], item_nums, n_paths=n_paths)
        item_ids = self._graph.items.keys
        return [
            Recommendation(
                user_ids[user],
                item_ids[num],
                self._titles[num] or item_ids[num],
                slot + 1,
                score,
                "fusion" if readable[user] else "popularity",
                explanation,
            )
            for user, slot, num, score, explanation in zip(
                users, slots, item_nums.tolist(), scores, explanations, strict=True
            )
        ]

    def _notes(self, histories: sparse.csr_array, k: int, pool: Pool, new_share: float | None) -> tuple[str, ...]:
        notes = []
        n_new, n_items = int(self._cold.sum()), len(self._cold)
        if pool == "new" and not n_new:
            notes.append("every item has interactions already: nothing is new, so there is nothing to rank")
        if new_share is not None and (n_new < int(new_share * k) or n_items - n_new < int((1 - new_share) * k)):
            notes.append(
                f"{new_share:.0%} new items in a list of {k} cannot be had: the shop has {n_new} new items and "
                f"{n_items - n_new} others"
            )
        unknown = int((~self._are_readable(histories)).sum())
        if unknown:
            notes.append(f"{unknown} without a known history: answered with what sells to anyone (popularity)")
        shown = self._cold if pool == "new" else np.ones_like(self._cold)
        owned = np.repeat(np.arange(histories.shape[0]), np.diff(histories.indptr))[shown[histories.indices]]
        sated = int((np.bincount(owned) == shown.sum()).sum()) if len(owned) else 0
        if sated:
            notes.append(f"{sated} with every item in the history that could be shown: an empty list")
        return tuple(notes)

    def _boost(self, k: int, new_share: float) -> NDArray[np.float32]:
        """What is added to every item's log odds so that new ones get this share of the slots. Shape (I,)."""
        k = min(k, len(self._graph.items))
        if (k, new_share) not in self._boosts:
            sample = self._histories[self._are_readable(self._histories)]
            self._boosts[k, new_share] = boost_for(self._ranker, sample, k=k, new_share=new_share, is_new=self._cold)
        return np.where(self._cold, np.float32(self._boosts[k, new_share]), np.float32(0))

    def _histories_of(self, user_ids: Sequence[str]) -> sparse.csr_array:
        """Their rows; an empty one for an unknown customer. Shape (len(user_ids), I)."""
        from scipy import sparse

        nums = self._graph.users.nums(user_ids)
        nobody = sparse.csr_array((1, len(self._graph.items)), dtype=np.float32)
        known = self._histories[nums[nums >= 0]]
        places = np.where(nums >= 0, np.cumsum(nums >= 0) - 1, known.shape[0])
        return sparse.csr_array(sparse.vstack([known, nobody], format="csr"))[places]

    def _are_readable(self, histories: sparse.csr_array) -> NDArray[np.bool_]:
        """Whether the model can read anything of each: it learned from items that had events at training."""
        return np.asarray(histories @ self._learned.astype(np.float32) > 0)

    def _item_num(self, item_id: str) -> int:
        if item_id not in self._graph.items:
            raise UnknownItemError(item_id, self._where())
        return self._graph.items.num(item_id)

    def _title(self, num: int) -> str:
        return self._titles[num] or self._graph.items.keys[num]

    def _where(self) -> str:
        size = f"{len(self._graph.items):,} items, {len(self._graph.users):,} customers"
        return f"workspace {str(self._workspace.path)!r} ({size})"


def check_request(k: int, pool: Pool, new_share: float | None) -> None:
    """Refuse what no list can be made of.

    Raises:
        ValueError: k < 1, another pool, or a share that is none or has no meaning for the pool.
    """
    _check_length(k)
    if pool not in ("new", "all"):
        raise ValueError(f"pool is {pool!r}; expected 'new' or 'all'")
    if new_share is not None and not 0 <= new_share <= 1:
        raise ValueError(f"new_share is {new_share}; expected a share from 0 to 1, such as 0.2")
    if new_share is not None and pool == "new":
        raise ValueError("pool 'new' shows nothing but new items; leave new_share out, or ask for pool 'all'")


def _check_length(k: int) -> None:
    if k < 1:
        raise ValueError(f"k is {k}; a list holds at least 1 entry")


def ids_of(given: Any, what: str) -> list[str]:
    """One id or many as the workspace writes them; see ``id_of``."""
    several = isinstance(given, Iterable) and not isinstance(given, str | bytes)
    return [id_of(one, what) for one in (given if several else [given])]


def id_of(given: Any, what: str) -> str:
    """An id as the workspace writes it, by the rule of ingest. Text that can be no id stays: it is an unknown one.

    Raises:
        TypeError: neither text nor a whole number; the message calls it ``what``.
    """
    from pydantic_core import PydanticCustomError

    from ingest.rows import clean_id, clip

    try:
        return clean_id(given)
    except PydanticCustomError as error:
        if isinstance(given, str):
            return given
        raise TypeError(f"{what} {clip(given)} {error.message()}") from None


def _probability(log_odds: NDArray[np.float32]) -> NDArray[np.float64]:
    from scipy.special import expit

    return expit(log_odds.astype(np.float64))


def _widened(histories: sparse.csr_array, n_items: int) -> sparse.csr_array:
    from scipy import sparse

    entries = (histories.data, histories.indices, histories.indptr)
    return sparse.csr_array(entries, shape=(histories.shape[0], n_items))


def history_of(item_nums: NDArray[np.int64], n_items: int) -> sparse.csr_array:
    """One history of single purchases, oldest first; what comes again counts more, at its last place. Shape (1, I)."""
    from scipy import sparse

    found, backwards, counts = np.unique(item_nums[::-1], return_index=True, return_counts=True)
    order = np.argsort(-backwards)
    strengths = strength_of(counts[order].astype(np.float32))
    return sparse.csr_array((strengths, found[order], [0, len(found)]), shape=(1, n_items))


def load_ranker(workspace: Workspace) -> Ranker:
    """The trained model of a workspace.

    Raises:
        WorkspaceError: none is trained yet, it is damaged, or of another format.
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

    A load, a training and a launch, of any process, make the saved snapshot void.

    Raises:
        WorkspaceError: the last load did not finish.
    """
    state = _state_of(workspace, store)
    if state[0] is None:
        raise WorkspaceError(
            f"the last load into {store.address!r} did not finish; run the same 'firstshelf ingest' again, it continues"
        )
    if workspace.get("snapshot") == state:
        return KnowledgeGraph.load(workspace.path / "snapshot")
    graph = snapshot(store, until=None)
    _save_graph(workspace, graph, state)
    return graph


def _state_of(workspace: Workspace, store: GraphStore) -> list[Any]:
    """What every load, launch and training changes before it changes the store's graph, in whatever process."""
    from ingest import launches_file

    launches = launches_file(workspace)
    return [store.get_mark(), launches.stat().st_size if launches.exists() else 0, workspace.get("trained")]


def _save_graph(workspace: Workspace, graph: KnowledgeGraph, state: list[Any]) -> None:
    """Keep a snapshot that equals the store's graph as it was in a state, unless a launch is half-way there now."""
    if workspace.get("snapshot") == state or workspace.get("launching"):
        return
    workspace.remember(snapshot=None)  # nobody may read what is half written
    graph.save(workspace.path / "snapshot")
    workspace.remember(snapshot=state)
