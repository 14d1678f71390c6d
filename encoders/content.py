"""``ItemContent``: what is known of an item before its first sale, as matrices.

Words, characters, the text encoder's vector, brands, categories and attributes. Nothing here has seen an event, so a
new item gets exactly what an old one with the same facts has.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from encoders.text import TextEncoder
from kg import schema

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy import sparse

    from kg.schema import Relation
    from kg.snapshot import KnowledgeGraph

_MAX_CHARACTERS: Final = 4_000
"""Of a description: the rest is boilerplate, and a shop may paste a manual there."""
UNSPACED: Final = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai and Lao, Burmese, Khmer
    "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7af"  # Japanese, Chinese, Korean
)
"""Scripts that set no spaces between words, as a range of a regular expression."""
MARKS: Final = "\u200c\u200d" + "".join(
    chr(code)
    for code in (*range(0x300, 0x1E00), *range(0xA600, 0xAC00))
    if unicodedata.category(chr(code)) in {"Mn", "Mc"}
)
"""Vowel signs, accents and joiners that follow a letter; to ``re`` they are no part of a word."""
_TOKEN: Final = rf"[{UNSPACED}][{MARKS}]*|[^\W_{UNSPACED}]+(?:[{MARKS}]+[^\W_{UNSPACED}]*)*"
"""Words; where no spaces part them single characters, so that 2-grams are about what words are elsewhere."""
MAX_PAIRED: Final = 3_000
"""Items of one customer that are paired with each other: those of a reseller with 30,000 would take 45 GB."""
_LONE: Final = 0.55
"""Weight of words and pairs of words that one item alone has. Where there are descriptions 0 is best, where there are
names of a few words 1 is; this loses next to nothing on either."""
_MAX_FEATURES: Final = {"words": 400_000, "terms": 50_000, "characters": 30_000}
_DENSE_SIZE: Final = {"words": 384, "characters": 128, "brands": 96, "categories": 128, "attributes": 128}


@dataclass(frozen=True, slots=True)
class ItemFacts:
    """The catalogue's facts of some items, row by row. ``lineages`` holds the ``categories`` and their ancestors."""

    item_ids: tuple[str, ...]
    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    brands: tuple[tuple[str, ...], ...]
    categories: tuple[tuple[str, ...], ...]
    lineages: tuple[tuple[str, ...], ...]
    attributes: tuple[tuple[str, ...], ...]
    prices: NDArray[np.float64]
    """Not a number where unknown. Shape (B,)."""

    def __len__(self) -> int:
        return len(self.item_ids)

    @classmethod
    def of(cls, graph: KnowledgeGraph, item_nums: NDArray[np.int64] | None = None) -> ItemFacts:
        """The facts of a graph's items: all, or the given ones in the given order. Reads no behavioural edge."""
        nums = np.arange(len(graph.items)) if item_nums is None else item_nums
        lineage = _lineages(graph)
        leaves = _keys(graph, schema.IN_CATEGORY, nums)
        products = graph.products[nums.tolist()]
        return cls(
            item_ids=tuple(products["key"].to_list()),
            names=tuple(name or "" for name in products["name"]),
            descriptions=tuple((text or "")[:_MAX_CHARACTERS] for text in products["description"]),
            brands=_keys(graph, schema.MADE_BY, nums),
            categories=leaves,
            lineages=tuple(tuple(dict.fromkeys(key for leaf in row for key in lineage[leaf])) for row in leaves),
            attributes=_keys(graph, schema.HAS_ATTRIBUTE, nums),
            prices=products["price"].cast(float).fill_null(np.nan).to_numpy(),
        )

    def documents(self) -> list[str]:
        """Text for bags of words: the title twice, since it says most, categories, brand, attributes, description."""
        return [
            " ".join((name, name, *_path_texts(leaves, lineage), *brands, *_spaced(attributes), description))
            for name, leaves, lineage, brands, attributes, description in zip(
                self.names,
                self.categories,
                self.lineages,
                self.brands,
                self.attributes,
                self.descriptions,
                strict=True,
            )
        ]

    def listing(self) -> NDArray[np.float32]:
        """How much the catalogue says: a product that its shop describes well sells more. Shape (B, 8).

        Log lengths of name, description, what the description has beyond 200 characters, and categories; whether there
        is a description, a brand, a price; the log price, 0 where unknown.
        """
        names, descriptions = (np.array([len(text) for text in texts]) for texts in (self.names, self.descriptions))
        categories = np.array([sum(map(len, lineage)) for lineage in self.lineages])
        priced = np.isfinite(self.prices)
        columns = [
            np.log1p(names),
            np.log1p(descriptions),
            np.log1p(np.maximum(descriptions - 200, 0)),
            np.log1p(categories),
            descriptions > 0,
            np.array([bool(brands) for brands in self.brands]),
            priced,
            np.log1p(np.maximum(np.where(priced, self.prices, 0), 0)),
        ]
        return np.stack(columns, axis=1).astype(np.float32).reshape(len(self), len(columns))

    def sentences(self) -> list[str]:
        """Text for the language model, most telling first, since only its start is read. Never the id."""
        rows = zip(
            self.names,
            self.categories,
            self.lineages,
            self.brands,
            self.attributes,
            self.descriptions,
            strict=True,
        )
        return [
            ". ".join(
                part
                for part in (
                    name,
                    ", ".join(_path_texts(leaves, lineage)),
                    ", ".join(brands),
                    description[:300],
                    ", ".join(_spaced(attributes[:20])),
                )
                if part
            )
            for name, leaves, lineage, brands, attributes, description in rows
        ]


