"""The trained ranker on a shop whose answer is known, with a tiny random text model."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from checkerboard import COLOURS, checkerboard, histories_of, lists_of, tiny_text_model
from scipy import sparse

from encoders.graph import GraphEncoder
from kg import KnowledgeGraph, schema
from kg.errors import TrainingError, WorkspaceError
from kg.snapshot import strength_of
from recommender.ranker import Ranker, Ranking, _folds, _histories, _kept


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_text_model(tmp_path_factory.mktemp("text")))


@pytest.fixture(scope="module")
def graph() -> KnowledgeGraph:
    return checkerboard()


@pytest.fixture(scope="module")
def saved(graph: KnowledgeGraph, text_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranker") / "model"
    Ranker.fit(graph, text_model=text_model).save(folder)
    return folder


@pytest.fixture
def ranker(saved: Path) -> Ranker:
    return Ranker.load(saved)


@pytest.fixture(scope="module")
def histories(graph: KnowledgeGraph) -> sparse.csr_array:
    return graph.histories


def test_each_customer_is_shown_the_new_items_of_their_colour(ranker: Ranker, histories: sparse.csr_array) -> None:
    ranking = ranker.rank(histories, k=4, pool="new")
    assert ranking.item_nums.shape == ranking.scores.shape == (120, 4)
    assert ranking.item_nums.dtype == np.int64
    assert ranking.scores.dtype == np.float32
    assert ranker.is_cold[ranking.item_nums].all()
    right = ranking.item_nums % len(COLOURS) == np.arange(120)[:, None] % len(COLOURS)
    assert right.mean() > 0.95


def test_eight_sold_items_are_enough_for_the_new_ones_to_find_their_customers(text_model: str) -> None:
    """Too few to hide more than one at a time: a single candidate would teach that any weights are right."""
    few = Ranker.fit(checkerboard(n_items=12, n_new=4, n_history=2, n_users=60), text_model=text_model)
    asked = histories_of(*([colour, colour + 4] for colour in range(4)), n_items=12)
    best = few.rank(asked, k=1, pool="new").item_nums[:, 0]
    np.testing.assert_array_equal(best % len(COLOURS), [0, 1, 2, 3])


def test_a_catalogue_of_which_little_has_sold_can_be_trained(text_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No known item is among the few by which scores are scaled."""
    monkeypatch.setattr("recommender.ranker._N_REFERENCE", 1)
    shop = checkerboard(n_items=80, n_new=60, n_history=2, n_users=60)
    shown = Ranker.fit(shop, text_model=text_model, seed=1).rank(histories_of([0, 4]), k=8, pool="all")
    assert np.isfinite(shown.scores).all()


def test_new_items_are_listed_beside_known_ones_that_could_not_be_rehearsed(text_model: str) -> None:
    """With two events a customer none is left to be hidden: known items got odds that were never measured."""
    graph = checkerboard(n_items=80, n_new=16, n_users=200, n_history=2)
    ranker = Ranker.fit(graph, text_model=text_model)
    assert ranker.metrics["known"]["because"] == "nothing to validate on"
    assert ranker.is_cold[ranker.rank(graph.histories, k=10, pool="all").item_nums].mean() > 0.05


