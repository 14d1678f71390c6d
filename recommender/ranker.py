"""``Ranker``: everything trained, from histories to ranked items; new items join it without retraining."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Self, TypeVar

import numpy as np
from scipy import sparse

from encoders.content import ItemContent, ItemFacts, latest, power_of, to_half, to_single
from encoders.graph import GraphEncoder, Pairs
from encoders.text import TextEncoder
from encoders.tuning import fine_tune
from kg import schema
from kg.errors import TrainingError, WorkspaceError
from recommender.companions import Companions
from recommender.fusion import Calibrator, Examples, Fusion, blended
from recommender.scorers import BEHAVIOUR, Block, Neighbours, Scorers, Steps, load_neighbours, save_neighbours

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kg.snapshot import KnowledgeGraph

Progress = Callable[[str, int, int], None]
"""Called with the stage, the steps done and the steps in all."""
Stratum = Literal["new", "known"]
STRATA: Final[tuple[Stratum, ...]] = ("new", "known")
_Made = TypeVar("_Made", ItemContent, GraphEncoder)

FORMAT: Final = 8
_MAX_HISTORY: Final = 500
_N_REFERENCE: Final = 512
_N_BASELINE: Final = 128
_HIDDEN_SHARE: Final = 0.2
_AHEAD: Final = 0.5
"""Share of a known item's events that is still to come, on average over a shop's known items, where no clock tells."""
_N_FOLDS: Final = 3
_SPANS: Final = (0.7, 0.8, 0.9)
"""Shares of the items launched before each of the time folds' spans begins."""
_FEWEST_ITEMS: Final = 20
_FEWEST_USERS: Final = 100
"""New items and customers of them in a span of time below which items are hidden at random instead."""
_EPOCHS: Final[dict[Stratum, int]] = {"new": 0, "known": 20}
"""Of the fusion's network. It tells new items no better than a linear model, which no random draw moves: on seven
rehearsed launches of three shops the linear one was .3 % ahead. Known items have few examples: 6 epochs left up to an
eighth of their NDCG behind."""
_EMPHASES: Final = (1.0, 0.0)
"""Exponents of a history's strengths that are rehearsed: what is bought again counts for more, or it does not."""
_FEW: Final = 0.01
"""Share of strengths unlike the usual one up to which they are taken as they are: so few would not tell."""
_MAX_USERS: Final = 4_000
_MAX_CANDIDATES: Final = 800
_EASE_L2: Final = 50.0
_PAIRS_AT_ONCE: Final = 500_000
_SCORES_AT_ONCE: Final = 4_000_000
_PAGE: Final = 512
"""Candidates that are prepared together. A launch makes only its own page void: the next list waits for no other.
Longer pages are no faster to score."""
_KEPT_BYTES: Final = 4 * 2**30
"""Of pages at most. They grow with known items × all items (5 GB for 20,000 × 20,000); what does not fit is made anew
for every ``_SCORES_AT_ONCE``."""
_BLENDS: Final[dict[Stratum, tuple[dict[str, float], ...]]] = {
    "new": (
        {"graph": 1.0, "ridge": 0.5},
        {"graph": 1.0, "ridge": 0.3, "walk+ridge": 0.3},
        {"graph": 1.0},
        {"words^1": 1.0, "text^6": 1.0, "ease+words": 0.6},
        {"brands^1": 1.0, "categories^1": 1.0, "attributes^1": 1.0},
    ),
    "known": (
        {"ease": 1.0, "graph": 0.5, "ridge": 0.5},
        {"ease": 1.0},
    ),
}
"""Blends that need no fitting. The best on validation items is what the fusion starts from, and what ships where it is
better than what was learned, by more than chance: so known items rank no worse there than by EASE alone."""
_SELLS: Final[dict[Stratum, str]] = {"new": "predicted popularity", "known": "popularity"}
"""The fact by which a customer without a history is served."""


@dataclass(frozen=True, slots=True, eq=False)
class Histories:
    """B histories as they are scored, whatever the candidates; they stay good while new products are launched.

    Attributes:
        rows: from ``Scorers.histories``, shape (B, n_warm).
        n_items: that the scorers know of each history, shape (B,).
        scale: from ``Scorers.scale``, shape (B, 2, S).
        baselines: of new and of known items, shape (B, 2).
    """

    rows: sparse.csr_array
    n_items: NDArray[np.float32]
    scale: NDArray[np.float32]
    baselines: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.n_items)

    def __getitem__(self, part: slice) -> Histories:
        return Histories(self.rows[part], self.n_items[part], self.scale[part], self.baselines[part])


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """Ranked items of B histories.

    Attributes:
        item_nums: best first, -1 where a list ends early, shape (B, K), int64.
        scores: calibrated log odds, comparable between users, shape (B, K), float32.
    """

    item_nums: NDArray[np.int64]
    scores: NDArray[np.float32]