def _lineages(graph: KnowledgeGraph) -> dict[str, tuple[str, ...]]:
    """Category key → itself and its ancestors, nearest first. A cycle in the taxonomy is walked once."""
    keys = graph.vocabularies[schema.CATEGORY].keys
    facts = graph.facts[schema.SUBCATEGORY_OF]
    parents: dict[str, list[str]] = {}
    for head, tail in zip(facts.heads.tolist(), facts.tails.tolist(), strict=True):
        parents.setdefault(keys[head], []).append(keys[tail])
    lineages = {}
    for key in keys:
        found = [key]
        for known in found:
            found.extend(parent for parent in parents.get(known, ()) if parent not in found)
        lineages[key] = tuple(found)
    return lineages


def _keys(graph: KnowledgeGraph, relation: Relation, item_nums: NDArray[np.int64]) -> tuple[tuple[str, ...], ...]:
    """Keys of the tails of each item, sorted."""
    facts, keys = graph.facts[relation], graph.vocabularies[relation.tail_label].keys
    row_of = np.full(len(graph.items), -1)
    row_of[item_nums] = np.arange(len(item_nums))
    rows: list[list[str]] = [[] for _ in item_nums]
    wanted = row_of[facts.heads] >= 0
    for head, tail in zip(facts.heads[wanted].tolist(), facts.tails[wanted].tolist(), strict=True):
        rows[row_of[head]].append(keys[tail])
    return tuple(tuple(sorted(row)) for row in rows)


def _path_texts(leaves: Sequence[str], lineage: Sequence[str]) -> list[str]:
    """Category texts without saying an ancestor twice where the leaf's key is its whole path."""
    longest = [key for key in lineage if not any(other != key and other.startswith(key) for other in lineage)]
    return [key.replace(" > ", " ") for key in dict.fromkeys((*leaves, *longest))]


def _spaced(attributes: Sequence[str]) -> list[str]:
    return [attribute.replace("=", " ") for attribute in attributes]


