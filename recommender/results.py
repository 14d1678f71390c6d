"""The typed answers of the engine. The caller's own ids go in and come out, never row numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from kg.paths import Path

if TYPE_CHECKING:
    import pandas as pd

Origin = Literal["fusion", "popularity"]
"""``fusion``: ranked for this history. ``popularity``: a degraded answer, since there was no usable history."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why an item is recommended: at least one walk that was found true in the graph store at ``checked_at``.

    ``cypher`` with ``parameters`` returns the walks of the first path's kind in any store that holds the same graph.
    """

    sentence: str
    paths: tuple[Path, ...]
    cypher: str
    parameters: dict[str, Any]
    verified: bool
    checked_at: str

    def to_json(self) -> dict[str, Any]:
        """The contract's JSON object (plain dicts and lists)."""
        paths = [
            {
                "nodes": [asdict(node) for node in path.nodes],
                "edges": [asdict(edge) for edge in path.edges],
                "score": path.score,
            }
            for path in self.paths
        ]
        return {
            "sentence": self.sentence,
            "paths": paths,
            "cypher": self.cypher,
            "parameters": self.parameters,
            "verified": self.verified,
            "checked_at": self.checked_at,
        }


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One slot of one list. ``user_id`` is ``None`` where a bare history was asked for.

    ``score`` is a calibrated probability that the user takes the item up. Without a clock that of a known item rests on
    a guess of what lies ahead of it; in a list with a share of new items it is that of the events that were rehearsed.
    """

    user_id: str | None
    item_id: str
    title: str
    rank: int
    score: float
    source: Origin
    explanation: Explanation | None = None

    def to_json(self, *, with_explanation: bool) -> dict[str, Any]:
        """One line of ``--output``; ``explanation`` appears where it was asked for, and is ``null`` without a path."""
        row: dict[str, Any] = {
            "user_id": self.user_id,
            "item_id": self.item_id,
            "title": self.title,
            "rank": self.rank,
            "score": self.score,
            "source": self.source,
        }
        if with_explanation:
            row["explanation"] = None if self.explanation is None else self.explanation.to_json()
        return row


@dataclass(frozen=True)
class Recommendations(Sequence[Recommendation]):
    """Slots of one or many users, users in the order asked for, best first within each."""

    rows: tuple[Recommendation, ...]
    explained: bool = False
    notes: tuple[str, ...] = ()
    """What is degraded in this answer, in words; empty where nothing is."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __iter__(self) -> Iterator[Recommendation]:
        return iter(self.rows)

    def to_json(self) -> list[dict[str, Any]]:
        """One dict per slot, as ``--output`` writes them."""
        return [row.to_json(with_explanation=self.explained) for row in self.rows]

    def to_pandas(self) -> pd.DataFrame:
        """One row per slot; ``explanation`` holds the sentence."""
        return _frame(
            [
                {
                    **row.to_json(with_explanation=False),
                    "explanation": None if row.explanation is None else row.explanation.sentence,
                }
                for row in self.rows
            ]
        )


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a user is to take an item up, on the scale of ``Recommendation.score``."""

    user_id: str
    item_id: str
    score: float
    source: Origin


@dataclass(frozen=True)
class Scores(Sequence[Score]):
    """Every user with every item, in the order asked for, users first."""

    rows: tuple[Score, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def to_json(self) -> list[dict[str, Any]]:
        """One dict per pair."""
        return [asdict(row) for row in self.rows]

    def to_pandas(self) -> pd.DataFrame:
        """One row per pair."""
        return _frame(self.to_json())


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A product beside another one; ``score`` is higher for closer."""

    item_id: str
    title: str
    score: float
    cold: bool


@dataclass(frozen=True)
class Neighbours(Sequence[Neighbour]):
    """Products beside ``item_id``, closest first."""

    item_id: str
    rows: tuple[Neighbour, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def to_json(self) -> dict[str, Any]:
        """``item_id`` and a list of neighbours."""
        return {"item_id": self.item_id, "neighbours": [asdict(row) for row in self.rows]}

    def to_pandas(self) -> pd.DataFrame:
        """One row per neighbour."""
        return _frame([asdict(row) for row in self.rows])


@dataclass(frozen=True, slots=True)
class AudienceMember:
    """A customer for an item. ``score`` is the calibrated probability, taken over the customer's own usual score."""

    user_id: str
    rank: int
    score: float
    explanation: Explanation | None = None


@dataclass(frozen=True)
class Audience(Sequence[AudienceMember]):
    """The customers for ``item_id``, best first."""

    item_id: str
    rows: tuple[AudienceMember, ...]
    explained: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def to_json(self) -> dict[str, Any]:
        """``item_id`` and a list of customers."""
        rows = []
        for member in self.rows:
            row: dict[str, Any] = {"user_id": member.user_id, "rank": member.rank, "score": member.score}
            if self.explained:
                row["explanation"] = None if member.explanation is None else member.explanation.to_json()
            rows.append(row)
        return {"item_id": self.item_id, "audience": rows}

    def to_pandas(self) -> pd.DataFrame:
        """One row per customer."""
        return _frame([{"user_id": row.user_id, "rank": row.rank, "score": row.score} for row in self.rows])


@dataclass(frozen=True)
class Launch:
    """What a launch did: the item is live, ``seconds`` after the call. ``created`` is false for a known item id."""

    item_id: str
    created: bool
    seconds: float
    audience: Audience
    neighbours: Neighbours
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """The launch as one JSON object."""
        return {
            "item_id": self.item_id,
            "created": self.created,
            "seconds": self.seconds,
            "audience": self.audience.to_json()["audience"],
            "neighbours": self.neighbours.to_json()["neighbours"],
            "notes": list(self.notes),
        }


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    try:
        import pandas as pd
    except ModuleNotFoundError as error:
        from kg.errors import FirstshelfError

        raise FirstshelfError(
            "to_pandas() needs pandas, which is not installed; run: pip install 'firstshelf[pandas]'"
        ) from error
    return pd.DataFrame(rows)
