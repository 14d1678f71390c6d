from __future__ import annotations

from kg import Path, PathEdge, PathNode
from recommender.results import (
    Audience,
    AudienceMember,
    Explanation,
    Launch,
    Neighbour,
    Neighbours,
    Recommendation,
    Score,
    Scores,
)
from recommender.results import Recommendations as Answer

PATH = Path(
    (PathNode("Customer", "u1", "u1"), PathNode("Product", "a", "A"), PathNode("Product", "b", "B")),
    (PathEdge("INTERACTED", True, "behaviour"), PathEdge("SIMILAR_TO", False, "text")),
    0.5,
    "similar_text",
)
WHY = Explanation("B is like A.", (PATH,), "MATCH …", {"start": "u1", "end": "b"}, True, "2026-01-01T00:00:00+00:00")
ROW = Recommendation("u1", "b", "B", 1, 0.9, "fusion", WHY)


def test_a_line_of_the_output_has_the_keys_of_the_contract() -> None:
    line = ROW.to_json(with_explanation=True)
    assert list(line) == ["user_id", "item_id", "title", "rank", "score", "source", "explanation"]
    assert line["explanation"] == {
        "sentence": "B is like A.",
        "paths": [
            {
                "nodes": [
                    {"label": "Customer", "key": "u1", "name": "u1"},
                    {"label": "Product", "key": "a", "name": "A"},
                    {"label": "Product", "key": "b", "name": "B"},
                ],
                "edges": [
                    {"type": "INTERACTED", "forward": True, "source": "behaviour"},
                    {"type": "SIMILAR_TO", "forward": False, "source": "text"},
                ],
                "score": 0.5,
            }
        ],
        "cypher": "MATCH …",
        "parameters": {"start": "u1", "end": "b"},
        "verified": True,
        "checked_at": "2026-01-01T00:00:00+00:00",
    }
    assert "explanation" not in ROW.to_json(with_explanation=False)


def test_answers_are_sequences_and_frames() -> None:
    answer = Answer((ROW,), explained=True)
    assert (len(answer), answer[0], list(answer)) == (1, ROW, [ROW])
    assert answer.to_pandas()["explanation"].tolist() == ["B is like A."]
    neighbours = Neighbours("b", (Neighbour("a", "A", 0.4, False),))
    assert neighbours.to_pandas()["item_id"].tolist() == ["a"]
    scores = Scores((Score("u1", "b", 0.2, "fusion"),))
    assert scores.to_json() == [{"user_id": "u1", "item_id": "b", "score": 0.2, "source": "fusion"}]
    assert scores.to_pandas()["score"].tolist() == [0.2]
    audience = Audience("b", (AudienceMember("u1", 1, 0.3, WHY),), explained=True)
    assert audience.to_pandas()["user_id"].tolist() == ["u1"]
    assert audience.to_json()["audience"][0]["explanation"]["verified"] is True


def test_a_launch_is_one_object() -> None:
    launch = Launch("b", True, 0.01, Audience("b", ()), Neighbours("b", ()), ("no text",))
    assert launch.to_json() == {
        "item_id": "b",
        "created": True,
        "seconds": 0.01,
        "audience": [],
        "neighbours": [],
        "notes": ["no text"],
    }