class Bag:
    """Weighted bags: sublinear term frequency × inverse document frequency, rows of length 1 (Salton and Buckley 1988).

    ``kind`` is ``words`` (1- and 2-grams), ``terms`` (single words, present or not), ``characters`` (2- to 5-grams
    within words) or ``keys`` (graph nodes). A vocabulary that is empty gives matrices without columns. What only one
    item of the catalogue says counts less (``_LONE``): it can make that item like no other, only unlike all.
    """

    def __init__(self, kind: str, vocabulary: Sequence[str], idf: NDArray[np.float32]) -> None:
        self.kind = kind
        self.vocabulary = tuple(vocabulary)
        self.idf = idf
        self._counter = _counter(kind, self.vocabulary) if self.vocabulary else None

    @classmethod
    def fit_transform(cls, kind: str, rows: Sequence[Any]) -> tuple[Bag, sparse.csr_array]:
        """Learn vocabulary and rarity from B rows (texts, or tuples of keys), and weigh them as ``transform`` does."""
        counter = _counter(kind, None)
        try:
            counts = counter.fit_transform(rows)
        except ValueError:  # sklearn: empty vocabulary
            bag = cls(kind, (), np.zeros(0, dtype=np.float32))
            return bag, bag.transform(rows)
        frequency = np.bincount(counts.indices, minlength=counts.shape[1])
        idf = np.log((1 + len(rows)) / (1 + frequency)) + 1
        if kind == "words":
            idf[frequency == 1] *= _LONE
        bag = cls(kind, counter.get_feature_names_out().tolist(), idf.astype(np.float32))
        return bag, bag._weighted(counts)

    def transform(self, rows: Sequence[Any]) -> sparse.csr_array:
        """Shape (B, V), float32; unknown words are left out."""
        from scipy import sparse

        if self._counter is None:
            return sparse.csr_array(np.zeros((len(rows), 0), dtype=np.float32))
        return self._weighted(self._counter.transform(rows))

    def _weighted(self, counted: Any) -> sparse.csr_array:
        from scipy import sparse

        entries = (counted.data.astype(np.float32), counted.indices, counted.indptr)
        counts: Any = sparse.csr_array(entries, shape=(counted.shape[0], len(self.vocabulary)))
        counts.sort_indices()
        if self.kind in {"terms", "keys"}:
            counts.data[:] = 1
        else:
            counts.data = 1 + np.log(counts.data)
        counts.data *= self.idf[counts.indices]
        return _unit_rows(counts)


def _counter(kind: str, vocabulary: Sequence[str] | None) -> Any:
    from sklearn.feature_extraction.text import CountVectorizer

    if kind == "keys":
        return CountVectorizer(analyzer=_identity, vocabulary=vocabulary)
    options: dict[str, Any] = {"vocabulary": vocabulary, "max_features": _MAX_FEATURES[kind]}
    if kind == "characters":
        return CountVectorizer(analyzer="char_wb", ngram_range=(2, 5), **options)
    return CountVectorizer(token_pattern=_TOKEN, ngram_range=(1, 2 if kind == "words" else 1), **options)


def _identity(row: Any) -> Any:
    return row


def _unit_rows(matrix: sparse.csr_array) -> sparse.csr_array:
    from scipy import sparse

    norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    scale = np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)
    return sparse.csr_array(sparse.diags_array(scale) @ matrix, dtype=np.float32)


class Projection:
    """Truncated SVD of a bag's rows (Deerwester et al. 1990): ``columns`` (V',) go by ``components`` (V', D).

    Words of a single item say nothing about another one: only columns with two entries are read, which is a third of
    them. Components are kept in half precision.
    """

    def __init__(self, columns: NDArray[np.int32], components: NDArray[np.float16]) -> None:
        self.columns = columns
        self.components = components

    @classmethod
    def fit(cls, rows: sparse.csr_array, size: int, seed: int) -> Projection:
        """The ``size`` leading right singular vectors; fewer where the matrix has fewer rows or columns.

        Randomised range finder on the rows' side, which is the small one (Halko, Martinsson and Tropp 2011, alg. 4.4).
        """
        columns = np.flatnonzero(np.bincount(rows.indices, minlength=rows.shape[1]) > 1).astype(np.int32)
        size = min(size, rows.shape[0] - 1, len(columns))
        if size < 1:
            return cls(columns[:0], np.zeros((0, 0), dtype=np.float16))
        matrix = rows[:, columns]
        start = np.random.default_rng(seed).standard_normal((len(columns), size + 16), dtype=np.float32)
        basis = np.linalg.qr(matrix @ start)[0]
        for _ in range(3):
            basis = np.linalg.qr(matrix @ (matrix.T @ basis))[0]
        projected = matrix.T @ basis
        values, vectors = np.linalg.eigh(projected.T @ projected)
        values, vectors = values[::-1][:size], vectors[:, ::-1][:, :size]
        kept = values > 1e-6 * max(float(values[0]), 1e-12)
        right = projected @ (vectors[:, kept] / np.sqrt(values[kept]))
        return cls(columns, right.astype(np.float16))

    def transform(self, rows: sparse.csr_array) -> NDArray[np.float32]:
        """Shape (B, D)."""
        read: Any = rows[:, self.columns]
        # One launched item reads a few hundred of 100,000 columns: making all of them float32 took 80 ms.
        used = np.unique(read.indices)
        return np.asarray(read[:, used] @ self.components[used].astype(np.float32), dtype=np.float32)


