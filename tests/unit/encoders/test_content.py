from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from checkerboard import checkerboard
from scipy import sparse

from encoders.content import (
    Bag,
    ItemContent,
    ItemFacts,
    Projection,
    csr_arrays,
    csr_matrix,
    latest,
    put_rows,
    to_half,
    to_single,
    top_of_rows,
)
from encoders.text import TextEncoder
from kg import KnowledgeGraph, schema


@pytest.fixture(scope="module")
def graph() -> KnowledgeGraph:
    return checkerboard()


def test_facts_hold_the_catalogue_and_nothing_of_the_events(graph: KnowledgeGraph) -> None:
    facts = ItemFacts.of(graph)
    assert facts.item_ids == graph.items.keys
    assert facts.categories[5] == ("paint > green",)
    assert facts.lineages[5] == ("paint > green", "paint")
    assert facts.attributes[2] == ("tint=blue",)
    assert np.isnan(facts.prices).all()
    silent = graph.without_behaviour(np.arange(len(graph.items)))
    assert ItemFacts.of(silent).documents() == facts.documents()


def test_some_items_in_any_order(graph: KnowledgeGraph) -> None:
    facts, some = ItemFacts.of(graph), ItemFacts.of(graph, np.array([7, 3]))
    assert some.names == (facts.names[7], facts.names[3])
    assert some.brands == (facts.brands[7], facts.brands[3])


def test_a_category_cycle_ends(graph: KnowledgeGraph) -> None:
    loop = graph.extended({}, {schema.SUBCATEGORY_OF: pl.DataFrame({"head": ["paint"], "tail": ["paint > red"]})})
    assert set(ItemFacts.of(loop).lineages[0]) == {"paint > red", "paint"}


def test_chinese_is_cut_into_characters() -> None:
    bag, _ = Bag.fit_transform("words", ["红色油漆", "蓝色油漆"])
    assert {"红", "色", "油 漆"} <= set(bag.vocabulary)
    rows = bag.transform(["油漆", "钻头"])
    assert rows[[0]].nnz == 3
    assert rows[[1]].nnz == 0


def test_bags_without_words_have_no_columns() -> None:
    bag, _ = Bag.fit_transform("words", ["", "..."])
    assert bag.transform(["anything"]).shape == (1, 0)
    assert Projection.fit(bag.transform(["", ""]), 4, 0).transform(bag.transform(["x"])).shape == (1, 0)


def test_rare_words_weigh_more_and_rows_have_length_one() -> None:
    bag, _ = Bag.fit_transform("terms", ["paint red", "paint blue", "paint green"])
    row = bag.transform(["paint red"]).toarray()[0]
    weights = dict(zip(bag.vocabulary, row, strict=True))
    assert weights["red"] > weights["paint"] > 0
    assert np.linalg.norm(row) == pytest.approx(1)


def test_words_of_one_item_alone_count_less() -> None:
    texts = ["red paint", "blue paint", "red blue lacquer"]
    bag, _ = Bag.fit_transform("words", texts)
    idf = dict(zip(bag.vocabulary, bag.idf, strict=True))
    assert idf["lacquer"] < idf["red"]
    alike, _ = Bag.fit_transform("terms", texts)
    assert dict(zip(alike.vocabulary, alike.idf, strict=True))["lacquer"] > idf["red"]


def test_the_listing_says_how_much_the_catalogue_tells(graph: KnowledgeGraph) -> None:
    facts = replace(
        ItemFacts.of(graph, np.array([0, 1])),
        names=("ab", ""),
        descriptions=("x" * 300, ""),
        brands=(("acme",), ()),
        lineages=((), ("paint",)),
        prices=np.array([9.0, np.nan]),
    )
    expected = [
        [np.log(3), np.log(301), np.log(101), 0, 1, 1, 1, np.log(10)],
        [0, 0, 0, np.log(6), 0, 0, 0, 0],
    ]
    np.testing.assert_allclose(facts.listing(), expected, rtol=1e-6)
    assert ItemFacts.of(graph, np.zeros(0, dtype=np.int64)).listing().shape == (0, 8)


