"""Single scores of candidates for histories, each from one view: text, brand, category, attributes, walks, behaviour.

A score is the sum over a history of what each of its items says about the candidate. For items without events it can
only say so through content: directly, or after one step through behaviour (what goes with the history is near the
candidate). All scores of one user are then compared with what they are over a fixed sample of the catalogue: a score
does not move when another product is launched.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from scipy import sparse

from encoders.content import csr_arrays, csr_matrix, power_of, put_rows, to_half, to_single, top_of_rows
from recommender.collaborative import MAX_DENSE_ITEMS, co_walk, fit_item_model, inverse_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from encoders.content import ItemContent
    from encoders.graph import GraphEncoder

N_NEIGHBOURS: Final = 200
"""Warm neighbours kept per item and view; fewer lost nothing for direct scores, 50 lost a little."""
_N_WALK: Final = 50
_NO_SPREAD: Final = 1e-6
"""Standard deviation up to which a score tells no items apart."""
_PAIRS_AT_ONCE: Final = 1_000_000
_STEPS_AT_ONCE: Final = 4_000_000
_FEW_CANDIDATES: Final = 128

VIEWS: Final = ("words", "terms", "text", "characters", "brands", "categories", "leaves", "attributes")
DIRECT: Final = (
    ("words", 1),
    ("terms", 1),
    ("terms", 2),
    ("text", 6),
    ("text", 12),
    ("characters", 2),
    ("characters", 5),
    ("brands", 1),
    ("categories", 1),
    ("attributes", 1),
)
"""(view, power): the sum over the history of similarity ** power. Powers above 1 listen to the nearest items."""
NEAREST: Final = (("words", 1),)
"""(view, power): the most similar item of the history."""
WALKED: Final = (
    ("ease", "words", 1),
    ("ease", "categories", 1),
    ("walk", "words", 2),
    ("walk", "terms", 2),
    ("walk", "brands", 1),
    ("walk", "leaves", 1),
    ("walk", "attributes", 1),
)
"""(step, view, power): the history after one step through behaviour, then to the candidate's nearest warm items."""
FACTS: Final = (("brands", 1.0), ("categories", 1.0), ("attributes", 1.0), ("terms", 0.6))
"""(bag, weight) of the facts through which the history walks to a candidate."""
KERNEL: Final = (
    ("words", 1.0, 1),
    ("terms", 0.5, 1),
    ("text", 0.5, 2),
    ("brands", 0.2, 1),
    ("categories", 0.2, 1),
    ("attributes", 0.2, 1),
)
"""(view, weight, power) of the content kernel of the ridge regression."""
_RIDGE_L2: Final = 4.0
"""Of the ridge regression, in units of the kernel's mean diagonal."""
FACT_VIEWS: Final = (("words", 2), ("brands", 1), ("categories", 3))
"""(view, power) of the neighbours whose popularity the fusion reads beside the prediction."""
_CROWDS: Final = (*FACT_VIEWS, ("words", 1), ("text", 6), ("leaves", 1), ("characters", 2))
"""(view, power) of the neighbours from which popularity is predicted."""
_LISTING: Final = 0.3
"""Weight of one such column beside the content's in the ridge regression of popularity."""
_LOG_LIKELIHOOD: Final = "graph"
"""The score that is trained to be a log likelihood: less what the user's usual item has, it stays as it is. Divided
by the user's deviation, it would say no more of a user of whom it knows much than of one of whom it knows little."""
_CONFIDENT: Final = ("facts", "ridge", "ease+ridge")
"""Scores whose spread tells how much is known of a customer: divided by the geometric mean of the customer's deviation
and the usual one, where others are by the customer's."""
_N_USUAL: Final = 512
"""Customers from whom the usual spread is taken."""
BEHAVIOUR: Final = ("ease", "walk")
"""Scores that need the candidate's own events; they are 0 for new items and left out of the fusion for them."""


Steps = dict[str, "NDArray[np.float32]"]
"""Histories after one step through behaviour, by the step's name, each of shape (B, n_warm)."""


def score_names() -> tuple[str, ...]:
    """Names of the personal scores, in the order of the last axis of ``Scorers.raw``."""
    return (
        *(f"{view}^{power:g}" for view, power in DIRECT),
        *(f"nearest {view}" for view, _ in NEAREST),
        *(f"{step}+{view}" for step, view, _ in WALKED),
        "facts",
        "ridge",
        *(f"{step}+ridge" for step in BEHAVIOUR),
        "graph",
        *BEHAVIOUR,
    )


