"""The engine's wiring, with a ranker whose answers are known by hand; tests/integration has the trained one."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from checkerboard import lists_of

from kg import KnowledgeGraph, Workspace, schema, snapshot
from kg.errors import SourceError, StoreError, UnknownItemError, UnknownUserError, WorkspaceError
from kg.store import GraphStore
from recommender import Engine
from recommender.engine import current_graph, history_of


def test_an_item_bought_since_the_training_is_not_new_any_more(bought_since: Engine) -> None:
    engine = bought_since
    for user in ("u1", "u2", "u4", "nobody"):
        assert [row.item_id for row in engine.recommend(user, k=9, pool="new")] == ["cable", "stone"]
    assert "epoxy" in {row.item_id for row in engine.recommend("u1", k=9, pool="all")}
    assert "epoxy" not in {row.item_id for row in engine.recommend("u2", k=9, pool="all")}


def test_a_history_that_the_model_cannot_read_is_answered_by_popularity_and_says_so(bought_since: Engine) -> None:
    answer = bought_since.recommend(["u2", "u4"], k=2)
    assert {(row.user_id, row.source) for row in answer} == {("u2", "fusion"), ("u4", "popularity")}
    assert answer.notes[0].startswith("1 without a known history")


def test_own_items_never_show_and_every_slot_is_typed(engine: Engine) -> None:
    answer = engine.recommend("u1", k=4, pool="new")
    assert [row.item_id for row in answer] == ["cable", "epoxy", "saw", "stone"]
    assert [row.rank for row in answer] == [1, 2, 3, 4]
    assert {row.source for row in answer} == {"fusion"}
    assert not {"glue", "drill"} & {row.item_id for row in engine.recommend("u1", k=20)}
    assert list(answer.to_pandas().columns) == ["user_id", "item_id", "title", "rank", "score", "source", "explanation"]


def test_one_call_takes_many_users_in_their_order(engine: Engine) -> None:
    answer = engine.recommend(["u2", "u1"], k=1)
    assert [row.user_id for row in answer] == ["u2", "u1"]


def test_an_unknown_user_gets_an_answer_that_says_that_it_is_degraded(engine: Engine) -> None:
    answer = engine.recommend("nobody", k=2, explain=True)
    assert {row.source for row in answer} == {"popularity"}
    assert [row.explanation for row in answer] == [None, None]
    assert "popularity" in answer.notes[0]


def test_a_bare_history_names_the_items_it_left_out(engine: Engine) -> None:
    answer = engine.recommend(history=["glue", "no such"], k=3, explain=True, pool="new")
    assert "no such" in answer.notes[0]
    assert answer[0].user_id is None
    epoxy = next(row for row in answer if row.item_id == "epoxy")
    assert epoxy.explanation is not None
    assert epoxy.explanation.paths[0].nodes[0].key == "glue"


def test_one_item_is_a_history_too(engine: Engine) -> None:
    assert engine.recommend(history="glue", k=3) == engine.recommend(history=["glue"], k=3)


@pytest.mark.parametrize("one", [1, 1.0, np.int64(1), np.int32(1), Decimal(1), " 1 "])
def test_ids_are_numbers_too_by_the_rule_of_ingest(numbered: Engine, one: Any) -> None:
    engine = numbered
    assert engine.recommend(one) == engine.recommend("1")
    assert engine.recommend(one)[0].user_id == "1"
    assert engine.recommend(history=[one * 10 if one != " 1 " else 10]) == engine.recommend(history=["10"])
    assert engine.explain(one, 30) == engine.explain("1", "30")
    assert engine.score(one, [30]) == engine.score("1", "30")
    assert engine.score(one, 30)[0].source == "fusion"
    assert engine.audience_for(30).item_id == engine.similar(np.int64(30)).item_id == "30"


@pytest.mark.parametrize(
    "many", [[1, 2], (1, 2), np.array([1, 2]), pd.Series([1, 2]), range(1, 3), (num for num in (1, 2))]
)
def test_many_ids_come_in_any_collection(numbered: Engine, many: Any) -> None:
    assert [row.user_id for row in numbered.recommend(many, k=1)] == ["1", "2"]
    assert {row.source for row in numbered.recommend([1, 2])} == {"fusion"}


@pytest.mark.parametrize("wrong", [1.5, float("nan"), True, b"1", None, pd.NA, [1], {"user_id": 1}])
def test_an_id_that_is_none_is_one_clear_error(engine: Engine, wrong: Any) -> None:
    for call in (
        lambda: engine.recommend([wrong]),
        lambda: engine.recommend(history=[wrong]),
        lambda: engine.similar(wrong),
        lambda: engine.audience_for(wrong),
        lambda: engine.explain("u1", wrong),
        lambda: engine.score([wrong], "glue"),
        lambda: engine.score("u1", [wrong]),
    ):
        with pytest.raises(TypeError, match=r"^(user id|item id|history item) .*(is no id|is empty); expected text or"):
            call()


@pytest.mark.parametrize("text", ["", "  ", "a\nb", "x" * 10_000, "half \ud83d"])
def test_text_that_can_be_no_id_is_an_unknown_one(engine: Engine, text: str) -> None:
    answer = engine.recommend(text, k=1)
    assert (answer[0].user_id, answer[0].source) == (text, "popularity")
    with pytest.raises(UnknownItemError):
        engine.similar(text)


def test_a_k_of_a_billion_takes_no_memory(engine: Engine) -> None:
    assert len(engine.recommend("u1", k=10**12)) == 5
    assert len(engine.similar("glue", k=10**12)) == 6
    assert len(engine.audience_for("epoxy", k=10**12)) == 3


def test_who_has_everything_gets_an_empty_list_that_says_so(engine: Engine) -> None:
    answer = engine.recommend(history=engine.item_ids)
    assert len(answer) == 0
    assert answer.notes == ("1 with every item in the history that could be shown: an empty list",)


def test_a_shop_without_new_items_says_so(bought_since: Engine) -> None:
    rest = pl.DataFrame({"head": ["u1", "u1"], "tail": ["cable", "stone"], "position": [2, 3], "weight": [1.0, 1.0]})
    bought_since.store.write_edges(schema.INTERACTED, rest.with_columns(source=pl.lit("behaviour")))
    bought_since._adopt(snapshot(bought_since.store, until=None))
    answer = bought_since.recommend("u2", pool="new")
    assert len(answer) == 0
    assert "nothing is new" in answer.notes[0]


def test_scores_are_probabilities_of_every_pair_in_the_order_asked(engine: Engine) -> None:
    scores = engine.score(["u2", "nobody"], ["epoxy", "cable"])
    assert [(row.user_id, row.item_id, row.source) for row in scores] == [
        ("u2", "epoxy", "fusion"),
        ("u2", "cable", "fusion"),
        ("nobody", "epoxy", "popularity"),
        ("nobody", "cable", "popularity"),
    ]
    for row in scores:
        log_odds = (2 if row.user_id == "u2" else 0) - engine.item_ids.index(row.item_id)
        assert row.score == pytest.approx(1 / (1 + np.exp(-log_odds)))
    assert engine.score("u2", "cable")[0] == scores[1]
    assert len(engine.score([], "cable")) == 0


def test_a_changed_item_changes_the_fingerprint(engine: Engine) -> None:
    before = engine.fingerprint
    engine.launch({"item_id": "epoxy", "title": "Epoxy resin"})
    assert engine.fingerprint != before


def test_wrong_calls_say_what_was_expected(engine: Engine) -> None:
    for call in (engine.similar, engine.audience_for):
        with pytest.raises(ValueError, match="at least 1"):
            call("epoxy", k=-1)
    with pytest.raises(ValueError, match="exactly one"):
        engine.recommend()
    with pytest.raises(ValueError, match="at least 1"):
        engine.recommend("u1", k=0)
    with pytest.raises(ValueError, match="'new' or 'all'"):
        engine.recommend("u1", pool="cold")
    with pytest.raises(UnknownItemError, match="firstshelf launch"):
        engine.similar("ghost")
    with pytest.raises(UnknownItemError, match="ghost"):
        engine.score("u1", ["epoxy", "ghost"])
    with pytest.raises(UnknownUserError, match="ghost"):
        engine.explain("ghost", "epoxy")


@pytest.mark.parametrize("new_share", [-0.1, 1.1, float("nan")])
def test_a_share_must_be_one(engine: Engine, new_share: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        engine.recommend("u1", new_share=new_share)


def test_a_share_has_no_meaning_where_all_are_new(engine: Engine) -> None:
    with pytest.raises(ValueError, match="pool 'all'"):
        engine.recommend("u1", pool="new", new_share=0.5)


@pytest.mark.parametrize(
    ("new_share", "shown"),
    [(None, ["cable", "epoxy"]), (0.0, ["tape", "cable"]), (0.5, ["tape", "cable"]), (1.0, ["cable", "epoxy"])],
)
def test_a_share_is_the_shops_and_not_the_calls(engine: Engine, new_share: float | None, shown: list[str]) -> None:
    """Asked alone, in company or as a bare history: one list. The only known item that u1 may see is the tape."""
    together = [
        row for row in engine.recommend(["u2", "u1", "nobody"], k=2, new_share=new_share) if row.user_id == "u1"
    ]
    assert [row.item_id for row in together] == shown
    assert list(engine.recommend("u1", k=2, new_share=new_share)) == together
    bare = engine.recommend(history=["glue", "drill"], k=2, new_share=new_share)
    assert [(row.item_id, row.score) for row in bare] == [(row.item_id, row.score) for row in together]


def test_a_share_that_the_shop_does_not_have_is_said(engine: Engine) -> None:
    assert engine.recommend("u1", k=2, new_share=0.5).notes == ()
    note = "50% new items in a list of 20 cannot be had: the shop has 4 new items and 3 others"
    assert engine.recommend("u1", k=20, new_share=0.5).notes == (note,)


def test_explanations_come_with_cypher_and_null_where_there_is_no_path(engine: Engine) -> None:
    rows = {row.item_id: row for row in engine.recommend("u1", k=4, pool="new", explain=True)}
    assert rows["stone"].explanation is None
    assert rows["stone"].to_json(with_explanation=True)["explanation"] is None
    assert rows["epoxy"].explanation == engine.explain("u1", "epoxy", n_paths=3)
    assert engine.explain("u1", "stone") is None


def test_audience_leaves_owners_out_and_heavier_scores_come_first(engine: Engine) -> None:
    assert [member.user_id for member in engine.audience_for("tape", k=5)] == ["u1", "u3"]
    member = engine.audience_for("epoxy", k=1, explain=True)[0]
    assert member.explanation is not None
    assert member.explanation.verified


def test_similar_says_which_neighbours_are_new(engine: Engine) -> None:
    cold = {row.item_id: row.cold for row in engine.similar("glue", k=10)}
    assert cold == {"cable": True, "drill": False, "epoxy": True, "saw": True, "stone": True, "tape": False}


def test_what_has_nothing_in_common_is_no_neighbour(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine._ranker, "similar", lambda num, k: (np.array([1, 2, 3]), np.array([0.5, 0.0, -0.1])))
    assert [row.score for row in engine.similar("glue")] == [0.5]


def launched(engine: Engine, **fields: Any) -> Any:
    item = {
        "item_id": "super-epoxy",
        "title": "Super Epoxy",
        "brand": "Gorilla",
        "category_path": ["Tools", "Adhesives"],
    }
    return engine.launch({**item, **fields})


def test_a_launch_is_recommendable_explained_and_stored_at_once(engine: Engine) -> None:
    launch = launched(engine)
    assert launch.created
    rows = {row.item_id: row for row in engine.recommend("u1", k=10, pool="new", explain=True)}
    explanation = rows["super-epoxy"].explanation
    assert explanation is not None
    kinds = {path.metapath for path in explanation.paths}
    assert kinds >= {"same_brand", "same_category"}
    assert "super-epoxy" in engine.store.nodes(schema.PRODUCT)["key"]
    assert launch.audience[0].explanation is not None
    assert len(launch.neighbours) == 7


def test_launching_again_updates_in_place(engine: Engine) -> None:
    launched(engine)
    again = launched(engine, brand="Bosch")
    assert not again.created
    makers = engine.store.edges(schema.MADE_BY).filter(pl.col("head") == "super-epoxy")
    assert makers["tail"].to_list() == ["bosch"]
    explanation = engine.explain("u1", "super-epoxy")
    assert explanation is not None
    assert all(node.key != "gorilla" for path in explanation.paths for node in path.nodes)


def test_what_a_relaunch_leaves_out_is_gone(engine: Engine) -> None:
    launched(engine)
    engine.launch({"item_id": "super-epoxy", "title": "Super Epoxy"})
    explanation = engine.explain("u1", "super-epoxy")
    assert explanation is None or {path.metapath for path in explanation.paths} <= {
        "similar_text",
        "bought_with_similar_text",
    }
    assert engine._graph.facts[schema.MADE_BY].heads.max() < len(engine.item_ids) - 1


def test_what_was_ingested_since_the_training_is_read_once(
    open_engine: Callable[[], Engine], store: GraphStore
) -> None:
    store.write_nodes(schema.PRODUCT, pl.DataFrame({"key": ["ingested", "epoxy"], "name": ["Nails", "Epoxy resin"]}))
    first = open_engine()
    assert first._ranker.encoded == 2
    shown = first.recommend("u1", k=9, pool="new")
    assert {"ingested", "epoxy"} <= {row.item_id for row in shown}
    first.close()
    second = open_engine()
    assert second._ranker.encoded == 0
    assert second.recommend("u1", k=9, pool="new") == shown
    assert second.fingerprint == first.fingerprint
    store.write_nodes(schema.PRODUCT, pl.DataFrame({"key": ["ingested"], "name": ["Screws"]}))
    store.set_mark("another load")
    assert open_engine()._ranker.encoded == 1


def test_a_launch_is_read_once_and_a_launch_that_was_not_closed_again(open_engine: Callable[[], Engine]) -> None:
    engine = open_engine()
    launched(engine)
    shown = engine.recommend("u1", k=9, pool="new", explain=True)
    killed = open_engine()
    assert killed._ranker.encoded == 1
    assert [row.item_id for row in killed.recommend("u1", k=9, pool="new")] == [row.item_id for row in shown]
    engine.close()
    again = open_engine()
    assert again._ranker.encoded == 0
    assert [row.item_id for row in again.recommend("u1", k=9, pool="new")] == [row.item_id for row in shown]


def cut_off_at(engine: Engine, monkeypatch: pytest.MonkeyPatch, relation: schema.Relation) -> None:
    """A launch whose process is interrupted when it writes edges of this relation."""
    write_edges = engine.store.write_edges

    def write(relation_now: schema.Relation, *arguments: Any) -> Any:
        if relation_now == relation:
            raise KeyboardInterrupt
        return write_edges(relation_now, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(engine.store, "write_edges", write)
        with pytest.raises(KeyboardInterrupt):
            launched(engine)


@pytest.mark.parametrize("relation", [schema.MADE_BY, schema.SIMILAR_TO])
def test_a_launch_that_was_cut_off_is_finished_by_the_next_opening(
    open_engine: Callable[[], Engine], monkeypatch: pytest.MonkeyPatch, relation: schema.Relation
) -> None:
    engine = open_engine()
    cut_off_at(engine, monkeypatch, relation)
    shown = {row.item_id for row in engine.recommend("u1", k=20)}
    assert "epoxy" in shown, "the engine goes on"
    assert launched(engine, item_id="another").created
    engine.close()
    again = open_engine()
    assert {"super-epoxy", "another"} <= {row.item_id for row in again.recommend("u1", k=20, pool="new")}
    explanation = again.explain("u1", "super-epoxy", n_paths=9)
    assert explanation is not None
    assert {path.metapath for path in explanation.paths} >= {"same_brand", "same_category"}
    heads = again.store.edges(schema.SIMILAR_TO)["head"].to_list()
    assert ("super-epoxy" in heads) == ("another" in heads)
    again.close()
    assert open_engine()._ranker.encoded == 0


def test_a_launch_that_was_cut_off_is_finished_by_launching_again(
    open_engine: Callable[[], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine()
    cut_off_at(engine, monkeypatch, schema.MADE_BY)
    launched(engine, title="Second try")
    engine.close()
    again = open_engine()
    assert again._ranker.encoded == 0
    assert again.similar("glue", k=9)[-1].title == "Second try"


def test_a_launch_that_cannot_be_finished_does_not_keep_the_workspace_shut(
    open_engine: Callable[[], Engine], store: GraphStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off_at(open_engine(), monkeypatch, schema.MADE_BY)

    def refuse(*arguments: Any) -> None:
        raise StoreError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_edges", refuse)
        with pytest.warns(UserWarning, match=r"'super-epoxy' was cut off.*the disk is full"):
            engine = open_engine()
        assert engine.recommend("u1", k=3)
        engine.close()
    assert open_engine().explain("u1", "super-epoxy") is not None


def test_a_launch_names_the_fields_that_nothing_reads(engine: Engine) -> None:
    assert not any("nothing reads" in note for note in launched(engine).notes)
    launch = launched(engine, item_id="x", categroy_path=["Tools"], zzz=1)
    assert "'categroy_path' (did you mean 'category_path'?), 'zzz'" in launch.notes[0]
    assert launch.to_json()["notes"] == list(launch.notes)


def test_a_launch_of_a_bad_item_names_the_field(engine: Engine) -> None:
    with pytest.raises(SourceError, match="price"):
        launched(engine, price=-1)
    assert "super-epoxy" not in engine.item_ids


def test_a_damaged_model_says_how_to_make_another(tmp_path: Path) -> None:
    workspace = Workspace.create(tmp_path / "w", store="memory:")
    workspace.model_folder.mkdir()
    for content in ('{"format": 2}', "{"):
        (workspace.model_folder / "config.json").write_text(content)
        with pytest.raises(WorkspaceError, match=r"damaged.*firstshelf train"):
            Engine.open(tmp_path / "w")


def test_histories_are_oldest_first(graph: KnowledgeGraph) -> None:
    assert [[graph.items.keys[num] for num in history] for history in lists_of(graph.histories)] == [
        ["glue", "drill"],
        ["glue", "tape"],
        [],
    ]


def test_what_comes_again_in_a_bare_history_counts_more_and_stands_where_it_came_last() -> None:
    history = history_of(np.array([7, 2, 7, 5, 7, 2]), 9)
    np.testing.assert_array_equal(history.indices, [5, 7, 2])
    np.testing.assert_allclose(history.data, np.log2([2, 4, 3]), rtol=1e-6)
    assert history.shape == (1, 9)
    assert history_of(np.zeros(0, dtype=np.int64), 9).nnz == 0


def test_an_unfinished_load_is_not_served(tmp_path: Path, store: GraphStore) -> None:
    store.set_mark(None)
    workspace = Workspace.create(tmp_path / "w", store="memory:")
    with pytest.raises(WorkspaceError, match="did not finish"):
        current_graph(workspace, store)


def test_the_saved_snapshot_is_used_until_the_store_changes(tmp_path: Path, store: GraphStore) -> None:
    workspace = Workspace.create(tmp_path / "w", store="memory:")
    first = current_graph(workspace, store)
    store.write_nodes(schema.BRAND, pl.DataFrame({"key": ["new"], "name": ["New"]}))
    assert current_graph(workspace, store).vocabularies[schema.BRAND].keys == first.vocabularies[schema.BRAND].keys
    store.set_mark("another load")
    assert "new" in current_graph(workspace, store).vocabularies[schema.BRAND]


def test_launches_of_two_processes_are_both_there_afterwards(open_engine: Callable[[], Engine]) -> None:
    first, second = open_engine(), open_engine()
    first.launch({"item_id": "glue-a", "title": "Glue A"})
    second.launch({"item_id": "glue-b", "title": "Glue B"})
    for engine in (first, second):
        engine.close()
    assert {"glue-a", "glue-b"} <= set(open_engine().item_ids)


def test_a_snapshot_is_kept_by_the_one_process_that_launched(
    open_engine: Callable[[], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_engine() as engine:
        engine.launch({"item_id": "glue-a", "title": "Glue A"})
    monkeypatch.setattr("recommender.engine.snapshot", lambda *_, **__: pytest.fail("read from the store"))
    assert "glue-a" in open_engine().item_ids


def test_a_process_that_was_open_while_another_trained_keeps_no_snapshot(
    open_engine: Callable[[], Engine], tmp_path: Path
) -> None:
    engine = open_engine()
    Workspace.open(tmp_path / "trained").remember(trained="another model")
    engine.launch({"item_id": "glue-a", "title": "Glue A"})
    kept = Workspace.open(tmp_path / "trained").get("snapshot")
    engine.close()
    assert Workspace.open(tmp_path / "trained").get("snapshot") == kept


def test_the_store_is_released_where_nothing_can_be_kept(
    open_engine: Callable[[], Engine], store: GraphStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, closed = open_engine(), []
    engine.launch({"item_id": "glue-a", "title": "Glue A"})
    monkeypatch.setattr("recommender.engine.save_added", _disk_is_full)
    monkeypatch.setattr(store, "close", lambda: closed.append(True))
    with pytest.raises(OSError, match="disk is full"):
        engine.close()
    assert closed


def _disk_is_full(*_: object) -> None:
    raise OSError("the disk is full")


def test_an_untrained_workspace_says_how_to_train(tmp_path: Path) -> None:
    Workspace.create(tmp_path / "w", store="memory:")
    with pytest.raises(WorkspaceError, match="firstshelf train"):
        Engine.open(tmp_path / "w")
    with pytest.raises(WorkspaceError, match="no workspace"):
        Engine.open(tmp_path / "elsewhere")