def test_projection_keeps_cosines_of_a_low_rank_matrix() -> None:
    rng = np.random.default_rng(0)
    dense = rng.random((40, 3)).astype(np.float32) @ rng.random((3, 25)).astype(np.float32)
    rows = sparse.csr_array(dense)
    small = Projection.fit(rows, 3, 0).transform(rows)
    assert small.shape == (40, 3)
    np.testing.assert_allclose(small @ small.T, dense @ dense.T, rtol=2e-2)


def test_a_row_is_projected_alone_as_among_others() -> None:
    rows = sparse.random_array((30, 50), density=0.2, format="csr", rng=np.random.default_rng(0), dtype=np.float32)
    projection = Projection.fit(rows, 4, 0)
    together = projection.transform(rows)
    np.testing.assert_array_equal(together[:3], projection.transform(rows[:3]))
    nothing = projection.transform(sparse.csr_array((2, 50), dtype=np.float32))
    np.testing.assert_array_equal(nothing, np.zeros((2, 4)))


def test_a_new_item_gets_what_an_old_one_with_the_same_facts_has(
    graph: KnowledgeGraph, text_encoder: TextEncoder
) -> None:
    content = ItemContent.fit(ItemFacts.of(graph), text_encoder)
    differ = content.put(ItemFacts.of(graph, np.array([5, 9])), np.array([80, 81]))
    assert (len(content), differ.tolist()) == (82, [80, 81])
    np.testing.assert_allclose(content.dense[80:], content.dense[[5, 9]], atol=5e-3)
    for matrix in content.bags.values():
        assert abs(matrix[80:] - matrix[[5, 9]]).sum() < 1e-5
    content.put(ItemFacts.of(graph, np.array([6])), np.array([3]))
    np.testing.assert_allclose(content.text[3], content.text[6], atol=5e-3)
    assert len(content) == 82


def test_saving_and_loading_gives_the_same(graph: KnowledgeGraph, text_encoder: TextEncoder, tmp_path: Path) -> None:
    content = ItemContent.fit(ItemFacts.of(graph), text_encoder)
    content.save(tmp_path)
    loaded = ItemContent.load(tmp_path)
    np.testing.assert_array_equal(loaded.dense, content.dense)
    new = ItemFacts.of(graph, np.array([0]))
    content.put(new, np.array([80]))
    loaded.put(new, np.array([80]))
    np.testing.assert_allclose(loaded.dense, content.dense, atol=1e-6)  # a batch of another size rounds otherwise
    for name, matrix in content.bags.items():
        assert abs(matrix - loaded.bags[name]).sum() == 0