def test_pages_that_do_not_fit_are_made_anew_and_give_the_same_lists(
    ranker: Ranker, histories: sparse.csr_array, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = ranker.rank(histories, k=5, pool="all")
    ranker._pages.clear()
    monkeypatch.setattr("recommender.ranker._KEPT_BYTES", 0)
    again = ranker.rank(histories, k=5, pool="all")
    assert not ranker._pages
    np.testing.assert_array_equal(kept.item_nums, again.item_nums)
    np.testing.assert_array_equal(kept.scores, again.scores)


def test_lists_are_sorted_unique_whole_and_without_own_items(ranker: Ranker, histories: sparse.csr_array) -> None:
    ranking = ranker.rank(histories, k=90, pool="all")
    for history, nums, scores in zip(lists_of(histories), ranking.item_nums, ranking.scores, strict=True):
        shown = nums[nums >= 0]
        assert len(shown) == len(set(shown)) == 80 - len(history)
        assert not set(shown) & set(history)
        assert (np.diff(scores[: len(shown)]) <= 0).all()
        assert (nums[len(shown) :] == -1).all()


def test_excluded_items_are_not_shown(ranker: Ranker, histories: sparse.csr_array) -> None:
    first = ranker.rank(histories[:2], k=3, pool="new").item_nums
    second = ranker.rank(histories[:2], k=3, pool="new", exclude=[first[0], first[1][:1]]).item_nums
    assert not set(first[0]) & set(second[0])
    assert first[1][0] not in second[1]


def test_an_empty_history_still_gets_a_list(ranker: Ranker) -> None:
    ranking = ranker.rank(histories_of([]), k=5, pool="new")
    assert (ranking.item_nums >= 0).all()
    assert np.isfinite(ranking.scores).all()


def test_scores_of_single_items_are_those_of_the_list(ranker: Ranker, histories: sparse.csr_array) -> None:
    ranking = ranker.rank(histories[:3], k=5, pool="all")
    for row in range(3):
        scores = ranker.score(histories[[row]], ranking.item_nums[row])[0]
        np.testing.assert_allclose(scores, ranking.scores[row], atol=2e-3)


def test_scores_do_not_depend_on_how_many_items_are_prepared_at_once(
    ranker: Ranker, histories: sparse.csr_array, monkeypatch: pytest.MonkeyPatch
) -> None:
    nums = np.random.default_rng(0).permutation(80)
    in_one_page = ranker.score(histories[:9], nums)
    made: list[int] = []
    block = ranker._scorers.block
    monkeypatch.setattr(ranker._scorers, "block", lambda page: made.append(len(page)) or block(page))
    monkeypatch.setattr("recommender.ranker._PAGE", 7)
    np.testing.assert_allclose(ranker.score(histories[:9], nums), in_one_page, atol=2e-3)
    assert max(made) == 7
    assert sum(made) == 80


def test_one_customer_gets_the_same_list_alone_and_among_others(ranker: Ranker, histories: sparse.csr_array) -> None:
    together = ranker.rank(histories, k=5, pool="new").item_nums[7]
    np.testing.assert_array_equal(ranker.rank(histories[[7]], k=5, pool="new").item_nums[0], together)


def test_neither_new_nor_known_items_flood_the_list(ranker: Ranker, histories: sparse.csr_array) -> None:
    share = ranker.is_cold[ranker.rank(histories, k=20, pool="all").item_nums].mean()
    assert ranker.is_cold.mean() / 4 < share < ranker.is_cold.mean() * 4


def test_without_a_clock_known_items_are_taken_to_have_more_ahead_of_them_than_was_rehearsed(
    ranker: Ranker, histories: sparse.csr_array
) -> None:
    """A fifth of their events was, and half are taken to be still to come; a list by a boost needs no such guess."""
    asked = histories[:20]
    ranking = ranker.rank(asked, k=80, pool="all")
    rehearsed = ranker.rank(asked, k=80, pool="all", boost=np.zeros(80, dtype=np.float32))
    for row in range(20):
        found, before = (
            dict(zip(each.item_nums[row].tolist(), each.scores[row].tolist(), strict=True))
            for each in (ranking, rehearsed)
        )
        for num in set(found) - {-1}:
            lead = 0 if ranker.is_cold[num] else np.log(0.5 / 0.2)
            assert found[num] == pytest.approx(before[num] + lead, abs=1e-4)


@pytest.mark.parametrize("k", [4, 20, 90])
def test_a_boost_chooses_the_items_and_leaves_their_order_and_scores(
    ranker: Ranker, histories: sparse.csr_array, k: int
) -> None:
    plain = ranker.rank(histories[:3], k=90, pool="all", boost=np.zeros(80, dtype=np.float32))
    boost = np.zeros(80, dtype=np.float32)
    boost[[5, 70]], boost[71] = 50, -np.inf
    boosted = ranker.rank(histories[:3], k=k, pool="all", boost=boost)
    for row, history in enumerate(lists_of(histories[:3])):
        plain_nums = [num for num in plain.item_nums[row] if num not in {-1, 71}]
        first = [num for num in plain_nums if num in {5, 70}]
        rest = [num for num in plain_nums if num not in {5, 70}]
        wanted = sorted([*first, *rest][:k], key=plain_nums.index)
        assert {70} <= set(first) <= {5, 70} - set(history.tolist())
        assert boosted.item_nums[row, : len(wanted)].tolist() == wanted
        assert (boosted.item_nums[row, len(wanted) :] == -1).all()
        before = dict(zip(plain.item_nums[row].tolist(), plain.scores[row], strict=True))
        assert boosted.scores[row, : len(wanted)].tolist() == [before[num] for num in wanted]


def test_the_highest_scores_of_a_set_are_those_of_a_list_that_hides_the_others(
    ranker: Ranker, histories: sparse.csr_array
) -> None:
    sets = (ranker.is_cold, ~ranker.is_cold, np.zeros_like(ranker.is_cold))
    for shown, found in zip(sets, ranker.highest(histories, k=7, of=sets), strict=True):
        hiding = np.where(shown, np.float32(0), -np.float32(np.inf))
        np.testing.assert_array_equal(found, ranker.rank(histories, k=7, pool="all", boost=hiding).scores)


def test_the_audience_of_a_new_item_is_its_colour(ranker: Ranker, histories: sparse.csr_array) -> None:
    item = 77
    scores = ranker.audience(item, ranker.read(sparse.vstack([histories, histories_of([])], format="csr")))
    assert scores.shape == (121,)
    assert scores[-1] == -np.inf
    best = np.argsort(-scores)[:30]
    assert (best % len(COLOURS) == item % len(COLOURS)).mean() > 0.9


def test_similar_items_have_the_same_colour_and_never_the_item(ranker: Ranker) -> None:
    nums, scores = ranker.similar(70, 5)
    assert nums.shape == scores.shape == (5,)
    assert 70 not in nums
    assert (np.diff(scores) <= 0).all()


def test_parts_name_every_score(ranker: Ranker, histories: sparse.csr_array) -> None:
    parts = ranker.parts(histories[[0]], np.array([70, 71]))
    assert {"words^1", "graph", "ridge", "ease", "predicted popularity"} <= set(parts)
    assert all(values.shape == (2,) for values in parts.values())
    assert parts["ease"][0] == parts["ease"][1], "new items have no behaviour to tell them apart"


def test_lists_do_not_depend_on_how_candidates_are_paged(
    ranker: Ranker, histories: sparse.csr_array, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_one_page = ranker.rank(histories, k=80, pool="all")
    for size in (1, 7, 40):
        ranker._pages.clear()
        monkeypatch.setattr("recommender.ranker._PAGE", size)
        paged = ranker.rank(histories, k=80, pool="all")
        assert len(ranker._pages) == -(-64 // size) + -(-16 // size)
        assert_same_lists(paged, in_one_page)


def test_lists_do_not_depend_on_how_many_histories_are_scored_at_once(
    ranker: Ranker, histories: sparse.csr_array, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = [np.array([number % 80]) for number in range(120)]
    at_once = ranker.rank(histories, k=80, pool="all", exclude=hidden)
    monkeypatch.setattr("recommender.ranker._SCORES_AT_ONCE", 80 * 7)
    monkeypatch.setattr("recommender.ranker._PAIRS_AT_ONCE", 80 * 3)
    in_parts = ranker.rank(histories, k=80, pool="all", exclude=hidden)
    assert_same_lists(in_parts, at_once)


def test_a_launch_makes_only_its_own_page_void_and_a_change_all_that_rests_on_it(
    ranker: Ranker, graph: KnowledgeGraph, histories: sparse.csr_array, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recommender.ranker._PAGE", 6)
    few = np.array([*range(0, 64, 2), 72])
    for one in (ranker, again := Ranker.load(saved)):
        one._scorers._arrays["reference"] = few
    changed, renamed = {}, graph
    for num, name in ((65, "red1 red2"), (3, "blue7 blue9"), (72, "white3 white4")):
        renamed = changed[num] = renamed_to(renamed, num=num, name=name)

    def void_after(num: int, graph: KnowledgeGraph) -> set[tuple[str, int]]:
        """Pages that had to be made anew after an item was launched or changed."""
        ranker.rank(histories[:1], k=1, pool="all")
        before = dict(ranker._pages)
        ranker.add(with_twin(graph, 70), np.array([num]))
        ranker.rank(histories[:1], k=1, pool="all")
        return {place for place, page in ranker._pages.items() if before.get(place) is not page}

    every = {("new", 6 * number) for number in range(3)} | {("known", 6 * number) for number in range(11)}
    assert void_after(80, graph) == {("new", 12)}
    assert void_after(65, changed[65]) == {("new", 0)}
    assert void_after(3, changed[3]) == every, "histories hold it"
    assert void_after(72, changed[72]) == every, "scores are scaled by it"

    for num, now in ((80, graph), *changed.items()):
        again.add(with_twin(now, 70), np.array([num]))
    asked = sparse.vstack([histories, histories_of([1, 5])], format="csr")
    assert_same_lists(*(one.rank(asked, k=81, pool="all") for one in (ranker, again)))


def test_a_new_price_is_read_and_no_neighbour_is_looked_for(
    ranker: Ranker, graph: KnowledgeGraph, histories: sparse.csr_array, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranker._neighbours, "put", None)
    priced = replace(graph, products=graph.products.with_columns(pl.lit(9.5).alias("price")))
    ranker.add(priced, np.array([3, 70]))
    np.testing.assert_allclose(ranker._content.listing[[3, 70], -1], np.log1p(9.5), rtol=1e-6)
    assert ranker.added()[0].tolist() == [3, 70]
    right = ranker.rank(histories, k=4, pool="new").item_nums % len(COLOURS) == np.arange(120)[:, None] % len(COLOURS)
    assert right.mean() > 0.95


def test_of_a_history_whose_words_are_others_nothing_is_remembered(
    ranker: Ranker, graph: KnowledgeGraph, histories: sparse.csr_array, saved: Path
) -> None:
    renamed = renamed_to(graph, num=3, name="blue7 blue9")
    owners = histories[histories[:, [3]].toarray()[:, 0] > 0]
    ranker.add(renamed, np.array([3]))
    scores = ranker.score(owners, np.arange(80))
    again = Ranker.load(saved)
    again.put_added(ranker.item_ids, *ranker.added())
    np.testing.assert_allclose(again.score(owners, np.arange(80)), scores, atol=1e-3)
    ranker._scale_of.clear()
    np.testing.assert_allclose(ranker.score(owners, np.arange(80)), scores, atol=1e-3)


def test_what_was_added_is_taken_up_again_without_reading_it(
    ranker: Ranker, graph: KnowledgeGraph, histories: sparse.csr_array, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int, int]] = []
    graph = with_twin(renamed_to(graph, num=3, name="blue7 blue9"), 70)
    ranker.add(graph, np.array([3, 80]), progress=lambda *step: told.append(step))
    assert {stage for stage, done, total in told if done == total} == {
        "text of added items",
        "neighbours of added items",
    }
    item_nums, arrays = ranker.added()
    assert item_nums.tolist() == [3, 80]
    again = Ranker.load(saved)
    monkeypatch.setattr(again._content.encoder, "encode", None)
    again.put_added(ranker.item_ids, item_nums, arrays)
    assert again.item_ids == ranker.item_ids
    assert again.fingerprint == ranker.fingerprint
    np.testing.assert_array_equal(again.text_vectors, ranker.text_vectors)
    first, second = (one.rank(histories, k=81, pool="all") for one in (ranker, again))
    np.testing.assert_array_equal(first.item_nums, second.item_nums)
    np.testing.assert_array_equal(first.scores, second.scores)
    assert again.added()[0].tolist() == [3, 80], "it is kept again with what is added later"


def test_a_launch_that_failed_half_way_is_finished_by_the_next_one(
    ranker: Ranker, graph: KnowledgeGraph, histories: sparse.csr_array, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = with_twin(graph, 70)
    with monkeypatch.context() as broken:
        broken.setattr(ranker._neighbours, "put", lambda *_: pytest.fail("no memory"))
        with pytest.raises(pytest.fail.Exception):
            ranker.add(after, np.array([80]))
    ranker.add(after, np.array([80]))
    scores = ranker.score(histories[:20], np.array([70, 80]))
    np.testing.assert_allclose(scores[:, 0], scores[:, 1], atol=5e-2)


def test_what_every_history_is_compared_with_is_made_once(ranker: Ranker, monkeypatch: pytest.MonkeyPatch) -> None:
    ranker.rank(histories_of([1, 2, 40]), k=5, pool="all")
    monkeypatch.setattr(ranker._scorers, "block", lambda nums: pytest.fail("made anew"))
    assert np.isfinite(ranker.rank(histories_of([3, 41]), k=5, pool="all").scores).all()


def test_a_kept_stage_that_a_power_cut_left_empty_is_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "graph encoder"
    folder.mkdir()
    (folder / "graph.safetensors").touch()

    class Made:
        def save(self, folder: Path) -> None:
            folder.mkdir()

    made = Made()
    assert _kept(folder, GraphEncoder.load, lambda: made, lambda: pytest.fail("found")) is made
    assert not list(folder.iterdir())


def test_histories_stay_good_while_products_are_launched(
    ranker: Ranker, graph: KnowledgeGraph, histories: sparse.csr_array
) -> None:
    read = ranker.read(histories)
    ranker.add(with_twin(graph, 70), np.array([80]))
    np.testing.assert_array_equal(ranker.audience(80, read), ranker.audience(80, ranker.read(histories)))
    np.testing.assert_array_equal(ranker.audience(80, read), ranker.score(histories, np.array([80]))[:, 0])


def assert_same_lists(first: Ranking, second: Ranking) -> None:
    """Whole lists with the same scores: the order of two items differs only where rounding does."""
    by_item = []
    for ranking in (first, second):
        rows, places = np.nonzero(ranking.item_nums >= 0)
        scores = np.full((len(ranking.item_nums), 100), -np.inf, dtype=np.float32)
        scores[rows, ranking.item_nums[rows, places]] = ranking.scores[rows, places]
        by_item.append(scores)
    np.testing.assert_allclose(*by_item, atol=2e-5)
    differs = first.item_nums != second.item_nums
    assert differs.mean() < 0.01
    np.testing.assert_allclose(first.scores, second.scores, atol=2e-5)


def renamed_to(graph: KnowledgeGraph, *, num: int, name: str) -> KnowledgeGraph:
    """The graph after a change of one item's title."""
    names = [*graph.products["name"]]
    names[num] = name
    return replace(graph, products=graph.products.with_columns(name=pl.Series(names)))


def with_twin(graph: KnowledgeGraph, num: int) -> KnowledgeGraph:
    """The graph after the launch of an item that has all facts of another."""
    row = graph.products[[num]].with_columns(key=pl.lit("x1"))
    edges = {
        relation: pl.DataFrame(
            {
                "head": "x1",
                "tail": [
                    graph.vocabularies[relation.tail_label].keys[tail] for tail in facts.tails[facts.heads == num]
                ],
            }
        )
        for relation, facts in graph.facts.items()
        if relation in (schema.MADE_BY, schema.IN_CATEGORY, schema.HAS_ATTRIBUTE)
    }
    return graph.extended({schema.PRODUCT: row}, edges)


def test_a_launched_item_ranks_like_its_twin_and_moves_no_other_score(
    ranker: Ranker, graph: KnowledgeGraph, histories: sparse.csr_array
) -> None:
    before = ranker.score(histories[:20], np.arange(80))
    ranker.add(with_twin(graph, 70), np.array([80]))
    assert ranker.item_ids[-1] == "x1"
    assert ranker.is_cold[80]
    scores = ranker.score(histories[:20], np.array([70, 80]))
    np.testing.assert_allclose(scores[:, 0], scores[:, 1], atol=5e-2)
    np.testing.assert_allclose(ranker.score(histories[:20], np.arange(80)), before, atol=1e-3)
    assert 80 in ranker.rank(histories, k=10, pool="new").item_nums
    assert ranker.text_vectors.shape[0] == 81


def test_saving_and_loading_gives_the_same_lists(ranker: Ranker, histories: sparse.csr_array, tmp_path: Path) -> None:
    ranker.save(tmp_path / "again")
    again = Ranker.load(tmp_path / "again")
    first, second = (one.rank(histories, k=10, pool="all") for one in (ranker, again))
    np.testing.assert_array_equal(first.item_nums, second.item_nums)
    np.testing.assert_array_equal(first.scores, second.scores)
    assert again.fingerprint == ranker.fingerprint
    assert again.metrics == ranker.metrics
    assert {file.suffix for file in (tmp_path / "again").rglob("*") if file.is_file()} <= {
        ".json",
        ".safetensors",
        ".txt",
        ".md",
    }


def test_the_same_seed_gives_the_same_ranker_and_an_interrupted_training_goes_on_where_it_stopped(
    graph: KnowledgeGraph,
    text_model: str,
    ranker: Ranker,
    histories: sparse.csr_array,
    tmp_path: Path,
) -> None:
    stages: list[tuple[str, int, int]] = []

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "graph encoder, fold 3 of 3":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Ranker.fit(graph, text_model=text_model, checkpoint=tmp_path / "c", progress=interrupt)
    again = Ranker.fit(
        graph,
        text_model=text_model,
        checkpoint=tmp_path / "c",
        progress=lambda stage, done, total: stages.append((stage, done, total)),
    )
    assert again.fingerprint == ranker.fingerprint
    np.testing.assert_array_equal(*(one.rank(histories, k=10, pool="all").scores for one in (again, ranker)))
    for kept in ("text", "graph encoder, fold 1 of 3", "graph encoder, fold 2 of 3"):
        assert [step for step in stages if step[0] == kept] == [(kept, 1, 1)]
    assert "text encoder" not in {stage for stage, _, _ in stages}
    assert len([stage for stage, _, _ in stages if stage == "graph encoder, fold 3 of 3"]) > 1


def test_a_folder_without_a_model_or_of_another_format_is_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="firstshelf train"):
        Ranker.load(tmp_path)
    for number, way_out in ((99, "upgrade"), (1, "train' again")):
        (tmp_path / "config.json").write_text(f'{{"format": {number}}}', encoding="utf-8")
        with pytest.raises(WorkspaceError, match=way_out):
            Ranker.load(tmp_path)


@pytest.mark.parametrize("n_users", [0, 1])
def test_nothing_to_learn_from_is_a_clear_error(n_users: int, text_model: str) -> None:
    with pytest.raises(TrainingError, match="at least 2 customers"):
        Ranker.fit(checkerboard(n_users=n_users), text_model=text_model)


@pytest.mark.parametrize(
    "options",
    [
        {"text": False},
        {"brands": False},
        {"text": False, "brands": False},
        {"n_new": 0},
        {"n_items": 12, "n_users": 6, "n_new": 4, "n_history": 2},
    ],
    ids=["no text", "no graph", "nothing but events", "nothing new", "tiny"],
)
def test_poor_shops_still_get_lists(options: dict[str, int], text_model: str) -> None:
    graph = checkerboard(**options)
    ranker = Ranker.fit(graph, text_model=text_model)
    ranking = ranker.rank(histories_of([0, 4]), k=5, pool="all")
    assert (ranking.item_nums >= 0).all()
    assert np.isfinite(ranking.scores).all()


def test_a_shop_with_a_clock_rehearses_launches_in_time() -> None:
    """One product is launched a day and bought by everybody that day: no fold sees its future."""
    n_users, n_items = 150, 250
    days = np.tile(np.arange(n_items), n_users)
    interactions = sparse.csr_array(np.ones((n_users, n_items), dtype=np.float32))
    folds = _folds(interactions, np.stack([days, days]), seed=0)
    assert [fold.by for fold in folds] == ["time"] * 3
    for fold, start, end in zip(folds, (175, 200, 225), (200, 225, 250), strict=True):
        assert set(fold.seen.indices) == set(range(start))
        assert set(fold.hidden_new.indices) == set(range(start, end))
        assert fold.hidden_known is not None
        assert not fold.hidden_known.nnz


def test_events_of_a_fold_lie_in_its_span() -> None:
    rng = np.random.default_rng(0)
    interactions = sparse.csr_array(np.ones((200, 300), dtype=np.float32))
    times = rng.integers(0, 1000, size=interactions.nnz) + 20 * interactions.indices
    clock = sparse.csr_array((times + 1, interactions.indices, interactions.indptr), shape=interactions.shape)
    folds = _folds(interactions, np.stack([times, times]), seed=0)
    ends = []
    for fold in folds:
        assert fold.by == "time"
        known = fold.hidden_known
        assert known is not None
        assert not (fold.seen.multiply(fold.hidden_new)).nnz
        assert not np.isin(fold.hidden_new.indices, fold.seen.indices).any()
        assert np.isin(known.indices, fold.seen.indices).all()
        spans = [fold.seen.multiply(clock).data, known.multiply(clock).data]
        assert spans[0].max() < spans[1].min()
        ends += [(spans[1].min(), spans[1].max())]
    assert all(before[1] < after[0] for before, after in itertools.pairwise(ends))


def test_a_fold_does_not_know_what_comes_again_after_it() -> None:
    """Every pair was taken four times; of the pairs of item 0 the last time lies after all spans have begun."""
    strengths = sparse.csr_array(np.full((150, 250), np.log2(5), dtype=np.float32))
    first = np.tile(np.arange(250), 150)
    last = np.where(strengths.indices == 0, 300, first)
    for fold in _folds(strengths, np.stack([first, last]), seed=0):
        again = fold.seen.indices == 0
        assert again.any()
        np.testing.assert_array_equal(fold.seen.data[again], 1)
        np.testing.assert_allclose(fold.seen.data[~again], np.log2(5), rtol=1e-6)


def test_what_a_customer_takes_more_often_is_listened_to_more(ranker: Ranker) -> None:
    """Once red and once green leaves it open; three times red against a look at green does not."""
    assert ranker._emphasis == 1
    red, green = 0, 1
    asked = histories_of([red, green], [red, green])
    asked.data[2:] = strength_of(np.array([3, 0.2], dtype=np.float32))
    once, often = ranker.score(asked, np.arange(64, 80))
    colours = np.arange(64, 80) % len(COLOURS)
    lead = [scores[colours == red].mean() - scores[colours == green].mean() for scores in (once, often)]
    assert lead[1] > lead[0] + 0.1


@pytest.mark.parametrize(("own_colour", "emphasis"), [(True, 1.0), (False, 0.0)])
def test_whether_strengths_tell_is_rehearsed(own_colour: bool, emphasis: float, text_model: str) -> None:
    """Half of what a customer took is of another colour; the strong half is of their own, or the other way round."""
    graph = checkerboard()
    facts = graph.facts[schema.INTERACTED]
    heads, tails = (np.concatenate([side, side]) for side in (facts.heads, facts.tails))
    tails[len(facts) :] = tails[len(facts) :] // 4 * 4 + np.random.default_rng(0).integers(4, size=len(facts))
    strong = np.arange(len(tails)) < len(facts)
    noisy = replace(
        facts.joined(facts),
        heads=heads,
        tails=tails,
        weights=np.where(strong == own_colour, 20, 0.2).astype(np.float32),
        order=np.concatenate([facts.order, facts.order + 6]),
    )
    first = np.unique(heads * 80 + tails, return_index=True)[1]
    mask = np.zeros(len(heads), dtype=bool)
    mask[first] = True
    shop = replace(graph, facts={**graph.facts, schema.INTERACTED: noisy.select(mask)})
    ranker = Ranker.fit(shop, text_model=text_model)
    assert ranker._emphasis == emphasis
    assert set(ranker.metrics["ndcg@20 by emphasis"]) == {"1", "0"}


def test_a_few_repeats_are_taken_as_they_are(graph: KnowledgeGraph, text_model: str) -> None:
    """One pair of 720 was taken twice: whether that tells anything cannot be rehearsed, and is not."""
    facts = graph.facts[schema.INTERACTED]
    weights = facts.weights.copy()
    weights[0] = 2
    shop = replace(graph, facts={**graph.facts, schema.INTERACTED: replace(facts, weights=weights)})
    assert set(Ranker.fit(shop, text_model=text_model).metrics["ndcg@20 by emphasis"]) == {"1"}


def test_texts_that_are_made_of_facts_alone_tune_nothing(graph: KnowledgeGraph, text_model: str) -> None:
    empty = pl.lit(None, dtype=pl.String)
    nameless = replace(graph, products=graph.products.with_columns(name=empty, description=empty))
    tuned = Ranker.fit(nameless, text_model=text_model).metrics["text encoder"]
    assert tuned["ships"] == "start"
    assert tuned["why"].startswith("0 of 80 items have a name or description")


def test_without_a_clock_or_with_too_few_launches_items_are_hidden_at_random(graph: KnowledgeGraph) -> None:
    interactions = _histories(graph)
    for times in (None, np.zeros((2, interactions.nnz), dtype=np.int64)):
        folds = _folds(interactions, times, seed=0)
        assert [fold.by for fold in folds] == ["chance"] * 3
        hidden = [set(fold.hidden_new.indices) for fold in folds]
        assert not hidden[0] & hidden[1]
        assert not hidden[1] & hidden[2]
        for fold in folds:
            assert not set(fold.seen.indices) & set(fold.hidden_new.indices)