class Neighbours:
    """The nearest warm items of every item, per view: CSR matrices of shape (I, I), rows are candidates."""

    def __init__(self, matrices: dict[str, sparse.csr_array], warm: NDArray[np.bool_]) -> None:
        self.matrices = matrices
        self.warm = warm

    @classmethod
    def fit(cls, content: ItemContent, warm: NDArray[np.bool_]) -> Neighbours:
        """Find the neighbours of all items. ``warm`` has shape (I,)."""
        nums = np.arange(len(content))
        return cls({view: _nearest(content, view, nums, warm) for view in VIEWS}, warm)

    def put(self, content: ItemContent, item_nums: NDArray[np.int64]) -> None:
        """Find the neighbours of new (or changed) items and append (or replace) their rows."""
        self._put({view: _nearest(content, view, item_nums, self.warm) for view in VIEWS}, item_nums)

    def rows(self, item_nums: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """The neighbours of some items, as arrays to be kept and given to ``put_kept`` again."""
        arrays: dict[str, NDArray[Any]] = {}
        for view, matrix in self.matrices.items():
            arrays |= csr_arrays(view, matrix[item_nums])
            arrays[f"{view}.data"] = arrays[f"{view}.data"].astype(np.float16)
        return arrays

    def put_kept(self, arrays: dict[str, NDArray[Any]], item_nums: NDArray[np.int64]) -> None:
        """``put`` of items whose ``rows`` were kept."""
        self._put({view: csr_matrix(arrays, view, len(self.warm)) for view in VIEWS}, item_nums)

    def _put(self, rows: dict[str, sparse.csr_array], item_nums: NDArray[np.int64]) -> None:
        n_items = max(len(self.warm), int(item_nums.max(initial=-1)) + 1)
        self.warm = np.concatenate([self.warm, np.zeros(n_items - len(self.warm), dtype=bool)])
        for view, matrix in self.matrices.items():
            old, new = (
                sparse.csr_array((part.data, part.indices, part.indptr), shape=(part.shape[0], n_items))
                for part in (matrix, rows[view])
            )
            self.matrices[view] = put_rows(old, new, item_nums)


def _nearest(
    content: ItemContent, view: str, item_nums: NDArray[np.int64], warm: NDArray[np.bool_]
) -> sparse.csr_array:
    """Rows of similarities to the nearest warm items, never to the item itself. Shape (len(item_nums), I)."""
    warm_nums = np.flatnonzero(warm)
    n = min(N_NEIGHBOURS, len(warm_nums))
    matrix: Any = getattr(content, view) if view in {"text", "characters"} else content.bags[view]
    others = matrix[warm_nums].T
    rows, columns, values = [], [], []
    for start in range(0, len(item_nums), 256):
        part = item_nums[start : start + 256]
        block = np.maximum(_dense(matrix[part] @ others), 0)
        block[part[:, None] == warm_nums[None, :]] = 0
        best = np.argpartition(-block, n - 1, axis=1)[:, :n]
        found = np.take_along_axis(block, best, axis=1)
        row, column = np.nonzero(found > 1e-6)
        rows.append(row + start)
        columns.append(warm_nums[best[row, column]])
        values.append(found[row, column])
    shape = (len(item_nums), len(content))
    coordinates = (np.concatenate(rows), np.concatenate(columns))
    return sparse.csr_array((np.concatenate(values).astype(np.float16).astype(np.float32), coordinates), shape=shape)


class Scorers:
    """All single scores, fitted on one set of interactions.

    Attributes:
        names: of the personal scores; ``fact_names`` of those that the candidate has for everybody.
        n_events: events of each item as seen in fitting, shape (I,).
        warm_nums: items that have any, ascending, shape (n_warm,).
    """

    names: tuple[str, ...] = score_names()
    fact_names: tuple[str, ...] = (
        *(f"popularity of {view} neighbours" for view, _ in FACT_VIEWS),
        "predicted popularity",
        "popularity",
    )

    def __init__(
        self, content: ItemContent, neighbours: Neighbours, encoder: GraphEncoder, arrays: dict[str, NDArray[Any]]
    ) -> None:
        self._content = content
        self._neighbours = neighbours
        self.encoder = encoder
        self._arrays = arrays
        self.n_events: NDArray[np.int64] = arrays["n_events"]
        self.warm_nums = np.flatnonzero(self.n_events > 0)
        n_warm = len(self.warm_nums)
        self._walk = sparse.csr_array(
            (arrays["walk.data"], arrays["walk.indices"], arrays["walk.indptr"]), shape=(n_warm, n_warm)
        )
        self._item_model: Any
        if "ease" in arrays:
            self._item_model = arrays["ease"]
        else:
            self._item_model = sparse.csr_array(
                (arrays["knn.data"], arrays["knn.indices"], arrays["knn.indptr"]), shape=(n_warm, n_warm)
            )

    @classmethod
    def fit(
        cls,
        content: ItemContent,
        neighbours: Neighbours,
        encoder: GraphEncoder,
        interactions: sparse.csr_array,
        *,
        together: sparse.csr_array,
        ease_l2: float,
        reference: NDArray[np.int64],
    ) -> Scorers:
        """Fit on users × items; items without an entry are new to these scorers.

        Args:
            content: content of all I items.
            neighbours: their warm neighbours.
            encoder: trained on ``together``.
            interactions: shape (U, I), binary.
            together: what the steps through behaviour are learned from: the interactions, and below them what else is
                bought together of items with an entry. Shape (U + B, I), binary.
            ease_l2: EASE's penalty.
            reference: item nums by which scores are scaled.
        """
        n_events = np.bincount(interactions.indices, minlength=interactions.shape[1]).astype(np.int64)
        warm = np.flatnonzero(n_events)
        seen = sparse.csr_array(together[:, warm])
        walk = co_walk(seen)
        arrays: dict[str, NDArray[Any]] = {
            "n_events": n_events,
            "reference": reference,
            "walk.data": walk.data,
            "walk.indices": walk.indices,
            "walk.indptr": walk.indptr,
        }
        model = fit_item_model(seen, l2=ease_l2)
        if isinstance(model, np.ndarray):
            arrays["ease"] = to_single(to_half(model))
        else:
            arrays.update({"knn.data": model.data, "knn.indices": model.indices, "knn.indptr": model.indptr})
        if len(warm) <= MAX_DENSE_ITEMS:
            arrays["ridge"] = to_single(to_half(_ridge(content, warm)))
        crowd = _crowd(content, neighbours, warm, n_events)
        arrays["crowd.mean"], arrays["crowd.deviation"] = crowd.mean(axis=0), crowd.std(axis=0) + np.float32(1e-3)
        rows = _appeal(content, warm, crowd, arrays)
        popularity = np.log1p(n_events[warm]).astype(np.float32)
        penalty = 10 * np.eye(rows.shape[1], dtype=np.float32)
        arrays["popularity"] = np.linalg.solve(rows.T @ rows + penalty, rows.T @ (popularity - popularity.mean()))
        scorers = cls(content, neighbours, encoder, arrays)
        arrays["usual"] = scorers._usual(interactions)
        return scorers

    def save(self, path: Path) -> None:
        """Write one safetensors file; the content and the neighbours are saved by the ranker."""
        from safetensors.numpy import save_file

        arrays = {name: np.ascontiguousarray(array) for name, array in self._arrays.items()}
        for name in {"ease", "ridge"} & set(arrays):
            arrays[name] = to_half(arrays[name])
        save_file(arrays, path)

    @classmethod
    def load(cls, path: Path, content: ItemContent, neighbours: Neighbours, encoder: GraphEncoder) -> Scorers:
        """Read what ``save`` wrote."""
        from safetensors.numpy import load_file

        arrays = load_file(path)
        for name in {"ease", "ridge"} & set(arrays):
            arrays[name] = to_single(arrays[name])
        return cls(content, neighbours, encoder, arrays)

    def put(self, item_nums: NDArray[np.int64]) -> None:
        """Take up items that were appended to (or changed in) the content and the neighbours; appended ones are new."""
        self.encoder.put(self._content, item_nums)
        grown = np.zeros(len(self._content) - len(self.n_events), dtype=np.int64)
        self.n_events = self._arrays["n_events"] = np.concatenate([self.n_events, grown])
        if self.rest_on(item_nums):
            for cached in ("_reference", "_reference_pages", "_facts_scale", "fact_steps"):
                self.__dict__.pop(cached, None)

    def rest_on(self, item_nums: NDArray[np.int64]) -> bool:
        """Whether scores of other items rest on any of these: histories may hold it, or scores are scaled by it."""
        return bool((self.n_events[item_nums] > 0).any() or np.isin(item_nums, self.reference).any())

    def histories(self, histories: sparse.csr_array) -> sparse.csr_array:
        """Users × warm items of these scorers, columns ascending, from users × items. Shape (B, n_warm)."""
        place = np.full(max(len(self.n_events), histories.shape[1]), -1)
        place[self.warm_nums] = np.arange(len(self.warm_nums))
        columns = place[histories.indices]
        rows = np.repeat(np.arange(histories.shape[0]), np.diff(histories.indptr))
        starts = np.concatenate([[0], np.cumsum(np.bincount(rows[columns >= 0], minlength=histories.shape[0]))])
        entries = (histories.data[columns >= 0], columns[columns >= 0], starts)
        warm = sparse.csr_array(entries, shape=(histories.shape[0], len(self.warm_nums)), dtype=np.float32)
        warm.sort_indices()
        return warm

    @property
    def models(self) -> dict[str, Any]:
        """Steps from item to item through behaviour: dense or CSR, shape (n_warm, n_warm)."""
        return {"ease": self._item_model, "walk": self._walk}

    def steps(self, histories: sparse.csr_array) -> Steps:
        """The histories after one step of each model, whatever the candidates."""
        return {step: _dense(histories @ model) for step, model in self.models.items()}

    @cached_property
    def fact_steps(self) -> sparse.csr_array:
        """Probability of a step from a warm item to a fact, over the fact's weight among them. Shape (n_warm, V)."""
        facts = _facts(self._content, self.warm_nums)
        leave, arrive = (facts.sum(axis=axis) for axis in (1, 0))
        steps = sparse.diags_array(1 / np.maximum(leave, 1e-9)) @ facts @ sparse.diags_array(1 / (arrive + 1e-9))
        return sparse.csr_array(steps, dtype=np.float32)

    def block(self, item_nums: NDArray[np.int64]) -> Block:
        """Prepare scoring of these candidates."""
        return Block(self, item_nums)

    @property
    def reference(self) -> NDArray[np.int64]:
        """Items by which scores are scaled, in random order where a part is taken."""
        return self._arrays["reference"]

    @cached_property
    def _reference(self) -> Block:
        return Block(self, self._arrays["reference"])

    def reference_page(self, n: int, *, known: bool) -> tuple[Block, NDArray[np.float32]]:
        """The first n reference items, or the first n of them that have an event, and their facts; made once.

        Returns:
            The items, and facts of shape (min(n, such items), F).
        """
        page = self._reference_pages.get((n, known))
        if page is None:
            nums = self.reference
            if known:
                nums = nums[self.n_events[nums] > 0]
                nums = nums if len(nums) else self.warm_nums
            page = self._reference_pages[n, known] = (self.block(nums[:n]), self.facts(nums[:n]))
        return page

    @cached_property
    def _reference_pages(self) -> dict[tuple[int, bool], tuple[Block, NDArray[np.float32]]]:
        return {}

    def scale(self, histories: sparse.csr_array) -> NDArray[np.float32]:
        """Mean of each user's scores over the reference items, and what they are divided by. Shape (B, 2, S).

        That is their deviation, half the way to the usual one (as a ratio) for scores whose deviation tells something,
        and 1 for the log likelihood; infinity where a score tells no items apart, so that scaling makes it 0.
        """
        scale = self._spread(histories)
        usual, deviation = self._arrays["usual"], scale[:, 1]
        unit = np.where(usual > 0, np.sqrt(usual * deviation), deviation)
        unit[:, self.names.index(_LOG_LIKELIHOOD)] = 1
        scale[:, 1] = np.where(deviation > _NO_SPREAD, unit, np.inf)
        return scale

    def _usual(self, interactions: sparse.csr_array) -> NDArray[np.float32]:
        """The median user's deviation of the scores whose deviation tells something, 0 of others. Shape (S,)."""
        filled = np.flatnonzero(np.diff(interactions.indptr))
        some = filled[np.unique(np.linspace(0, len(filled) - 1, min(len(filled), _N_USUAL)).astype(int))]
        deviation = self._spread(self.histories(interactions[some]))[:, 1]
        usual = np.zeros(len(self.names), dtype=np.float32)
        for name in _CONFIDENT:
            place = self.names.index(name)
            apart = deviation[:, place] > _NO_SPREAD
            usual[place] = np.median(deviation[apart, place]) if apart.any() else 0
        return usual

    def _spread(self, histories: sparse.csr_array) -> NDArray[np.float32]:
        """Mean and standard deviation of each user's scores over the reference items. Shape (B, 2, S)."""
        spread = np.empty((histories.shape[0], 2, len(self.names)), dtype=np.float32)
        for rows in _chunks(histories, len(self.reference)):
            for place, scores in enumerate(self._reference.raw(histories[rows])):
                spread[rows, 0, place], spread[rows, 1, place] = scores.mean(axis=1), scores.std(axis=1)
        return spread

    def facts(self, item_nums: NDArray[np.int64]) -> NDArray[np.float32]:
        """What a candidate has for everybody, on the scale of the reference items. Shape (C, F)."""
        mean, deviation = self._facts_scale
        scaled: NDArray[np.float32] = (self._raw_facts(item_nums) - mean) / (deviation + 1e-3)
        return scaled.clip(-5, 5)

    @cached_property
    def _facts_scale(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        reference = self._raw_facts(self._arrays["reference"])
        return reference.mean(axis=0), reference.std(axis=0)

    def _raw_facts(self, item_nums: NDArray[np.int64]) -> NDArray[np.float32]:
        counts = np.log1p(self.n_events).astype(np.float32)
        crowd = _crowd(self._content, self._neighbours, item_nums, self.n_events)
        rows = _appeal(self._content, item_nums, crowd, self._arrays)
        predicted = rows @ self._arrays["popularity"] + counts[self.warm_nums].mean()
        columns = [crowd[:, : len(FACT_VIEWS)], predicted[:, None], counts[item_nums, None]]
        return np.concatenate(columns, axis=1, dtype=np.float32)


def _crowd(
    content: ItemContent, neighbours: Neighbours, item_nums: NDArray[np.int64], n_events: NDArray[np.int64]
) -> NDArray[np.float32]:
    """What is known of an item's popularity before launch: its neighbours', how near they are, and its listing.

    Shape (B, F). The first columns are the mean log popularity of the neighbours in the ``FACT_VIEWS``.
    """
    counts, warm = np.log1p(n_events).astype(np.float32), (n_events > 0).astype(np.float32)
    usual = float(counts[n_events > 0].mean())
    popular, near = [], []
    for view, power in _CROWDS:
        matrix = neighbours.matrices[view][item_nums]
        matrix = power_of(sparse.csr_array(matrix @ sparse.diags_array(warm)), power)
        total = matrix.sum(axis=1)
        popular.append((matrix @ counts + 0.1 * usual) / (total + 0.1))
        near += [np.log1p(total), matrix.max(axis=1).toarray().ravel() if matrix.nnz else np.zeros(len(item_nums))]
    columns: NDArray[np.float32] = np.stack([*popular, *near, *content.listing[item_nums].T], axis=1, dtype=np.float32)
    return columns


def _appeal(
    content: ItemContent, item_nums: NDArray[np.int64], crowd: NDArray[np.float32], arrays: dict[str, NDArray[Any]]
) -> NDArray[np.float32]:
    """The columns of the ridge regression of log popularity: content, and the scaled crowd. Shape (B, D + F)."""
    scaled = ((crowd - arrays["crowd.mean"]) / arrays["crowd.deviation"]).clip(-4, 4)
    return np.concatenate([content.dense[item_nums], _LISTING * scaled], axis=1, dtype=np.float32)


class Block:
    """The scorers' matrices cut to some candidates, for many histories."""

    def __init__(self, scorers: Scorers, item_nums: NDArray[np.int64]) -> None:
        self.item_nums = item_nums
        self._scorers = scorers
        warm = scorers.warm_nums
        matrices = {view: scorers._neighbours.matrices[view][item_nums][:, warm] for view in VIEWS}
        self._views = {view: sparse.csr_array(matrix.T) for view, matrix in matrices.items()}
        self._direct = [power_of(self._views[view], power) for view, power in DIRECT]
        self._walked = {(view, power): _mean_neighbour(matrices[view], power) for _, view, power in WALKED}
        self._facts = sparse.csr_array(_facts(scorers._content, item_nums).T)
        kernel = content_kernel(scorers._content, warm, item_nums)
        inverse = scorers._arrays.get("ridge")
        self._regression: Any = kernel if inverse is None else inverse @ kernel
        place = np.full(len(scorers.n_events), -1)
        place[warm] = np.arange(len(warm))
        self._own = place[item_nums]
        encoder = scorers.encoder
        views = {view: scorers._neighbours.matrices[view][item_nums] for view in VIEWS}
        self._kernel = encoder.kernel(warm, item_nums, views)

    @property
    def nbytes(self) -> int:
        """Of its dense matrices, which are most of it."""
        return int(self._regression.nbytes + self._kernel.said.nbytes + self._kernel.bought.nbytes)

    def personal(
        self, histories: sparse.csr_array, scale: NDArray[np.float32], steps: Steps | None = None
    ) -> NDArray[np.float32]:
        """All personal scores, scaled for each user and, but for the log likelihood, squashed by asinh.

        Sums of similarities have heavy tails; unsquashed, a near-duplicate in one view outvotes all the others (the
        fusion lost 5 % of its NDCG). A logarithm has none.

        Args:
            histories: from ``Scorers.histories``, shape (B, n_warm).
            scale: from ``Scorers.scale``, shape (B, 2, S).
            steps: from ``Scorers.steps`` of the same histories, where several blocks are scored for them.

        Returns:
            Shape (S, B, C). A score that tells no items apart is 0.
        """
        out = np.empty((len(self._scorers.names), histories.shape[0], len(self.item_nums)), dtype=np.float32)
        for rows in _chunks(histories, len(self.item_nums)):
            taken = None if steps is None else {step: walked[rows] for step, walked in steps.items()}
            for place, scores in enumerate(self.raw(histories[rows], taken)):
                scaled = out[place, rows]
                np.subtract(scores, scale[rows, 0, place, None], out=scaled)
                scaled /= scale[rows, 1, place, None]
                if self._scorers.names[place] != _LOG_LIKELIHOOD:
                    _asinh(scaled)
        return out

    def raw(self, histories: sparse.csr_array, steps: Steps | None = None) -> Iterator[NDArray[np.float32]]:
        """Each personal score as it is, in the order of the names. Each of shape (B, C)."""
        for similarity in self._direct:
            yield (histories @ similarity).toarray()
        for view, power in NEAREST:
            yield _largest(histories, self._views[view], power)
        regressed: Any = histories @ self._regression
        if len(self.item_nums) <= _FEW_CANDIDATES:
            for step, view, power in WALKED:
                yield histories @ self._stepped_back[step, view, power]
            yield histories @ self._stepped_back["facts", "own", 1]
            yield regressed
            for step in BEHAVIOUR:
                yield histories @ self._stepped_back[step, "ridge", 1]
            yield self._kernel.score(histories)
            for step in BEHAVIOUR:
                yield np.where(self._own >= 0, histories @ self._stepped_back[step, "own", 1], np.float32(0))
            return
        steps = self._scorers.steps(histories) if steps is None else steps
        upright = {step: np.ascontiguousarray(walked.T) for step, walked in steps.items()}  # once, not at each product
        for step, view, power in WALKED:
            walked: NDArray[np.float32] = self._walked[view, power] @ upright[step]
            yield walked.T
        yield (histories @ self._scorers.fact_steps @ self._facts).toarray()
        yield regressed
        for step in BEHAVIOUR:
            yield steps[step] @ self._regression
        yield self._kernel.score(histories)
        for step in BEHAVIOUR:
            yield np.where(self._own >= 0, steps[step][:, self._own], np.float32(0))

    @cached_property
    def _stepped_back(self) -> dict[tuple[str, str, float], NDArray[np.float32]]:
        """For few candidates the step through behaviour is taken from their side, once. Each of shape (n_warm, C)."""
        models = self._scorers.models
        stepped: dict[tuple[str, str, float], NDArray[np.float32]] = {
            (step, view, power): _dense(models[step] @ _dense(self._walked[view, power]).T)
            for step, view, power in WALKED
        }
        stepped["facts", "own", 1] = _dense(self._scorers.fact_steps @ self._facts)
        for step in BEHAVIOUR:
            stepped[step, "ridge", 1] = _dense(models[step] @ self._regression)
            stepped[step, "own", 1] = _dense(models[step][:, np.maximum(self._own, 0)])
        return stepped


def content_kernel(content: ItemContent, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float32]:
    """Similarity of items by their content alone, a weighted sum over views. Shape (len(rows), len(columns))."""
    total = np.zeros((len(rows), len(columns)), dtype=np.float32)
    for view, weight, power in KERNEL:
        if view == "text":
            similarity = np.maximum(content.text[rows] @ content.text[columns].T, 0)
        elif content.bags[view].nnz:
            similarity = (content.bags[view][rows] @ content.bags[view][columns].T).toarray()
        else:
            continue
        if power != 1:
            similarity **= power
        similarity *= weight
        total += similarity
    return total


def _facts(content: ItemContent, item_nums: NDArray[np.int64]) -> sparse.csr_array:
    """Items × facts and title words, with their weights. Shape (B, V)."""
    return sparse.csr_array(sparse.hstack([weight * content.bags[bag][item_nums] for bag, weight in FACTS]))


def _ridge(content: ItemContent, warm: NDArray[np.int64]) -> NDArray[np.float32]:
    """Inverse of the regularised content kernel of the warm items: kernel ridge regression of each user's history.

    A user's score of an item is h · (K + l2)⁻¹ · k, the regression of their history h (1 where it holds an item,
    else 0) on content. Unlike a sum of similarities it does not count ten near-duplicates ten times. Shape
    (n_warm, n_warm).
    """
    kernel = content_kernel(content, warm, warm)
    diagonal = np.arange(len(kernel))
    kernel[diagonal, diagonal] += _RIDGE_L2 * max(float(kernel[diagonal, diagonal].mean()), 1e-3)
    return inverse_of(kernel)


def _dense(matrix: Any) -> NDArray[np.float32]:
    return matrix if isinstance(matrix, np.ndarray) else matrix.toarray()


def _mean_neighbour(matrix: sparse.csr_array, power: float) -> sparse.csr_array:
    """Rows that average over the nearest warm items; a row of weak neighbours stays weak. Shape (C, n_warm)."""
    best = top_of_rows(power_of(matrix, power), _N_WALK)
    totals = best.sum(axis=1)
    return sparse.csr_array(sparse.diags_array(1 / (totals + 0.1)) @ best, dtype=np.float32)


def _asinh(values: NDArray[np.float32]) -> None:
    """In place, as ``np.arcsinh`` to 3e-7, by functions that NumPy vectorises: a fifth of the time."""
    size = np.abs(values)
    root = size * size
    root += 1
    np.sqrt(root, out=root)
    root += size
    np.copysign(np.log(root, out=root), values, out=values)


def _largest(histories: sparse.csr_array, view: sparse.csr_array, power: float) -> NDArray[np.float32]:
    """The largest similarity of a history item to each candidate. Shape (B, C)."""
    out = np.zeros((histories.shape[0], view.shape[1]), dtype=np.float32)
    filled = np.flatnonzero(np.diff(histories.indptr))
    if len(filled):
        rows = view[histories.indices].toarray()
        out[filled] = np.maximum.reduceat(rows, histories.indptr[filled], axis=0) ** power
    return out


def _chunks(histories: sparse.csr_array, n_candidates: int) -> list[slice]:
    """Slices of at least one user, with at most so many (event, candidate) pairs.

    And of (user, warm item) pairs, where there are too many candidates to take the steps from their side.
    """
    n_events = max(1, _PAIRS_AT_ONCE // max(1, n_candidates))
    n_users = n_events
    if n_candidates > _FEW_CANDIDATES:
        n_users = max(1, min(n_events, _STEPS_AT_ONCE // max(1, histories.shape[1])))
    chunks, start = [], 0
    while start < histories.shape[0]:
        limit = int(np.searchsorted(histories.indptr, histories.indptr[start] + n_events, side="right")) - 1
        stop = min(max(limit, start + 1), start + n_users, histories.shape[0])
        chunks.append(slice(start, stop))
        start = stop
    return chunks


def save_neighbours(neighbours: Neighbours, path: Path) -> None:
    """Write the neighbour lists as one safetensors file."""
    from safetensors.numpy import save_file

    arrays = {"warm": neighbours.warm, **neighbours.rows(np.arange(len(neighbours.warm)))}
    save_file(arrays, path, metadata={"views": json.dumps(list(neighbours.matrices))})


def load_neighbours(path: Path) -> Neighbours:
    """Read what ``save_neighbours`` wrote."""
    from safetensors.numpy import load_file

    arrays = load_file(path)
    warm = arrays["warm"]
    return Neighbours({view: csr_matrix(arrays, view, len(warm)) for view in VIEWS}, warm)