class Ranker:
    """Content and behaviour scorers, fused separately for new and for known items and calibrated to one scale.

    Attributes:
        item_ids: of all items it can rank, in the order of their row numbers; those added later come last.
        is_cold: items without an event at training, shape (I,).
        metrics: measured on hidden items while training.
        fingerprint: changes with the trained model.
    """

    def __init__(
        self,
        item_ids: Sequence[str],
        content: ItemContent,
        neighbours: Neighbours,
        scorers: Scorers,
        fusions: dict[Stratum, Fusion],
        calibrators: dict[Stratum, Calibrator],
        *,
        metrics: dict[str, Any],
        scales: dict[str, NDArray[Any]],
        emphasis: float,
        ahead: float,
        seed: int,
    ) -> None:
        self.item_ids = tuple(item_ids)
        self._content = content
        self._neighbours = neighbours
        self._scorers = scorers
        self._fusions = fusions
        self._calibrators = calibrators
        self.metrics = metrics
        self._scales = scales
        self._emphasis = emphasis
        self._ahead = ahead
        self._seed = seed
        digest = hashlib.sha256(repr((self.item_ids, seed, emphasis, scorers.encoder.fingerprint)).encode())
        for fusion in fusions.values():
            for name in sorted(fusion.weights):
                digest.update(fusion.weights[name].tobytes())
        self.fingerprint = digest.hexdigest()[:16]
        self._added: set[int] = set()
        self._rewritten = np.zeros(len(scorers.warm_nums), dtype=bool)
        self._pages: dict[tuple[Stratum, int], tuple[Block, NDArray[np.float32]]] = {}
        self._scale_of = {key.tobytes(): row for row, key in enumerate(scales["keys"])}

    @property
    def is_cold(self) -> NDArray[np.bool_]:
        """Items without an event at training. Shape (I,)."""
        return np.equal(self._scorers.n_events, 0)

    @property
    def text_vectors(self) -> NDArray[np.float32]:
        """Vectors of the items' texts, unit rows, shape (I, D)."""
        return self._content.text

    @classmethod
    def fit(
        cls,
        graph: KnowledgeGraph,
        *,
        text_model: str | None = None,
        seed: int = 0,
        progress: Progress | None = None,
        checkpoint: Path | None = None,
    ) -> Self:
        """Train on a graph. Items without events are new: their content is read, and nothing else of them.

        Args:
            graph: what may be known.
            text_model: name or path of a sentence-transformers model; ``None`` takes the packaged MiniLM.
            seed: of every random choice.
            progress: called with the stage, steps done, steps in all.
            checkpoint: folder where the texts and every trained graph encoder are kept, so that an interrupted
                training goes on from there.

        Raises:
            TrainingError: no events, or only one user or one item with events.
        """
        report = progress or (lambda stage, done, total: None)
        histories = _histories(graph)
        folds = _folds(histories, _clock(graph), seed)
        content = _content(graph, histories, folds, text_model, seed, report, checkpoint)
        warm = graph.n_events > 0
        report("neighbours", 0, 1)
        neighbours = Neighbours.fit(content, warm)
        report("neighbours", 1, 1)
        rng = np.random.default_rng(seed)
        n_items = len(graph.items)
        reference = rng.choice(n_items, min(n_items, _N_REFERENCE), replace=False)
        # Where little of a large catalogue has sold, known items are compared with known ones all the same.
        others = np.setdiff1d(np.flatnonzero(warm), reference)
        short = min(len(others), max(0, _N_BASELINE - int(warm[reference].sum())))
        reference = np.concatenate([reference, rng.choice(others, short, replace=False)])
        trainer = _Trainer(content, neighbours, Companions.of(graph), folds, reference, seed, report, checkpoint)
        fusions, calibrators, metrics = trainer.train()
        metrics["text encoder"] = content.encoder.metrics
        report("index", 0, 2)
        scorers = trainer.scorers(histories, "everything")
        report("index", 1, 2)
        ranker = cls(
            graph.items.keys,
            content,
            neighbours,
            scorers,
            fusions,
            calibrators,
            metrics=metrics,
            scales=_no_scales(),
            emphasis=trainer.emphasis,
            ahead=-float(np.log(folds[-1].known_share)),
            seed=seed,
        )
        ranker._remember_scales(histories)
        report("index", 2, 2)
        return ranker

    def save(self, folder: Path) -> None:
        """Write the folder that ``load`` reads: safetensors and JSON."""
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        self._content.save(folder / "content")
        save_neighbours(self._neighbours, folder / "neighbours.safetensors")
        self._scorers.encoder.save(folder / "graph")
        self._scorers.save(folder / "scorers.safetensors")
        save_file(self._scales, folder / "scales.safetensors")
        for stratum, fusion in self._fusions.items():
            save_file(fusion.weights, folder / f"fusion-{stratum}.safetensors")
        config = {
            "format": FORMAT,
            "seed": self._seed,
            "emphasis": self._emphasis,
            "ahead": self._ahead,
            "scores": self._scorers.names,
            "facts": self._scorers.fact_names,
            "calibrators": {
                stratum: {"slope": calibrator.slope, "bias": calibrator.bias}
                for stratum, calibrator in self._calibrators.items()
            },
        }
        _write_json(folder / "config.json", config)
        _write_json(folder / "items.json", self.item_ids)
        _write_json(folder / "metrics.json", self.metrics)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save`` wrote.

        Raises:
            WorkspaceError: no model there, or one of another format.
        """
        from safetensors.numpy import load_file

        if not (folder / "config.json").exists():
            raise WorkspaceError(f"no trained model at {str(folder)!r}; run 'firstshelf train'")
        config = _read_json(folder / "config.json")
        if config["format"] != FORMAT:
            way_out = "upgrade firstshelf" if config["format"] > FORMAT else "run 'firstshelf train' again"
            raise WorkspaceError(
                f"model {str(folder)!r} has format {config['format']}, this firstshelf reads {FORMAT}; {way_out}"
            )
        content = ItemContent.load(folder / "content")
        neighbours = load_neighbours(folder / "neighbours.safetensors")
        encoder = GraphEncoder.load(folder / "graph")
        return cls(
            _read_json(folder / "items.json"),
            content,
            neighbours,
            Scorers.load(folder / "scorers.safetensors", content, neighbours, encoder),
            {stratum: Fusion(load_file(folder / f"fusion-{stratum}.safetensors")) for stratum in STRATA},
            {stratum: Calibrator(**config["calibrators"][stratum]) for stratum in STRATA},
            metrics=_read_json(folder / "metrics.json"),
            scales=load_file(folder / "scales.safetensors"),
            emphasis=config["emphasis"],
            ahead=config["ahead"],
            seed=config["seed"],
        )

    def add(self, graph: KnowledgeGraph, item_nums: NDArray[np.int64], *, progress: Progress | None = None) -> None:
        """Take up new items (or changed ones) from a graph, without retraining.

        Args:
            graph: holds this ranker's items first, in their order.
            item_nums: their row numbers; those beyond ``item_ids`` must follow without a gap.
            progress: called with the stage, steps done, steps in all.
        """
        report = progress or (lambda stage, done, total: None)
        item_nums = np.asarray(item_nums, dtype=np.int64)
        facts = ItemFacts.of(graph, item_nums)
        differ = self._content.put(
            facts, item_nums, progress=lambda done, total: report("text of added items", done, total)
        )
        # One that failed half-way is in the content already, and says what it said.
        differ = np.union1d(differ, item_nums[item_nums >= len(self._neighbours.warm)])
        report("neighbours of added items", 0, 1)
        if len(differ):
            self._neighbours.put(self._content, differ)
        self._joined(graph.items.keys, item_nums, differ)
        report("neighbours of added items", 1, 1)

    def added(self) -> tuple[NDArray[np.int64], dict[str, NDArray[Any]]]:
        """Nums of the items that were added or changed after training, and what was read of them, for ``put_added``."""
        item_nums = np.array(sorted(self._added), dtype=np.int64)
        content = {f"content.{name}": array for name, array in self._content.rows(item_nums).items()}
        neighbours = {f"neighbours.{name}": array for name, array in self._neighbours.rows(item_nums).items()}
        return item_nums, {**content, **neighbours}

    def put_added(self, item_ids: Sequence[str], item_nums: NDArray[np.int64], arrays: dict[str, NDArray[Any]]) -> None:
        """``add`` without encoding: what ``added`` gave goes into the model that was trained.

        Args:
            item_ids: of all items of the ranker that gave it.
            item_nums: of the added ones.
            arrays: what was read of them.
        """
        content, neighbours = (
            {name.removeprefix(kind): array for name, array in arrays.items() if name.startswith(kind)}
            for kind in ("content.", "neighbours.")
        )
        differ = self._content.put_kept(content, item_nums)
        self._neighbours.put_kept(neighbours, item_nums)
        self._joined(item_ids, item_nums, differ)

    def _joined(self, item_ids: Sequence[str], item_nums: NDArray[np.int64], differ: NDArray[np.int64]) -> None:
        self._scorers.put(item_nums)
        self._rewritten |= np.isin(self._scorers.warm_nums, differ)
        self.item_ids = (*self.item_ids, *item_ids[len(self.item_ids) : len(self._content)])
        self._added.update(item_nums.tolist())
        if self._scorers.rest_on(item_nums):
            self._pages.clear()
        for place, (block, _) in list(self._pages.items()):
            if np.isin(block.item_nums, item_nums).any():
                del self._pages[place]

    def read(self, histories: sparse.csr_array) -> Histories:
        """Histories (as ``KnowledgeGraph.histories`` has them, shape (B, I)) made ready for ``audience``."""
        rows = _strengths(self._scorers, histories, self._emphasis)
        return Histories(rows, np.diff(rows.indptr).astype(np.float32), *self._scale(rows))

    def rank(
        self,
        histories: sparse.csr_array,
        *,
        k: int,
        pool: Literal["new", "all"],
        exclude: Sequence[NDArray[np.int64]] | None = None,
        boost: NDArray[np.float32] | None = None,
    ) -> Ranking:
        """The k best items for each history, exactly; equal scores by row number. Nobody is shown their own items.

        Args:
            histories: strengths, the columns of a row oldest first, shape (B, I). An empty history gets the items that
                are expected to sell best.
            k: list length.
            pool: ``new`` ranks only items without events at training.
            exclude: more items that a user must not see, one array a history.
            boost: is added to the log odds of each item, shape (I,); -inf hides an item. It decides who is in the list:
                the order, and the scores, are those of the log odds as they were rehearsed. ``None`` takes known
                items to have more ahead of them than that, as ``score`` does (decision 11).
        """
        shape = (histories.shape[0], k)
        found = Ranking(np.full(shape, -1, dtype=np.int64), np.full(shape, -np.inf, dtype=np.float32))
        for rows, nums, scores in self._scored(histories, STRATA if pool == "all" else ("new",), exclude):
            if boost is None:
                scores += self._lead(nums)
            best, values = _chosen(scores, k, None if boost is None else boost[nums])
            found.item_nums[rows, : best.shape[1]] = np.where(np.isfinite(values), nums[best], -1)
            found.scores[rows, : best.shape[1]] = values
        return found

    def highest(
        self, histories: sparse.csr_array, *, k: int, of: Sequence[NDArray[np.bool_]]
    ) -> list[NDArray[np.float32]]:
        """The k highest log odds, as they were rehearsed, for each history in each of some sets of items.

        Args:
            histories: as in ``rank``, shape (B, I); their own items are left out.
            k: length of the rows.
            of: the sets, each of shape (I,).

        Returns:
            For each set shape (B, k), highest first, -inf where there are no more items.
        """
        found = [np.full((histories.shape[0], k), -np.inf, dtype=np.float32) for _ in of]
        for rows, nums, scores in self._scored(histories, STRATA, None):
            for shown, into in zip(of, found, strict=True):
                among = scores[:, shown[nums]]
                best = _best(among, k)
                into[rows, : best.shape[1]] = np.take_along_axis(among, best, axis=1)
        return found

    def _scored(
        self,
        histories: sparse.csr_array,
        strata: tuple[Stratum, ...],
        exclude: Sequence[NDArray[np.int64]] | None,
    ) -> Iterator[tuple[slice, NDArray[np.int64], NDArray[np.float32]]]:
        """Some histories at a time, the items' nums, ascending, and their log odds; -inf for own and excluded ones."""
        nums = np.concatenate([self._stratum_nums(stratum) for stratum in strata])
        order = np.argsort(nums, kind="stable")
        nums = nums[order]
        column = np.full(len(self.item_ids), -1)
        column[nums] = np.arange(len(nums))
        step = max(1, _SCORES_AT_ONCE // len(self.item_ids))
        for start in range(0, histories.shape[0], step):
            part = histories[start : start + step]
            read = self.read(part)
            steps = self._scorers.steps(read.rows)
            scores = np.concatenate([self._stratum_scores(read, stratum, steps) for stratum in strata], axis=1)
            scores = scores[:, order]
            rows, columns = np.repeat(np.arange(len(read)), np.diff(part.indptr)), column[part.indices]
            scores[rows[columns >= 0], columns[columns >= 0]] = -np.inf
            for row, items in enumerate([] if exclude is None else exclude[start : start + step]):
                columns = column[items]
                scores[row, columns[columns >= 0]] = -np.inf
            yield slice(start, start + len(read)), nums, scores

    def score(self, histories: sparse.csr_array, item_nums: NDArray[np.int64]) -> NDArray[np.float32]:
        """Calibrated log odds of items for histories, by which ``rank`` orders them. Shape (B, C)."""
        return self._score(self.read(histories), item_nums)

    def _score(self, histories: Histories, item_nums: NDArray[np.int64]) -> NDArray[np.float32]:
        out = np.empty((len(histories), len(item_nums)), dtype=np.float32)
        cold = self.is_cold[item_nums]
        for stratum, mask in zip(STRATA, (cold, ~cold), strict=True):
            columns = np.flatnonzero(mask)
            for start in range(0, len(columns), _PAGE):
                page = columns[start : start + _PAGE]
                block, facts = self._scorers.block(item_nums[page]), self._scorers.facts(item_nums[page])
                out[:, page] = self._fused(histories, stratum, block, facts)
        return out + self._lead(item_nums)

    def parts(self, history: sparse.csr_array, item_nums: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
        """Each single score of items for one history, as the fusion reads it: above the user's mean. Shapes (C,)."""
        rows = _strengths(self._scorers, history, self._emphasis)
        personal = self._scorers.block(item_nums).personal(rows, self._scorers.scale(rows))[:, 0]
        facts = self._scorers.facts(item_nums)
        named = dict(zip(self._scorers.names, personal, strict=True))
        named.update(zip(self._scorers.fact_names, facts.T, strict=True))
        return named

    def audience(self, item_num: int, histories: Histories) -> NDArray[np.float32]:
        """How much more an item is for each user than items usually are for them. Shape (B,).

        It is the lift over the user's own baseline, so that heavy users do not win every launch. An empty history gets
        -inf: nothing is known of whom it belongs to.

        Args:
            item_num: the item.
            histories: from ``read``, which may be kept from one launch to the next.
        """
        scores = self._score(histories, np.array([item_num]))[:, 0]
        return np.where(histories.n_items == 0, -np.inf, scores).astype(np.float32)

    def similar(self, item_num: int, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k items whose content is closest, with their cosines, best first."""
        content = self._content
        words = np.asarray((content.bags["words"] @ content.bags["words"][[item_num]].T).toarray()).ravel()
        scores = (words + content.text @ content.text[item_num]) / 2
        scores[item_num] = -np.inf
        best = _best(scores[None].astype(np.float32), min(k, len(scores) - 1))[0]
        return best, scores[best].astype(np.float32)

    def _lead(self, item_nums: NDArray[np.int64]) -> NDArray[np.float32]:
        """What known items have over new ones, in log odds, for the events ahead that no rehearsal held. Shape (C,)."""
        return np.where(self.is_cold[item_nums], np.float32(0), np.float32(self._ahead))

    def _stratum_nums(self, stratum: Stratum) -> NDArray[np.int64]:
        return np.flatnonzero(self.is_cold if stratum == "new" else ~self.is_cold)

    def _stratum_pages(self, stratum: Stratum) -> Iterator[tuple[Block, NDArray[np.float32]]]:
        """The stratum's items by row number, a page each with their facts; kept where they fit until they change."""
        nums = self._stratum_nums(stratum)
        for start in range(0, len(nums), _PAGE):
            part, place = nums[start : start + _PAGE], (stratum, start)
            page = self._pages.get(place)
            if page is None or not np.array_equal(page[0].item_nums, part):
                page = (self._scorers.block(part), self._scorers.facts(part))
                self._pages.pop(place, None)
                if page[0].nbytes + sum(block.nbytes for block, _ in self._pages.values()) <= _KEPT_BYTES:
                    self._pages[place] = page
            yield page

    def _stratum_scores(self, histories: Histories, stratum: Stratum, steps: Steps) -> NDArray[np.float32]:
        """Shape (B, number of items of the stratum)."""
        pages = [self._fused(histories, stratum, *page, steps) for page in self._stratum_pages(stratum)]
        return np.concatenate(pages, axis=1) if pages else np.zeros((len(histories), 0), dtype=np.float32)

    def _fused(
        self,
        histories: Histories,
        stratum: Stratum,
        block: Block,
        facts: NDArray[np.float32],
        steps: Steps | None = None,
    ) -> NDArray[np.float32]:
        """Calibrated log odds of a block of one stratum, as they were rehearsed. Shape (B, C)."""
        out = np.empty((len(histories), len(facts)), dtype=np.float32)
        step = max(1, _PAIRS_AT_ONCE // max(1, len(facts)))
        for start in range(0, len(histories), step):
            rows = slice(start, start + step)
            part = histories[rows]
            taken = None if steps is None else {name: walked[rows] for name, walked in steps.items()}
            personal = block.personal(part.rows, part.scale, taken)
            out[rows] = self._fusions[stratum].predict(personal, facts, part.n_items)
        return self._calibrators[stratum](out - histories.baselines[:, STRATA.index(stratum), None])

    def _scale(self, rows: sparse.csr_array) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scales, shape (B, 2, S), and the baselines of both strata, shape (B, 2): remembered, or computed."""
        places = np.array([self._scale_of.get(_key(rows, row), -1) for row in range(rows.shape[0])], dtype=np.int64)
        places[rows @ self._rewritten > 0] = -1  # what was remembered is of other words
        scale = self._scales["scale"][places].astype(np.float32)
        baselines = self._scales["baselines"][places]
        missing = np.flatnonzero(places < 0)
        if len(missing):
            scale[missing], baselines[missing] = self._compute_scale(rows[missing])
        return scale, baselines

    def _compute_scale(self, rows: sparse.csr_array) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        scale = self._scorers.scale(rows)
        n_history = np.diff(rows.indptr).astype(np.float32)
        baselines = [
            _baseline(self._scorers, self._fusions[stratum], stratum, rows, scale, n_history) for stratum in STRATA
        ]
        return scale, np.stack(baselines, axis=1)

    def _remember_scales(self, histories: sparse.csr_array) -> None:
        rows = _strengths(self._scorers, histories, self._emphasis)
        scale, baselines = self._compute_scale(rows)
        keys = np.array([np.frombuffer(_key(rows, row), dtype=np.uint8) for row in range(rows.shape[0])])
        self._scales = {"keys": keys.reshape(-1, 8), "scale": scale, "baselines": baselines}
        self._scale_of = {key.tobytes(): row for row, key in enumerate(self._scales["keys"])}


class _Rehearsed(NamedTuple):
    """Examples of new and of known items, a set a rehearsal or part of one."""

    new: list[Examples]
    known: list[Examples]


class _Trainer:
    """The stages of ``Ranker.fit`` that learn from hidden items."""

    def __init__(
        self,
        content: ItemContent,
        neighbours: Neighbours,
        companions: Companions,
        folds: Sequence[_Fold],
        reference: NDArray[np.int64],
        seed: int,
        report: Progress,
        checkpoint: Path | None,
    ) -> None:
        self._content = content
        self._neighbours = neighbours
        self._companions = companions
        self._folds = folds
        self._reference = reference
        self._seed = seed
        self._report = report
        self._checkpoint = checkpoint
        self.emphasis = _EMPHASES[0]
        # A stream a stratum: what is drawn for known items moves nothing that is learned of new ones.
        self._rngs = {stratum: np.random.default_rng([seed, 1, place]) for place, stratum in enumerate(STRATA)}
        self._pairs = Pairs(neighbours.matrices)
        self._columns = [*Scorers.names, *Scorers.fact_names, "history"]

    def scorers(self, seen: sparse.csr_array, stage: str) -> Scorers:
        """Everything that is fitted on who took what, the graph encoder included; how often taught nothing more."""
        interactions = power_of(seen, 0)
        baskets = self._companions.among(np.bincount(seen.indices, minlength=seen.shape[1]) > 0)
        together = sparse.csr_array(sparse.vstack([interactions, baskets]))
        named = f"graph encoder, {stage}"
        encoder = _kept(
            self._checkpoint and self._checkpoint / named,
            GraphEncoder.load,
            lambda: GraphEncoder.fit(
                self._content,
                together,
                pairs=self._pairs,
                seed=self._seed,
                progress=lambda done, total: self._report(named, done, total),
            ),
            lambda: self._report(named, 1, 1),
        )
        return Scorers.fit(
            self._content,
            self._neighbours,
            encoder,
            interactions,
            together=together,
            ease_l2=_EASE_L2,
            reference=self._reference,
        )

    def train(self) -> tuple[dict[Stratum, Fusion], dict[Stratum, Calibrator], dict[str, Any]]:
        """Learn both fusions from the folds; the last one validates, of known items by chance a third of its users."""
        differ = any(
            np.mean(fold.seen.data != np.median(fold.seen.data)) > _FEW for fold in self._folds if fold.seen.nnz
        )
        rehearsed = {emphasis: _Rehearsed([], []) for emphasis in (_EMPHASES if differ else _EMPHASES[:1])}
        for number, fold in enumerate(self._folds, start=1):
            scorers = self.scorers(fold.seen, f"fold {number} of {len(self._folds)}")
            users = {stratum: rng.permutation(fold.seen.shape[0]) for stratum, rng in self._rngs.items()}
            # By time another span validates: one and the same span tells which items rise in it, to any customer.
            parts = [users["known"]] if fold.by == "time" else np.array_split(users["known"], _N_FOLDS)
            for emphasis, (new, known) in rehearsed.items():
                made = partial(self._examples, scorers, emphasis, fold.seen)
                new.append(made(fold.hidden_new, fold.hidden_new, users["new"]))
                if fold.hidden_known is not None:
                    known += [made(fold.hidden_known, fold.seen, part) for part in parts]
        untrained = {emphasis: self._untrained(examples.new) for emphasis, examples in rehearsed.items()}
        self.emphasis = max(untrained, key=untrained.__getitem__)
        new, known = rehearsed[self.emphasis]
        fusions: dict[Stratum, Fusion] = {}
        calibrators: dict[Stratum, Calibrator | None] = {}
        metrics: dict[str, Any] = {
            "folds": fold.by,
            "ndcg@20 by emphasis": {f"{emphasis:g}": value for emphasis, value in untrained.items()},
            "graph encoder gates": scorers.encoder.gates(),
        }
        for stratum, examples in zip(STRATA, (new, known), strict=True):
            fusions[stratum], calibrators[stratum], metrics[stratum] = self._fit(stratum, scorers, examples)
        return fusions, _all_calibrated(calibrators), metrics

    def _examples(
        self,
        scorers: Scorers,
        emphasis: float,
        seen: sparse.csr_array,
        hidden: sparse.csr_array,
        candidates_of: sparse.csr_array,
        users: NDArray[np.int64],
    ) -> Examples:
        candidates = np.flatnonzero(np.bincount(candidates_of.indices, minlength=hidden.shape[1]))
        if len(candidates) > _MAX_CANDIDATES:
            candidates = np.sort(np.random.default_rng(self._seed).choice(candidates, _MAX_CANDIDATES, replace=False))
        users = users[np.diff(seen.indptr)[users] > 0]
        wanted = sparse.csr_array(hidden[:, candidates])
        testable = np.diff(wanted.indptr)[users] > 0
        tested_share = float(testable.mean()) if len(users) else 0.0
        users = users[testable][:_MAX_USERS]
        block = scorers.block(candidates)
        rows = _strengths(scorers, seen[users], emphasis)
        scale = scorers.scale(rows)
        personal = np.empty((len(scorers.names), len(users), len(candidates)), dtype=np.float16)
        for start in range(0, len(users), 256):
            chunk = slice(start, start + 256)
            personal[:, chunk] = to_half(block.personal(rows[chunk], scale[chunk]).clip(-6e4, 6e4))
        return Examples(
            personal,
            scorers.facts(candidates),
            np.diff(rows.indptr).astype(np.float32),
            np.stack(wanted[users].nonzero()).astype(np.int64),
            np.stack(sparse.csr_array(seen[users][:, candidates]).nonzero()).astype(np.int64),
            rows,
            scale,
            tested_share,
        )

    def _untrained(self, rehearsals: Sequence[Examples]) -> float:
        """NDCG@20 of new items by the best blend of each rehearsal, their mean."""
        of_each = [
            max(float(examples.ndcg(blended(examples, blend)).mean()) for blend in self._blends("new"))
            for examples in rehearsals
            if len(examples)
        ]
        return round(float(np.mean(of_each)), 4) if of_each else 0.0

    def _blends(self, stratum: Stratum) -> list[NDArray[np.float32]]:
        return [
            np.array([blend.get(name, 0.0) for name in self._columns], dtype=np.float32) for blend in _BLENDS[stratum]
        ]

    def _fit(
        self, stratum: Stratum, scorers: Scorers, examples: list[Examples]
    ) -> tuple[Fusion, Calibrator | None, dict[str, Any]]:
        *train, validation = examples
        readable = np.array([stratum == "known" or column not in _OWN for column in self._columns])
        fusion, validated, about = Fusion.fit(
            self._blends(stratum),
            train,
            validation,
            readable=readable,
            anyone=np.array([name == _SELLS[stratum] for name in Scorers.fact_names], dtype=np.float32),
            epochs=_EPOCHS[stratum],
            seed=self._seed,
            progress=lambda done, total: self._report(f"fusion of {stratum} items", done, total),
        )
        if not len(validation):
            return fusion, None, about
        scores = validated.scores(validation)
        baseline = _baseline(scorers, validated, stratum, validation.rows, validation.scale, validation.n_history)
        labels = np.zeros(scores.shape, dtype=bool)
        labels[validation.positives[0], validation.positives[1]] = True
        allowed = np.ones(scores.shape, dtype=bool)
        allowed[validation.known[0], validation.known[1]] = False
        lifts = (scores - baseline[:, None])[allowed]
        calibrator = Calibrator.fit(lifts, labels[allowed], tested_share=validation.tested_share)
        about |= {
            "n_users": len(validation),
            "n_items": scores.shape[1],
            "ndcg@20": round(float(validation.ndcg(scores).mean()), 4),
            "ndcg@20 of single scores": {
                column: round(float(validation.ndcg(to_single(validation.personal[place])).mean()), 4)
                for place, column in enumerate(Scorers.names)
            },
        }
        return fusion, calibrator, about


def _all_calibrated(found: dict[Stratum, Calibrator | None]) -> dict[Stratum, Calibrator]:
    """What could not be rehearsed is taken to be as likely as the other kind of items, so that neither floods lists."""
    rehearsed = [calibrator for calibrator in found.values() if calibrator is not None]
    usual = rehearsed[0] if rehearsed else Calibrator(1.0, 0.0)
    return {stratum: calibrator or usual for stratum, calibrator in found.items()}


_OWN: Final = {*BEHAVIOUR, "popularity"}


def _baseline(
    scorers: Scorers,
    fusion: Fusion,
    stratum: Stratum,
    rows: sparse.csr_array,
    scale: NDArray[np.float32],
    n_history: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Log mean exp of a user's scores over reference items of the stratum's kind. Shape (B,)."""
    block, facts = scorers.reference_page(_N_BASELINE, known=stratum == "known")
    out = np.empty(rows.shape[0], dtype=np.float32)
    for start in range(0, rows.shape[0], 512):
        part = slice(start, start + 512)
        scores = fusion.predict(block.personal(rows[part], scale[part]), facts, n_history[part]).astype(np.float64)
        highest = scores.max(axis=1)
        out[part] = highest + np.log(np.exp(scores - highest[:, None]).mean(axis=1))
    return out


@dataclass(frozen=True, slots=True, eq=False)
class _Fold:
    """A rehearsal of a launch: what is seen, and the hidden events of items that play the new ones. Shapes (U, I).

    Attributes:
        seen: what may be learned from.
        hidden_new: all events of the items that play the new ones.
        hidden_known: events of other items that are hidden too; by chance only the last fold has them, so that new
            and known items are measured in one world.
        known_share: share of the known items' future events that ``hidden_known`` holds, where ``hidden_new`` holds all
            of the new ones'.
        by: how the items were chosen.
    """

    seen: sparse.csr_array
    hidden_new: sparse.csr_array
    hidden_known: sparse.csr_array | None
    known_share: float
    by: Literal["time", "chance"]


def _folds(histories: sparse.csr_array, times: NDArray[np.int64] | None, seed: int) -> list[_Fold]:
    """Three rehearsals: the launches of three spans of time where the shop has a clock, else random fifths of items.

    By time a fold sees all that happened before its span and hides what happened in it. What sells in the next season
    is learned from the seasons before; a random item's neighbours would already know.

    Args:
        histories: users × items, shape (U, I).
        times: first and last of its entries, epoch seconds, shape (2, nnz); ``None`` without a clock.
        seed: of the random items.
    """
    if times is not None:
        folds = _folds_by_time(histories, times)
        if all(_is_enough(fold) for fold in folds):
            return folds
    return _folds_by_chance(histories, seed)


def _folds_by_time(histories: sparse.csr_array, times: NDArray[np.int64]) -> list[_Fold]:
    first, last = times
    launched = np.full(histories.shape[1], np.iinfo(np.int64).max)
    np.minimum.at(launched, histories.indices, first)
    sold = launched[launched < np.iinfo(np.int64).max]
    cuts = [*np.quantile(sold, _SPANS, method="higher"), np.iinfo(np.int64).max]
    folds = []
    for start, end in itertools.pairwise(cuts):
        # As ``snapshot`` has it: what comes again later counts as its first time alone, weight and strength 1.
        strengths = np.where(last < start, histories.data, np.float32(1))
        known_then = sparse.csr_array((strengths, histories.indices, histories.indptr), shape=histories.shape)
        seen, later = _split(known_then, first >= start)
        soon = first[first >= start] < end
        is_new = launched[later.indices] >= start
        new, known = (_split(later, soon & kind)[1] for kind in (is_new, ~is_new))
        folds.append(_Fold(seen, new, known, 1.0, "time"))
    return folds


def _folds_by_chance(histories: sparse.csr_array, seed: int) -> list[_Fold]:
    rng = np.random.default_rng([seed, 2])
    warm = rng.permutation(np.flatnonzero(np.bincount(histories.indices)))
    n_hidden = max(1, int(len(warm) * _HIDDEN_SHARE))
    folds = []
    for number in range(_N_FOLDS):
        hidden = np.zeros(histories.shape[1], dtype=bool)
        hidden[warm[number * n_hidden : (number + 1) * n_hidden]] = True
        seen, hidden_new = _split(histories, hidden[histories.indices])
        known = None
        if number == _N_FOLDS - 1:
            lengths = np.diff(seen.indptr)
            later = np.repeat(lengths >= 3, lengths) & (rng.random(seen.nnz) < _HIDDEN_SHARE)
            seen, known = _split(seen, later)
        folds.append(_Fold(seen, hidden_new, known, _HIDDEN_SHARE / _AHEAD, "chance"))
    return folds


def _is_enough(fold: _Fold) -> bool:
    """Whether customers who were known before took enough of enough different items."""
    known = np.diff(fold.seen.indptr) > 0
    taken = sparse.csr_array(fold.hidden_new[known])
    return len(np.unique(taken.indices)) >= _FEWEST_ITEMS and int((np.diff(taken.indptr) > 0).sum()) >= _FEWEST_USERS


def _content(
    graph: KnowledgeGraph,
    histories: sparse.csr_array,
    folds: Sequence[_Fold],
    text_model: str | None,
    seed: int,
    report: Progress,
    checkpoint: Path | None,
) -> ItemContent:

    def encoded() -> ItemContent:
        facts = ItemFacts.of(graph)
        encoder = TextEncoder.pretrained(text_model)
        told = np.array(
            [bool(name.strip() or text.strip()) for name, text in zip(facts.names, facts.descriptions, strict=True)]
        )
        if told.mean() < 0.5:
            why = (
                f"{told.sum():,} of {len(told):,} items have a name or description; the others' facts are in the graph"
            )
            encoder.metrics = {"ships": "start", "why": why}
        else:
            # The items that will play the new ones are held out here too: no score may have seen who takes them.
            encoder = fine_tune(
                encoder,
                facts.sentences(),
                power_of(histories, 0),
                held_out=np.unique(np.concatenate([fold.hidden_new.indices for fold in folds])).astype(np.int64),
                seed=seed,
                progress=lambda done, total: report("text encoder", done, total),
            )
        return ItemContent.fit(facts, encoder, seed=seed, progress=lambda done, total: report("text", done, total))

    return _kept(checkpoint and checkpoint / "content", ItemContent.load, encoded, lambda: report("text", 1, 1))


def _kept(
    folder: Path | None, load: Callable[[Path], _Made], make: Callable[[], _Made], found: Callable[[], None]
) -> _Made:
    """What an interrupted training left in the folder, or made now and left there, whole or not at all."""
    from safetensors import SafetensorError

    if folder is None:
        return make()
    if folder.exists():
        try:
            made = load(folder)
        except (OSError, ValueError, KeyError, SafetensorError, WorkspaceError):
            shutil.rmtree(folder)  # a power cut: the folder had its name before its files had their content
        else:
            found()
            return made
    made = make()
    begun = folder.with_name(f"{folder.name}.next")
    made.save(begun)
    begun.rename(folder)
    return made


def _histories(graph: KnowledgeGraph) -> sparse.csr_array:
    """The customers' histories, if they can train anything. Shape (U, I)."""
    facts = graph.facts[schema.INTERACTED]
    n_users, n_items = len(np.unique(facts.heads)), len(np.unique(facts.tails))
    if n_users < 2 or n_items < 2:
        raise TrainingError(
            f"{len(facts)} interactions of {n_users} customers with {n_items} items cannot train a recommender; "
            "ingest events of at least 2 customers and 2 items"
        )
    return graph.histories


def _strengths(scorers: Scorers, histories: sparse.csr_array, emphasis: float) -> sparse.csr_array:
    """The latest items of each history as the scores see them. Shape (B, n_warm)."""
    rows = scorers.histories(latest(histories, _MAX_HISTORY))
    rows.data **= np.float32(emphasis)
    return rows


def _clock(graph: KnowledgeGraph) -> NDArray[np.int64] | None:
    """First and last times of what ``_histories`` holds, epoch seconds, shape (2, nnz); ``None`` if any is unknown."""
    facts = graph.facts[schema.INTERACTED]
    if not len(facts) or facts.at.min() < 0:
        return None
    return np.stack([facts.at, facts.last_at])[:, np.lexsort((facts.order, facts.heads))]


def _split(histories: sparse.csr_array, hidden: NDArray[np.bool_]) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Entries that are seen, and those that are hidden, each of shape (U, I)."""
    rows = np.repeat(np.arange(histories.shape[0]), np.diff(histories.indptr))
    parts = []
    for mask in (~hidden, hidden):
        lengths = np.bincount(rows[mask], minlength=histories.shape[0])
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        data = (histories.data[mask], histories.indices[mask], indptr)
        parts.append(sparse.csr_array(data, shape=histories.shape))
    return parts[0], parts[1]


def _chosen(
    scores: NDArray[np.float32], k: int, boost: NDArray[np.float32] | None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Columns of the k that are best with the boost, ordered by their scores without it; -inf ends a list."""
    if boost is None:
        best = _best(scores, k)
        return best, np.take_along_axis(scores, best, axis=1)
    boosted = scores + boost
    best = np.sort(_best(boosted, k), axis=1)
    shown = np.isfinite(np.take_along_axis(boosted, best, axis=1))
    values = np.where(shown, np.take_along_axis(scores, best, axis=1), np.float32(-np.inf))
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(best, order, axis=1), np.take_along_axis(values, order, axis=1)


def _best(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Columns of the k largest scores, best first, equal ones by column. Shape (B, min(k, C))."""
    k = min(k, scores.shape[1])
    if k == 0:
        return np.zeros((len(scores), 0), dtype=np.int64)
    limit = -np.partition(-scores, k - 1, axis=1)[:, k - 1]
    best = np.empty((len(scores), k), dtype=np.int64)
    for row, least in enumerate(limit):
        columns = np.flatnonzero(scores[row] >= least)
        best[row] = columns[np.argsort(-scores[row, columns], kind="stable")][:k]
    return best


def _key(rows: sparse.csr_array, row: int) -> bytes:
    part = slice(rows.indptr[row], rows.indptr[row + 1])
    digest = hashlib.blake2b(rows.indices[part].astype(np.int64).tobytes(), digest_size=8)
    digest.update(rows.data[part].tobytes())
    return digest.digest()


def _no_scales() -> dict[str, NDArray[Any]]:
    n_scores = len(Scorers.names)
    return {
        "keys": np.zeros((0, 8), dtype=np.uint8),
        "scale": np.zeros((1, 2, n_scores), dtype=np.float32),
        "baselines": np.zeros((1, 2), dtype=np.float32),
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
