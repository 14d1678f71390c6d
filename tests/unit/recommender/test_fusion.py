from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

from recommender.fusion import Calibrator, Examples, Fusion, _best_linear, _Wanted

N_SCORES, N_FACTS = 3, 2
BLEND = np.array([1.0, 0, 0, 0, 0, 0], dtype=np.float32)
ANYONE = np.array([1.0, 0.0], dtype=np.float32)


def examples(seed: int, *, informative: int, n_users: int = 200, n_items: int = 40) -> Examples:
    """Only one personal score says what the hidden item is; the others are noise."""
    rng = np.random.default_rng(seed)
    personal = np.moveaxis(rng.standard_normal((n_users, n_items, N_SCORES)).astype(np.float16), 2, 0).copy()
    columns = rng.integers(n_items, size=n_users)
    personal[informative, np.arange(n_users), columns] += 3
    return Examples(
        personal,
        rng.standard_normal((n_items, N_FACTS)).astype(np.float32),
        np.full(n_users, 4, dtype=np.float32),
        np.stack([np.arange(n_users), columns]),
        np.zeros((2, 0), dtype=np.int64),
        sparse.csr_array((n_users, 1)),
        np.zeros((n_users, 2, N_SCORES), dtype=np.float32),
        1.0,
    )


def fit(
    train: Examples, validation: Examples, readable: np.ndarray | None = None
) -> tuple[Fusion, Fusion, dict[str, object]]:
    mask = np.ones(len(BLEND), dtype=bool) if readable is None else readable
    return Fusion.fit([BLEND], [train], validation, anyone=ANYONE, readable=mask, epochs=6, seed=0)


def test_it_finds_the_score_that_tells() -> None:
    validation = examples(1, informative=1)
    fusion, validated, _ = fit(examples(0, informative=1), validation)
    start = float(validation.ndcg(validation.personal[0].astype(np.float32)).mean())
    for scores in (fusion.scores(validation), validated.scores(validation)):
        assert scores.shape == (200, 40)
        assert float(validation.ndcg(scores).mean()) > start + 0.3


def test_without_epochs_it_is_a_linear_model() -> None:
    train, validation = examples(0, informative=1), examples(1, informative=1)
    readable = np.ones(len(BLEND), dtype=bool)
    fusion, _, about = Fusion.fit([BLEND], [train], validation, anyone=ANYONE, readable=readable, epochs=0, seed=0)
    assert about["shipped"] == "linear"
    assert set(about["ndcg@20 of"]) == {"blend", "linear"}
    weights = fusion.weights["linear"]
    personal = np.tensordot(weights[:N_SCORES], validation.personal.astype(np.float32), 1)
    expected = personal + validation.facts @ weights[N_SCORES:-1]
    np.testing.assert_allclose(fusion.scores(validation), expected, atol=1e-3)


def test_what_is_shipped_has_learned_from_the_validation_items_too() -> None:
    """A handful of customers to train on teaches less than they and 200 more."""
    few, validation, others = (examples(seed, informative=1, n_users=n) for seed, n in ((0, 4), (1, 200), (2, 400)))
    fusion, validated, about = fit(few, validation)
    assert about["shipped"] != "blend"
    assert about["ndcg@20 of"][about["shipped"]] == round(
        float(validation.ndcg(validated.scores(validation)).mean()), 4
    )
    assert others.ndcg(fusion.scores(others)).mean() > others.ndcg(validated.scores(others)).mean() + 0.01


def test_it_never_ships_worse_than_the_blend_it_starts_from() -> None:
    """What holds in training does not hold on validation items: the blend stays."""
    validation = examples(1, informative=0)
    fusion, _, about = fit(examples(0, informative=2), validation)
    assert about["shipped"] == "blend"
    blend = validation.ndcg(validation.personal[0].astype(np.float32)).mean()
    assert validation.ndcg(fusion.scores(validation)).mean() >= blend - 1e-9


def test_who_has_no_history_gets_what_sells_to_anyone() -> None:
    """Four of forty items are what half of the customers take. A score makes too much of it, so that beside the score
    the fact that tells them speaks against them; taken alone it must not."""
    train, validation, others = (examples(seed, informative=1, n_users=400) for seed in (0, 1, 2))
    for data in (train, validation, others):
        data.positives[1, ::2] %= 4
        data.personal[:] = np.moveaxis(np.random.default_rng(9).standard_normal((400, 40, N_SCORES)), 2, 0)
        data.personal[1, data.positives[0], data.positives[1]] += 4
        data.personal[1, :, :4] += 8
        data.facts[:4, 0] += 3
    readable = np.ones(len(BLEND), dtype=bool)
    fusion, *_ = Fusion.fit([BLEND], [train], validation, anyone=ANYONE, readable=readable, epochs=0, seed=0)
    assert fusion.weights["linear"][N_SCORES] < 0
    without = replace(others, personal=np.zeros_like(others.personal), n_history=np.zeros(400, dtype=np.float32))
    scores = fusion.scores(without)
    assert (scores == scores[0]).all()
    np.testing.assert_array_equal(np.argsort(scores[0]), np.argsort(others.facts[:, 0]))
    assert scores[0, :4].mean() > scores[0, 4:].mean() + 1
    mixed = replace(others, n_history=np.where(np.arange(400) % 2, 4, 0).astype(np.float32))
    np.testing.assert_array_equal(fusion.scores(mixed)[1::2], fusion.scores(others)[1::2])
    np.testing.assert_array_equal(fusion.scores(mixed)[::2], scores[::2])


