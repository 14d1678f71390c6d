from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from encoders.text import TextEncoder
from kg.errors import WorkspaceError


def test_vectors_are_unit_rows_and_blank_texts_are_near_nothing(text_encoder: TextEncoder) -> None:
    vectors = text_encoder.encode(["red paint", "", "red paint", "  ", "a drill"])
    assert vectors.shape == (5, text_encoder.embedding_size)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 0, 1, 0, 1], atol=1e-3)
    np.testing.assert_array_equal(vectors[0], vectors[2])
    assert np.abs(vectors[0] - vectors[4]).max() > 1e-3


def test_a_text_in_a_script_that_the_model_does_not_have_is_near_nothing(text_encoder: TextEncoder) -> None:
    """The model knows Latin letters: the kettle's other half is read, the pot and the blank are not."""
    texts = ["手冲咖啡壶", "不锈钢 kettle", "ab 手", " ", "red"]
    np.testing.assert_array_equal(text_encoder.reads(texts), [False, True, True, False, True])
    assert text_encoder.encode(texts).any(axis=1).tolist() == text_encoder.reads(texts).tolist()
    assert text_encoder.reads([]).shape == (0,)


def test_no_texts_are_no_rows(text_encoder: TextEncoder) -> None:
    assert text_encoder.encode([]).shape == (0, text_encoder.embedding_size)


def test_a_batch_does_not_change_a_vector(text_encoder: TextEncoder) -> None:
    texts = [f"paint number {number} " * (1 + number % 7) for number in range(150)]
    together, alone = text_encoder.encode(texts), text_encoder.encode(texts[:1])
    np.testing.assert_allclose(together[:1], alone, atol=5e-3)


def test_progress_ends_at_the_distinct_texts(text_encoder: TextEncoder) -> None:
    seen: list[tuple[int, int]] = []
    text_encoder.encode(["a", "b", "a"], progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (2, 2)


def test_saving_and_loading_gives_the_same_vectors(text_encoder: TextEncoder, tmp_path: Path) -> None:
    text_encoder.metrics = {"ndcg": 0.25}
    before = text_encoder.encode(["red paint"])
    text_encoder.save(tmp_path / "model")
    loaded = TextEncoder.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.encode(["red paint"]), before)
    assert loaded.metrics == {"ndcg": 0.25}
    assert not list((tmp_path / "model").rglob("*.bin")), "weights are safetensors, never pickles"


def test_a_missing_model_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="packaged MiniLM"):
        TextEncoder.pretrained(str(tmp_path / "nothing"))