def test_what_was_read_of_items_can_be_kept_and_put_again(
    graph: KnowledgeGraph, text_encoder: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = ItemContent.fit(ItemFacts.of(graph), text_encoder)
    content.save(tmp_path)
    content.put(ItemFacts.of(graph, np.array([6, 9])), np.array([3, 80]))
    kept = content.rows(np.array([3, 80]))
    assert kept["text"].shape == (2, content.text.shape[1])
    again = ItemContent.load(tmp_path)
    monkeypatch.setattr(again.encoder, "encode", None)
    again.put_kept(kept, np.array([3, 80]))
    np.testing.assert_array_equal(again.dense, content.dense)
    np.testing.assert_array_equal(again.listing, content.listing)
    np.testing.assert_array_equal(again.characters, content.characters)
    for name, matrix in content.bags.items():
        assert abs(matrix - again.bags[name]).sum() == 0


def test_a_new_price_lets_no_text_be_encoded_again(
    graph: KnowledgeGraph, text_encoder: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = ItemContent.fit(ItemFacts.of(graph), text_encoder)
    content.save(tmp_path)
    content = ItemContent.load(tmp_path)
    asked: list[str] = []
    encode = content.encoder.encode

    def recorded(texts: list[str], **options: Any) -> np.ndarray:
        asked.extend(texts)
        return encode(texts, **options)

    monkeypatch.setattr(content.encoder, "encode", recorded)
    facts = ItemFacts.of(graph)
    text = content.text.copy()
    differ = content.put(replace(facts, prices=np.full(len(facts), 9.5)), np.arange(len(facts)))
    assert (asked, differ.tolist()) == ([], [])
    np.testing.assert_array_equal(content.text, text)
    np.testing.assert_allclose(content.listing[:, -1], np.log1p(9.5))
    renamed = replace(facts, names=("Enamel teapot", *facts.names[1:]))
    assert content.put(renamed, np.arange(len(facts))).tolist() == [0]
    assert len(asked) == 1
    assert not np.allclose(content.text[0], text[0], atol=1e-3)
    np.testing.assert_array_equal(content.text[1:], text[1:])


def test_sparse_matrices_survive_a_file_of_arrays() -> None:
    matrix = sparse.csr_array(np.array([[0.0, 1.5, 0], [0, 0, 0], [2, 0, 3]], dtype=np.float32))
    arrays = csr_arrays("one", matrix)
    arrays["one.data"] = arrays["one.data"].astype(np.float16)
    again = csr_matrix({**arrays, "two.data": np.zeros(0)}, "one", 5)
    assert again.dtype == np.float32
    np.testing.assert_array_equal(again.toarray(), np.pad(matrix.toarray(), ((0, 0), (0, 2))))


@pytest.mark.parametrize("as_sparse", [False, True])
def test_put_rows_appends(as_sparse: bool) -> None:
    old, new = np.arange(6.0).reshape(3, 2), np.array([[9.0, 0.0], [0.0, 8.0]])
    if as_sparse:
        whole = put_rows(sparse.csr_array(old), sparse.csr_array(new), np.array([3, 4])).toarray()
    else:
        whole = put_rows(old, new, np.array([3, 4]))
    np.testing.assert_array_equal(whole, np.concatenate([old, new]))


def test_put_rows_replaces_and_appends() -> None:
    old, new = np.arange(6.0).reshape(3, 2), np.full((2, 2), 9.0)
    expected = [[0, 1], [9, 9], [4, 5], [9, 9]]
    np.testing.assert_array_equal(put_rows(old, new, np.array([1, 3])), expected)
    rows = put_rows(sparse.csr_array(old), sparse.csr_array(new), np.array([1, 3]))
    np.testing.assert_array_equal(rows.toarray(), expected)


def test_of_a_long_history_the_last_items_are_paired() -> None:
    histories = sparse.csr_array((np.ones(5), [3, 0, 2, 1, 3], [0, 3, 3, 5]), shape=(3, 4))
    np.testing.assert_array_equal(latest(histories, 2).toarray(), [[1, 0, 1, 0], [0] * 4, [0, 1, 0, 1]])
    assert latest(histories, 3) is histories


def test_half_precision_is_numpys_to_the_bit() -> None:
    values = np.random.default_rng(0).standard_normal((50, 40)).astype(np.float32)
    values *= 10.0 ** np.arange(-10, 30).astype(np.float32) / 1e20
    values[0] = [0, -0.0, np.inf, -np.inf, 65504, 65520, 6e-8, 1 + 2**-11, *[1e-3] * 32]
    for matrix in (values, values.T, values[::2, ::3]):
        with np.errstate(over="ignore"):
            expected = matrix.astype(np.float16)
        np.testing.assert_array_equal(to_half(matrix).view(np.uint16), expected.view(np.uint16))
        np.testing.assert_array_equal(to_single(expected), expected.astype(np.float32))


def test_top_of_rows_keeps_the_largest() -> None:
    matrix = sparse.csr_array(np.array([[1.0, 3, 2], [0, 0, 5]]))
    np.testing.assert_array_equal(top_of_rows(matrix, 2).toarray(), [[0, 3, 2], [0, 0, 5]])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("हिन्दी किताब", ["हिन्दी", "किताब"]),
        ("தமிழ் புத்தகம்", ["தமிழ்", "புத்தகம்"]),
        ("กาแฟคั่ว", ["ก", "า", "แ", "ฟ", "คั่", "ว"]),
        ("cafe\u0301 x_1", ["cafe\u0301", "x", "1"]),
        ("手工 drip-tray", ["手", "工", "drip", "tray"]),
    ],
)
def test_words_keep_their_vowel_signs(text: str, words: list[str]) -> None:
    bag, _ = Bag.fit_transform("terms", [text])
    assert sorted(bag.vocabulary) == sorted(set(words))