BAGS: Final = ("words", "terms", "characters", "brands", "categories", "leaves", "attributes")
_ARRAYS: Final = ("text", "sentences", "characters", "listing", "dense")


class ItemContent:
    """The content matrices of all items, and what turns a new item's facts into the same.

    Attributes:
        text: vectors of the text encoder, shape (I, D), unit rows (zero for items without text).
        sentences: digests of the sentences that it read, shape (I,), uint64.
        bags: name → sparse unit rows, shape (I, V_name).
        characters: projected character n-grams of the title, unit rows, shape (I, D_c).
        listing: how much the catalogue says of each item, and its price, from ``ItemFacts.listing``, shape (I, 8).
        dense: everything in one row of about length 1 a block, for linear models, shape (I, D_all).
    """

    def __init__(self, encoder: TextEncoder, bags: dict[str, Bag], projections: dict[str, Projection]) -> None:
        self.encoder = encoder
        self._bags = bags
        self._projections = projections
        self.bags: dict[str, sparse.csr_array] = {}
        self.text: NDArray[np.float32] = np.zeros((0, encoder.embedding_size), dtype=np.float32)
        self.sentences: NDArray[np.uint64] = np.zeros(0, dtype=np.uint64)
        self.characters: NDArray[np.float32]
        self.listing: NDArray[np.float32]
        self.dense: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.text)

    @classmethod
    def fit(
        cls,
        facts: ItemFacts,
        encoder: TextEncoder,
        *,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> ItemContent:
        """Learn vocabularies, rarities and projections from a catalogue, new items included: no event is read."""
        rows = _rows(facts)
        kinds = {"words": "words", "terms": "terms", "characters": "characters"}
        fitted = {name: Bag.fit_transform(kinds.get(name, "keys"), rows[name]) for name in BAGS}
        bags = {name: bag for name, (bag, _) in fitted.items()}
        matrices = {name: matrix for name, (_, matrix) in fitted.items()}
        projections = {name: Projection.fit(matrices[name], size, seed) for name, size in _DENSE_SIZE.items()}
        content = cls(encoder, bags, projections)
        content._put(matrices, *content._read(facts.sentences(), progress), facts.listing(), np.arange(len(facts)))
        return content

    def put(
        self,
        facts: ItemFacts,
        item_nums: NDArray[np.int64],
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> NDArray[np.int64]:
        """Append new items (or replace changed ones), encoded with what was learned before.

        Args:
            facts: of the B items.
            item_nums: their row numbers; those from ``len(self)`` on are new and must follow without a gap.
            progress: called with texts encoded and in all.

        Returns:
            Row numbers of the items whose words, brands, categories or attributes are others now, and of new ones. Of
            the rest, whose price may have changed, what is near by content is near still.
        """
        rows = _rows(facts)
        matrices = {name: self._bags[name].transform(rows[name]) for name in BAGS}
        text, sentences = self._read(facts.sentences(), progress)
        differs = self._differs(matrices, sentences, item_nums)
        self._put(matrices, text, sentences, facts.listing(), item_nums)
        return item_nums[differs]

    def _differs(
        self, matrices: dict[str, sparse.csr_array], sentences: NDArray[np.uint64], item_nums: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        differs = item_nums >= len(self)
        known = np.flatnonzero(~differs)
        differs[known] = self.sentences[item_nums[known]] != sentences[known]
        for name, matrix in matrices.items():
            difference = self.bags[name][item_nums[known]] - matrix[known]
            difference.eliminate_zeros()
            differs[known] |= np.diff(difference.indptr) > 0
        return differs

    def rows(self, item_nums: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """What was read of some items, as arrays to be kept and given to ``put_kept`` again."""
        arrays: dict[str, NDArray[Any]] = {
            name: getattr(self, name)[item_nums] for name in ("text", "sentences", "listing")
        }
        for name, matrix in self.bags.items():
            arrays |= csr_arrays(name, matrix[item_nums])
        return arrays

    def put_kept(self, arrays: dict[str, NDArray[Any]], item_nums: NDArray[np.int64]) -> NDArray[np.int64]:
        """``put`` of items whose ``rows`` were kept; the result is the same."""
        matrices = {name: csr_matrix(arrays, name, len(bag.vocabulary)) for name, bag in self._bags.items()}
        differs = self._differs(matrices, arrays["sentences"], item_nums)
        self._put(matrices, arrays["text"], arrays["sentences"], arrays["listing"], item_nums)
        return item_nums[differs]

    def _read(
        self, sentences: Sequence[str], progress: Callable[[int, int], None] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.uint64]]:
        """Vectors and digests of sentences. What an item says already is not encoded again: new prices change none."""
        keys = [hashlib.blake2b(sentence.encode(), digest_size=8).digest() for sentence in sentences]
        digests = np.frombuffer(b"".join(keys), dtype=np.uint64)
        rows = np.flatnonzero(np.isin(self.sentences, digests))
        held = dict(zip(self.sentences[rows].tolist(), rows.tolist(), strict=True))
        places = np.array([held.get(digest, -1) for digest in digests.tolist()], dtype=np.int64)
        text = np.empty((len(sentences), self.encoder.embedding_size), dtype=np.float32)
        text[places >= 0] = self.text[places[places >= 0]]
        unread = np.flatnonzero(places < 0)
        text[unread] = self.encoder.encode([sentences[row] for row in unread.tolist()], progress=progress)
        return text, digests

    def _put(
        self,
        matrices: dict[str, sparse.csr_array],
        text: NDArray[np.float32],
        sentences: NDArray[np.uint64],
        listing: NDArray[np.float32],
        item_nums: NDArray[np.int64],
    ) -> None:
        blocks = {name: projection.transform(matrices[name]) for name, projection in self._projections.items()}
        characters = _unit(blocks["characters"])
        dense = np.concatenate([text, *blocks.values()], axis=1)
        if not len(self):
            self.bags, self.text, self.sentences = matrices, text, sentences
            self.characters, self.listing, self.dense = characters, listing, dense
            return
        self.bags = {name: put_rows(old, matrices[name], item_nums) for name, old in self.bags.items()}
        self.text = put_rows(self.text, text, item_nums)
        self.sentences = put_rows(self.sentences, sentences, item_nums)
        self.characters = put_rows(self.characters, characters, item_nums)
        self.listing = put_rows(self.listing, listing, item_nums)
        self.dense = put_rows(self.dense, dense, item_nums)

    def save(self, folder: Path) -> None:
        """Write the encoder's folder, ``bags.json`` and ``content.safetensors``."""
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        self.encoder.save(folder / "text")
        about = {name: {"kind": bag.kind, "vocabulary": bag.vocabulary} for name, bag in self._bags.items()}
        (folder / "bags.json").write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")
        arrays: dict[str, NDArray[Any]] = {name: getattr(self, name) for name in _ARRAYS}
        for name, bag in self._bags.items():
            arrays[f"{name}.idf"] = bag.idf
            arrays |= csr_arrays(name, self.bags[name])
        for name, projection in self._projections.items():
            arrays[f"{name}.columns"] = projection.columns
            arrays[f"{name}.components"] = projection.components
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "content.safetensors")

    @classmethod
    def load(cls, folder: Path) -> ItemContent:
        """Read what ``save`` wrote."""
        from safetensors.numpy import load_file

        about = json.loads((folder / "bags.json").read_text(encoding="utf-8"))
        arrays = load_file(folder / "content.safetensors")
        bags = {name: Bag(bag["kind"], bag["vocabulary"], arrays[f"{name}.idf"]) for name, bag in about.items()}
        projections = {
            name: Projection(arrays[f"{name}.columns"], arrays[f"{name}.components"]) for name in _DENSE_SIZE
        }
        content = cls(TextEncoder.load(folder / "text"), bags, projections)
        for name in _ARRAYS:
            setattr(content, name, arrays[name])
        content.bags = {name: csr_matrix(arrays, name, len(bag.vocabulary)) for name, bag in bags.items()}
        return content


def _rows(facts: ItemFacts) -> dict[str, Sequence[Any]]:
    titles = [name or document for name, document in zip(facts.names, facts.documents(), strict=True)]
    return {
        "words": facts.documents(),
        "terms": titles,
        "characters": titles,
        "brands": facts.brands,
        "categories": facts.lineages,
        "leaves": facts.categories,
        "attributes": facts.attributes,
    }


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 1e-12)
    return unit


def put_rows(old: Any, new: Any, rows: NDArray[np.int64]) -> Any:
    """A matrix (dense or CSR) with rows replaced, or appended where they begin at its end."""
    from scipy import sparse

    n_rows = max(old.shape[0], int(rows.max(initial=-1)) + 1)
    taken = np.arange(n_rows)
    taken[rows] = old.shape[0] + np.arange(len(rows))
    stacked: Any
    if sparse.issparse(old):
        stacked = sparse.csr_array(sparse.vstack([old, new], format="csr"))  # type: ignore[call-overload]  # not in the stubs
    else:
        stacked = np.concatenate([old, new])
    return stacked if np.array_equal(taken, np.arange(stacked.shape[0])) else stacked[taken]


def csr_arrays(name: str, matrix: sparse.csr_array) -> dict[str, NDArray[Any]]:
    """A sparse matrix as arrays for a file that holds several; ``csr_matrix`` reads them."""
    return {
        f"{name}.data": matrix.data,
        f"{name}.indices": matrix.indices.astype(np.int32),
        f"{name}.indptr": matrix.indptr.astype(np.int64),
    }


def csr_matrix(arrays: dict[str, NDArray[Any]], name: str, n_columns: int) -> sparse.csr_array:
    """What ``csr_arrays`` took apart; half precision becomes single."""
    from scipy import sparse

    indptr = arrays[f"{name}.indptr"]
    entries = (arrays[f"{name}.data"].astype(np.float32, copy=False), arrays[f"{name}.indices"], indptr)
    return sparse.csr_array(entries, shape=(len(indptr) - 1, n_columns))


def top_of_rows(matrix: sparse.csr_array, k: int) -> sparse.csr_array:
    """The k largest entries of each row."""
    from scipy import sparse

    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((matrix.indices, -matrix.data, rows))
    kept = order[(np.arange(len(order)) - matrix.indptr[rows[order]]) < k]
    return sparse.csr_array((matrix.data[kept], (rows[kept], matrix.indices[kept])), shape=matrix.shape)


def latest(histories: sparse.csr_array, k: int) -> sparse.csr_array:
    """The last k entries of each row, in the order in which the row has them. Shape (U, I)."""
    from scipy import sparse

    lengths = np.diff(histories.indptr)
    if lengths.max(initial=0) <= k:
        return histories
    kept = np.repeat(histories.indptr[1:], lengths) - np.arange(histories.nnz) <= k
    starts = np.concatenate([[0], np.cumsum(np.minimum(lengths, k))])
    return sparse.csr_array((histories.data[kept], histories.indices[kept], starts), shape=histories.shape)


def to_half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """In half precision, to the bit as ``astype`` makes it: torch converts a score matrix twenty times as fast."""
    import torch

    array: NDArray[np.float16] = torch.from_numpy(np.ascontiguousarray(values)).half().numpy()
    return array


def to_single(values: NDArray[np.float16]) -> NDArray[np.float32]:
    """Single precision of what is in half precision; see ``to_half``."""
    import torch

    array: NDArray[np.float32] = torch.from_numpy(np.ascontiguousarray(values)).float().numpy()
    return array


def power_of(matrix: sparse.csr_array, power: float) -> sparse.csr_array:
    """The entries that are there to a power; the others stay 0."""
    from scipy import sparse

    return sparse.csr_array((matrix.data**power, matrix.indices, matrix.indptr), shape=matrix.shape)
