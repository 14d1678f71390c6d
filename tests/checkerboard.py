"""A shop whose answer is known: customers of a colour buy items of that colour, and colour shows in brand and words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
from scipy import sparse

from kg import KnowledgeGraph, schema
from kg.schema import Relation
from kg.snapshot import Facts, Vocabulary
from recommender.engine import history_of

COLOURS = ("red", "green", "blue", "white")
_WORDS = 30


def checkerboard(
    *,
    n_items: int = 80,
    n_users: int = 120,
    n_new: int = 16,
    n_history: int = 6,
    seed: int = 0,
    shuffled: bool = False,
    text: bool = True,
    brands: bool = True,
) -> KnowledgeGraph:
    """Item ``i`` has colour ``i % 4``, as customer ``u`` has; the last ``n_new`` items have no events.

    ``shuffled`` deals the same events to items at random: then nothing can be learned from them.
    """
    rng = np.random.default_rng(seed)
    colour = np.arange(n_items) % len(COLOURS)
    heads, tails, order = [], [], []
    for user in range(n_users):
        own = np.flatnonzero(colour[: n_items - n_new] == user % len(COLOURS))
        for place, item in enumerate(rng.choice(own, n_history, replace=False)):
            heads.append(user)
            tails.append(item)
            order.append(place)
    if shuffled:
        pairs = {(head, int(tail)) for head, tail in zip(heads, rng.permutation(tails), strict=True)}
        heads, tails = (list(column) for column in zip(*sorted(pairs), strict=True))
        order = list(range(len(heads)))
    names = [
        " ".join(f"{COLOURS[tint]}{word}" for word in rng.choice(_WORDS, 4, replace=False)) if text else None
        for tint in colour
    ]
    products = pl.DataFrame(
        {"key": [f"i{num:04}" for num in range(n_items)], "name": names},
        schema={"key": pl.String, "name": pl.String},
    ).with_columns(
        description=pl.lit(None, pl.String),
        price=pl.lit(None, pl.Float64),
        available_from=pl.lit(None, pl.Int64),
        image=pl.lit(None, pl.String),
    )
    facts = {relation: _facts([], []) for relation in schema.RELATIONS}
    facts[schema.INTERACTED] = _facts(heads, tails, order)
    if brands:
        facts[schema.MADE_BY] = _facts(range(n_items), colour * 2 + rng.integers(2, size=n_items))
        facts[schema.IN_CATEGORY] = _facts(range(n_items), colour)
        facts[schema.SUBCATEGORY_OF] = _facts(range(4), [4] * 4)
        facts[schema.HAS_ATTRIBUTE] = _facts(range(n_items), colour)
    vocabularies = {
        schema.PRODUCT: Vocabulary(products["key"].to_list()),
        schema.CUSTOMER: Vocabulary([f"u{num:04}" for num in range(n_users)]),
        schema.BRAND: Vocabulary([f"{name} {line}" for name in COLOURS for line in ("one", "two")]),
        schema.CATEGORY: Vocabulary([*(f"paint > {name}" for name in COLOURS), "paint"]),
        schema.ATTRIBUTE: Vocabulary([f"tint={name}" for name in COLOURS]),
        schema.COMPANION: Vocabulary([]),
    }
    return KnowledgeGraph(vocabularies, facts, products, None, f"checkerboard-{seed}")


def histories_of(*histories: Sequence[int] | np.ndarray, n_items: int = 80) -> sparse.csr_array:
    """Item nums, oldest first, as rows of single purchases. Shape (B, I)."""
    rows = [history_of(np.asarray(history, dtype=np.int64), n_items) for history in histories]
    return sparse.csr_array(sparse.vstack(rows, format="csr"))


def with_companions(graph: KnowledgeGraph, pairs: Sequence[tuple[int, str]]) -> KnowledgeGraph:
    """The graph with ALSO_BOUGHT edges of (item num, id of the companion)."""
    companions = Vocabulary(list(dict.fromkeys(name for _, name in pairs)))
    listed = _facts([num for num, _ in pairs], companions.nums([name for _, name in pairs]))
    return replace(
        graph,
        vocabularies={**graph.vocabularies, schema.COMPANION: companions},
        facts={**graph.facts, schema.ALSO_BOUGHT: listed},
    )


def lists_of(histories: sparse.csr_array) -> list[np.ndarray]:
    """The item nums of each row, oldest first."""
    return np.split(histories.indices.astype(np.int64), histories.indptr[1:-1])


def without(graph: KnowledgeGraph, relations: tuple[Relation, ...]) -> KnowledgeGraph:
    """The graph without the edges of some relations."""
    facts = {**graph.facts, **{relation: _facts([], []) for relation in relations}}
    return KnowledgeGraph(graph.vocabularies, facts, graph.products, graph.until, graph.content_hash)


def _facts(heads: object, tails: object, order: object = None) -> Facts:
    head = np.asarray(heads, dtype=np.int64)
    places = np.zeros(len(head), dtype=np.int64) if order is None else np.asarray(order, dtype=np.int64)
    ones, unknown = np.ones(len(head), dtype=np.float32), np.full(len(head), -1, dtype=np.int64)
    return Facts(head, np.asarray(tails, dtype=np.int64), ones, unknown, unknown, places)


def tiny_text_model(folder: Path) -> Path:
    """A sentence-transformers folder with a random two-layer BERT over characters: no download, no meaning."""
    import string

    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(0)
    plain = folder / "bert"
    plain.mkdir(parents=True)
    pieces = [*string.ascii_lowercase, *string.digits, ".", ","]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces, *(f"##{piece}" for piece in pieces)]
    (plain / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=96,
    )
    BertModel(config).save_pretrained(plain)
    BertTokenizerFast(str(plain / "vocab.txt")).save_pretrained(plain)
    word_vectors = Transformer(str(plain), max_seq_length=64)
    model = SentenceTransformer(modules=[word_vectors, Pooling(32)], device="cpu")
    model.save(str(folder / "model"), create_model_card=False)
    return folder / "model"