@pytest.mark.parametrize(("seed", "shipped"), [(1, "blend"), (3, "linear")])
def test_the_blend_ships_where_more_than_chance_speaks_for_it(seed: int, shipped: str) -> None:
    """Both times it is better on the validation items, once by less than a standard error."""
    train, validation = (examples(of, informative=0, n_users=n) for of, n in ((seed, 60), (100 + seed, 100)))
    readable = np.ones(len(BLEND), dtype=bool)
    _, _, about = Fusion.fit([BLEND], [train], validation, anyone=ANYONE, readable=readable, epochs=0, seed=0)
    assert about["ndcg@20 of"]["blend"] > about["ndcg@20 of"]["linear"] + 0.003
    assert about["shipped"] == shipped


def test_unreadable_inputs_do_not_move_a_score() -> None:
    mask = np.array([True, False, True, True, True, True])
    train, validation = examples(0, informative=1), examples(1, informative=1)
    *fusions, _ = fit(train, validation, mask)
    changed = validation.personal.copy()
    changed[1] = 50
    for fusion in fusions:
        scores = fusion.predict(changed, validation.facts, validation.n_history)
        np.testing.assert_array_equal(scores, fusion.scores(validation))


def test_the_gradient_of_the_linear_loss_is_its_slope() -> None:
    data = replace(examples(0, informative=1), known=np.array([[3, 5], [7, 0]]))
    data = replace(data, positives=np.concatenate([data.positives, [[0], [9]]], axis=1))
    wanted = _Wanted.of(data)
    weights = np.array([0.3, -0.2, 0.1, 0.05, -0.4], dtype=np.float32)
    loss, gradient = wanted.loss(weights[:N_SCORES], weights[N_SCORES:])
    for place in range(len(weights)):
        ahead, behind = (weights + step * np.eye(len(weights), dtype=np.float32)[place] for step in (1e-2, -1e-2))
        slope = (
            wanted.loss(ahead[:N_SCORES], ahead[N_SCORES:])[0] - wanted.loss(behind[:N_SCORES], behind[N_SCORES:])[0]
        ) / 2e-2
        assert gradient[place] == pytest.approx(slope, abs=2e-3)
    assert loss > 0


def test_no_start_moves_the_optimum_of_the_linear_model() -> None:
    train = [examples(0, informative=1), examples(2, informative=1)]
    readable = np.array([True, True, False, True, True, True])
    found = [
        _best_linear(start.astype(np.float32), train, readable) for start in (BLEND, np.array([-1, 3, 2, 1, 0, 0]))
    ]
    np.testing.assert_allclose(found[0][:-1], found[1][:-1], atol=0.05)
    assert found[0][2] == 0
    assert found[0][1] > 1 > abs(found[0][0])


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second = (fit(examples(0, informative=1), examples(1, informative=1))[0] for _ in range(2))
    for name, array in first.weights.items():
        np.testing.assert_array_equal(array, second.weights[name])


def test_known_items_are_not_ranked() -> None:
    data = examples(0, informative=0, n_users=1, n_items=4)
    target = int(data.positives[1, 0])
    other = (target + 1) % 4
    scores = np.zeros((1, 4), dtype=np.float32)
    scores[0, other], scores[0, target] = 2, 1
    assert data.ndcg(scores)[0] < 1
    known = replace(data, known=np.array([[0], [other]]))
    assert known.ndcg(scores)[0] == 1


def test_calibrated_odds_are_true() -> None:
    rng = np.random.default_rng(0)
    lifts = rng.standard_normal(200_000).astype(np.float32)
    labels = rng.random(200_000) < 1 / (1 + np.exp(-(2 * lifts - 6)))
    odds = Calibrator.fit(lifts, labels, tested_share=1.0)
    assert odds.slope == pytest.approx(2, abs=0.15)
    assert odds.bias == pytest.approx(-6, abs=0.3)


def test_odds_that_were_fitted_on_buyers_alone_are_true_of_everybody() -> None:
    rng = np.random.default_rng(1)
    lifts = rng.standard_normal((20_000, 20)).astype(np.float32)
    labels = rng.random(lifts.shape) < 1 / (1 + np.exp(-(lifts - 5)))
    buys = labels.any(axis=1)
    odds = Calibrator.fit(lifts[buys].ravel(), labels[buys].ravel(), tested_share=float(buys.mean()))
    chances = 1 / (1 + np.exp(-odds(lifts)))
    assert buys.mean() < 0.3
    assert chances.mean() == pytest.approx(labels.mean(), rel=0.1)
    assert chances[lifts > 1].mean() == pytest.approx(labels[lifts > 1].mean(), rel=0.15)


@pytest.mark.parametrize("labels", [np.zeros(3, dtype=bool), np.ones(3, dtype=bool), np.zeros(0, dtype=bool)])
def test_one_sided_labels_leave_scores_as_they_are(labels: np.ndarray) -> None:
    assert Calibrator.fit(np.arange(len(labels), dtype=np.float32), labels, tested_share=1.0) == Calibrator(1.0, 0.0)
