"""Fine-tuning on a shop where two words mean the same to its customers and nothing to the start."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse
from transformers import MPNetConfig, MPNetModel

from encoders.text import TextEncoder
from encoders.tuning import _layers, _LowerLayers, _mixed, _pairs, _Test, fine_tune

N_ITEMS = 120


@pytest.fixture(scope="module")
def shop() -> tuple[list[str], sparse.csr_array]:
    """Items of six kinds; a customer takes items of one kind only, and each item has one of the kind's two words."""
    random = np.random.default_rng(0)
    kinds = random.integers(6, size=N_ITEMS)
    texts = [f"{'abcdefghijkl'[2 * kind + random.integers(2)]} {number}" for number, kind in enumerate(kinds)]
    rows, columns = [], []
    for user in range(300):
        own = np.flatnonzero(kinds == user % 6)
        for item in random.choice(own, min(6, len(own)), replace=False):
            rows.append(user)
            columns.append(item)
    ones = np.ones(len(rows), dtype=np.float32)
    return texts, sparse.csr_array((ones, (rows, columns)), shape=(300, N_ITEMS))


def test_no_pair_holds_a_held_out_item_and_pairs_share_a_customer(shop: tuple[list[str], sparse.csr_array]) -> None:
    _, interactions = shop
    visible = sparse.csr_array(interactions @ sparse.diags_array((np.arange(N_ITEMS) % 2).astype(np.float32)))
    visible.eliminate_zeros()
    pairs = _pairs(visible, 128, np.random.default_rng(0))
    assert pairs.shape == (128, 2)
    assert (pairs % 2 == 1).all()
    together = (interactions.T @ interactions).toarray()
    assert (together[pairs[:, 0], pairs[:, 1]] > 0).all()
    assert len({tuple(sorted(pair)) for pair in pairs.tolist()}) == 128


def test_what_ships_is_what_was_measured_to_be_better(
    shop: tuple[list[str], sparse.csr_array], text_encoder: TextEncoder
) -> None:
    texts, interactions = shop
    held_out = np.arange(0, N_ITEMS, 4)
    before = text_encoder.encode(texts[:5])
    result = fine_tune(text_encoder, texts, interactions, held_out=held_out, n_pairs=256, n_test_users=100, seed=0)
    metrics = result.metrics
    assert metrics["pairs"] == 256
    assert metrics["ships"] == ("start" if result is text_encoder else "tuned")
    assert (metrics["interval"][0] > 0) == (metrics["ships"] == "tuned")
    np.testing.assert_array_equal(text_encoder.encode(texts[:5]), before)
    again = fine_tune(text_encoder, texts, interactions, held_out=held_out, n_pairs=256, n_test_users=100, seed=0)
    assert again.metrics == metrics
    np.testing.assert_array_equal(again.encode(texts), result.encode(texts))


def test_a_mix_that_starts_from_the_kept_states_gives_what_it_gives_from_the_texts() -> None:
    start = TextEncoder.pretrained()
    texts = [f"{word} {number}" for number in range(40) for word in ("brush", "a very long handled scrubbing brush")]
    tuned = copy.deepcopy(start.model)
    with torch.no_grad():
        for weight in _layers(tuned)[-1].parameters():
            weight.mul_(1.1)
    mixed = _mixed(start, TextEncoder(tuned), 0.5)
    expected = TextEncoder(mixed.model).encode(texts)
    below = _LowerLayers()
    with below.recorded(start):
        before = start.encode(texts)
    with torch.no_grad():  # what is not run may be anything
        for weight in _layers(mixed.running_model)[0].parameters():
            weight.fill_(torch.nan)
    with below.replayed(mixed):
        found = mixed.encode(texts)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not np.allclose(found, before, atol=1e-3)
    assert np.isnan(mixed.encode(["another"])).all(), "afterwards all layers run again"


def test_layers_that_pass_on_more_than_states_all_run(tmp_path: Path) -> None:
    config = MPNetConfig(
        vocab_size=30_522, hidden_size=32, num_hidden_layers=8, num_attention_heads=4, intermediate_size=64
    )
    MPNetModel(config).save_pretrained(tmp_path)
    TextEncoder.pretrained().model.tokenizer.save_pretrained(tmp_path)
    start = TextEncoder.pretrained(str(tmp_path))
    tuned = copy.deepcopy(start.model)
    with torch.no_grad():
        for weight in _layers(tuned)[-1].parameters():
            weight.mul_(1.1)
    mixed = _mixed(start, TextEncoder(tuned), 0.5)
    texts = ["a brush", "a broom", "a very long handled scrubbing brush"]
    expected = TextEncoder(mixed.model).encode(texts)
    below = _LowerLayers()
    with below.recorded(start):
        start.encode(texts)
    with below.replayed(mixed):
        np.testing.assert_allclose(mixed.encode(texts), expected, atol=1e-5)


def test_too_few_pairs_ship_the_start_and_say_so(text_encoder: TextEncoder) -> None:
    interactions = sparse.csr_array(np.eye(4, dtype=np.float32))
    result = fine_tune(text_encoder, list("abcd"), interactions, held_out=np.array([0]))
    assert result is text_encoder
    assert result.metrics["ships"] == "start"
    assert "too few" in result.metrics["why"]


def test_ndcg_of_the_test_is_that_of_a_hand_made_case(text_encoder: TextEncoder) -> None:
    """One customer, history x; candidates x (the same text, the positive) and two strangers: the positive is first."""
    texts = ["lamp red", "lamp red", "b", "c"]
    test = _Test([np.array([0])], [np.array([0])], np.array([1, 2, 3]))
    assert test.ndcg(text_encoder, texts).tolist() == [1.0]
    worse = _Test([np.array([2])], [np.array([0, 1, 2])], np.array([0, 1, 3]))
    assert worse.ndcg(text_encoder, texts).tolist() == [1.0]
