"""The rules of one row: ``Item`` and ``Event``, what is cleaned and what is refused, with a reason code each.

Every rule of the input lives here and only here; a validator that refuses raises ``PydanticCustomError`` whose type is
the reason that the load report counts.
"""

from __future__ import annotations

import html
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from difflib import get_close_matches
from functools import lru_cache
from itertools import islice
from numbers import Integral, Real
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, ValidationInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from kg.errors import SourceError

MAX_DESCRIPTION: Final = 50_000
"""Characters, before cleaning. A longer one is a page dump or an attack, and no encoder reads that far."""
MAX_TEXT: Final = 2_000
"""Characters of a title, label, brand or image address."""
MAX_ID: Final = 500
"""Characters. Neo4j refuses index keys over 8 kB, and a character takes up to 4 bytes."""
FUTURE_TOLERANCE: Final = timedelta(days=1)
"""How far after ``now`` an event may lie: clocks and time zones of shops differ."""

KIND_WEIGHT: Final[dict[str, float]] = {"view": 0.2, "cart": 0.5, "buy": 1.0}
"""Weight of an event without a weight of its own. No kind at all weighs 1, an unknown kind ``UNKNOWN_KIND_WEIGHT``."""
UNKNOWN_KIND_WEIGHT: Final = 0.5
_KIND: Final = {
    **dict.fromkeys(("view", "click", "detail", "impression", "pageview", "page_view", "product_view"), "view"),
    **dict.fromkeys(("cart", "add_to_cart", "addtocart", "wishlist", "favourite", "favorite", "like", "save"), "cart"),
    **dict.fromkeys(("buy", "purchase", "purchased", "order", "ordered", "sale", "transaction", "checkout"), "buy"),
}

_FORBIDDEN_IN_ID = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff]")
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>|<!--.*?-->", re.DOTALL)
_SCRIPT = re.compile(r"<(script|style)\b.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_PATH_SEPARATOR = re.compile(r"\s*>\s*")
_LAST_SECOND: Final = 253_402_300_799  # the end of year 9999, the last that datetime knows


def clean_text(text: str) -> str:
    """Text without HTML tags, entities and control characters, whitespace collapsed, in NFC. May come out empty."""
    if "<" in text or "&" in text:
        # Twice, since exports that escape their HTML once more are common ("&lt;b&gt;").
        for _ in range(2):
            if "</" in text:
                text = _SCRIPT.sub(" ", text)
            text = html.unescape(_TAG.sub(" ", text))
    text = " ".join(_CONTROL.sub("", text).split())
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def parse_timestamp(value: Any) -> int | None:
    """Epoch seconds UTC of a clock time in any usual form; ``None`` for ``None`` and empty text.

    Takes epoch seconds (milli-, micro- and nanoseconds by their size), ISO 8601 with or without a zone (none = UTC),
    the way pandas prints times, ``date`` and ``datetime``. Raises ``PydanticCustomError`` for anything else.
    """
    if value is None:
        return None
    if type(value) is str:
        return _timestamp_of_text(value)
    seconds: float | None = None
    if isinstance(value, datetime):
        if value != value:  # pandas' NaT is a datetime
            return None
        seconds = (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    elif isinstance(value, date):
        seconds = datetime(value.year, value.month, value.day, tzinfo=UTC).timestamp()
    elif not isinstance(value, bool) and isinstance(value, Real | Decimal):
        seconds = _seconds(_float(value))
    if seconds is None or not 0 <= seconds <= _LAST_SECOND:
        raise _refused_time()
    return math.floor(seconds)


def _refused_time() -> PydanticCustomError:
    return PydanticCustomError(
        "invalid_timestamp",
        "is not a time since 1970; expected epoch seconds or milliseconds, or ISO 8601 such as 2024-05-31T17:20:00Z",
    )


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number of more than 308 digits
        return math.inf


def _seconds(number: float) -> float | None:
    if not math.isfinite(number):
        return None
    for bound, scale in ((1e11, 1.0), (1e14, 1e3), (1e17, 1e6)):
        if abs(number) < bound:
            return number / scale
    return number / 1e9


@lru_cache(maxsize=1 << 16)
def _timestamp_of_text(text: str) -> int | None:
    text = text.strip()
    if not text:
        return None
    # "20240531" is a day: read as seconds it would lie in August 1970, before any shop had an event log.
    compact_day = len(text) == 8 and text.isdigit() and text[:2] in {"19", "20"}
    if _NUMBER.fullmatch(text) and not compact_day:
        return parse_timestamp(float(text))
    try:
        return parse_timestamp(datetime.fromisoformat(text.removesuffix(" UTC")))
    except ValueError:
        raise _refused_time() from None


def clean_id(value: Any) -> str:
    """An id as text: 1001 and 1001.0 are ``"1001"``; outer whitespace goes, nothing else is changed."""
    if type(value) is not str:
        if type(value) is int and abs(value) < 2**63:  # the usual case, ahead of the slow ones
            return str(value)
        if value is None or (isinstance(value, float | Decimal) and value != value):
            value = ""
        elif _is_whole(value):
            whole = int(value)
            value = str(whole) if abs(whole) < 10**MAX_ID else "9" * (MAX_ID + 1)
        elif not isinstance(value, str):
            raise PydanticCustomError("invalid_id", "is no id; expected text or a whole number")
    value = value.strip()
    if not value:
        raise PydanticCustomError("empty_id", "is empty; expected text or a whole number")
    if len(value) > MAX_ID:
        raise PydanticCustomError("invalid_id", "is longer than {limit} characters", {"limit": MAX_ID})
    if _FORBIDDEN_IN_ID.search(value):
        raise PydanticCustomError("invalid_id", "holds a control character, a line break or half a character")
    return str(value)


def _is_whole(value: Any) -> bool:
    if isinstance(value, Integral):
        return not isinstance(value, bool)
    return isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value)


def _label(value: Any, limit: int = MAX_TEXT) -> str | None:
    if value is None:
        return None
    if type(value) is not str:
        if isinstance(value, bool) or not isinstance(value, str | Real | Decimal):
            raise PydanticCustomError("wrong_type", "is of a wrong type; expected text")
        if not isinstance(value, str):
            if not math.isfinite(_float(value)):
                raise PydanticCustomError("not_finite", "is not a finite number")
            value = str(math.trunc(value)) if _is_whole(value) else str(value)
    if len(value) > limit:
        raise PydanticCustomError("text_too_long", "is longer than {limit} characters", {"limit": limit})
    return clean_text(value) or None


def _description(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        if not all(isinstance(part, str) for part in value):
            raise PydanticCustomError("wrong_type", "is of a wrong type; expected text")
        value = " ".join(value)
    if not isinstance(value, str):
        raise PydanticCustomError("wrong_type", "is of a wrong type; expected text")
    if len(value) > MAX_DESCRIPTION:
        raise PydanticCustomError(
            "description_too_long",
            "has {length} characters; expected at most {limit}",
            {"length": len(value), "limit": MAX_DESCRIPTION},
        )
    return clean_text(value) or None


def _from_json_text(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        raise PydanticCustomError("wrong_type", "starts like JSON but is not valid JSON") from None


def _labels(value: Any, separator: re.Pattern[str]) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        stripped = value.strip()
        value = _from_json_text(stripped) if stripped.startswith("[") else separator.split(stripped)
    if not isinstance(value, Sequence):
        raise PydanticCustomError("wrong_type", "is of a wrong type; expected a list of texts")
    return [label for part in value if (label := _label(part)) is not None]


def _category_path(value: Any) -> list[str]:
    labels = _labels(value, _PATH_SEPARATOR)
    labels = [label for place, label in enumerate(labels) if place == 0 or label != labels[place - 1]]
    if len(set(labels)) < len(labels):
        raise PydanticCustomError(
            "category_cycle", "comes back to a category that it has passed; expected each label once, root first"
        )
    return labels


_LIST_SEPARATOR = re.compile(r"\s*\|\s*")


def _categories(value: Any) -> list[str]:
    return list(dict.fromkeys(_labels(value, _LIST_SEPARATOR)))


def listed_ids(value: Any) -> list[str]:
    """Ids in a list, in a JSON list or joined by `` | ``, each once.

    Raises:
        PydanticCustomError: no list, or one that holds what is no id.
    """
    if isinstance(value, str):
        stripped = value.strip()
        value = _from_json_text(stripped) if stripped.startswith("[") else _LIST_SEPARATOR.split(stripped)
    if value is None:
        return []
    if not isinstance(value, Sequence):
        raise PydanticCustomError("wrong_type", "is of a wrong type; expected a list of item ids")
    return list(dict.fromkeys(clean_id(part) for part in value if part not in (None, "")))


AttributeValue = str | float | bool


def _attribute_value(value: Any) -> AttributeValue | None:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Real | Decimal):
        number = _float(value)
        if not math.isfinite(number):
            raise PydanticCustomError("not_finite", "holds a number that is not finite")
        return number
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, str):
        return _label(value, MAX_DESCRIPTION)
    raise PydanticCustomError(
        "invalid_attribute", "holds a value that is no text, number, yes/no or list of these; flatten it first"
    )


def _attributes(value: Any) -> dict[str, list[AttributeValue]]:
    if value is None:
        return {}
    if isinstance(value, str):
        value = _from_json_text(value) if value.strip() else {}
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = _pairs(value)
    if not isinstance(value, Mapping):
        raise PydanticCustomError("wrong_type", "is of a wrong type; expected a map from name to value")
    attributes: dict[str, list[AttributeValue]] = {}
    for name, given in value.items():
        key = _label(name)
        if key is None:
            raise PydanticCustomError("invalid_attribute", "holds an attribute without a name")
        several = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
        values = [part for one in several if (part := _attribute_value(one)) is not None]
        if values:
            attributes.setdefault(key, []).extend(values)
    return attributes


def _pairs(value: Sequence[Any]) -> dict[Any, list[Any]]:
    """The two list forms of a map that Parquet and schema.org have: ``{key|name, value}`` each."""
    pairs: dict[Any, list[Any]] = {}
    for pair in value:
        if not isinstance(pair, Mapping) or "value" not in pair or not ("key" in pair or "name" in pair):
            raise PydanticCustomError("wrong_type", "is of a wrong type; expected a map from name to value")
        pairs.setdefault(pair.get("key", pair.get("name")), []).append(pair["value"])
    return pairs


def _number(value: Any) -> float | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bool) or not isinstance(value, str | Real | Decimal):
        raise PydanticCustomError("wrong_type", "is of a wrong type; expected a number")
    try:
        number = _float(value)
    except ValueError:
        raise PydanticCustomError("wrong_type", "is not a number; expected one such as 12.5") from None
    if not math.isfinite(number):
        raise PydanticCustomError("not_finite", "is not a finite number")
    return number


def _price(value: Any) -> float | None:
    number = _number(value)
    if number is not None and number < 0:
        raise PydanticCustomError("negative_price", "is negative; expected 0 or more")
    return number


def _weight(value: Any) -> float | None:
    number = _number(value)
    if number is not None and number <= 0:
        raise PydanticCustomError("invalid_weight", "is not above 0")
    return number


def _position(value: Any) -> int | None:
    number = _number(value)
    if number is None:
        return None
    if number < 0 or not number.is_integer() or number >= 2**53:
        raise PydanticCustomError("invalid_position", "is no place in an order; expected a whole number from 0")
    return int(number)


def _kind(value: Any) -> str | None:
    label = _label(value)
    return None if label is None else _KIND.get(label.casefold(), label.casefold())


def _event_time(value: Any, info: ValidationInfo) -> int | None:
    timestamp = parse_timestamp(value)
    if timestamp is not None and info.context is not None and timestamp > info.context["latest"]:
        raise PydanticCustomError("timestamp_in_future", "lies more than a day in the future")
    return timestamp


Id = Annotated[str, BeforeValidator(clean_id)]
Label = Annotated[str | None, BeforeValidator(lambda value: _label(value))]


class Item(BaseModel):
    """One product as a shop describes it, cleaned.

    ``category_path`` is one path, root first; ``categories`` is a flat list. ``attributes`` has a list of values for
    each name. ``also_bought`` are the ids of what is bought with it, of this shop's items or of others, as a source
    beside the events has it. ``available_from`` is in epoch seconds UTC, and may lie in the future. Fields that are not
    named here are ignored, so nothing of them is kept; loads and launches say which those were.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    item_id: Id
    title: Label = None
    description: Annotated[str | None, BeforeValidator(_description)] = None
    category_path: Annotated[list[str], BeforeValidator(_category_path)] = []
    categories: Annotated[list[str], BeforeValidator(_categories)] = []
    brand: Label = None
    attributes: Annotated[dict[str, list[bool | float | str]], BeforeValidator(_attributes)] = {}
    price: Annotated[float | None, BeforeValidator(_price)] = None
    available_from: Annotated[int | None, BeforeValidator(parse_timestamp)] = None
    image: Label = None
    also_bought: Annotated[list[str], BeforeValidator(listed_ids)] = []


class Event(BaseModel):
    """One thing that a customer did with a product. Nothing else of a row is kept: ``user_id`` is the personal part.

    Validate with ``context={"latest": epoch seconds}``: later timestamps are refused.
    """

    model_config = ConfigDict(extra="ignore")

    user_id: Id
    item_id: Id
    timestamp: Annotated[int | None, BeforeValidator(_event_time)] = None
    position: Annotated[int | None, BeforeValidator(_position)] = None
    event: Annotated[str | None, BeforeValidator(_kind)] = None
    weight: Annotated[float | None, BeforeValidator(_weight)] = None


def default_weight(kind: str | None) -> float:
    """Weight of an event that has none of its own: view .2, cart .5, buy 1, no kind 1, any other kind .5."""
    return 1.0 if kind is None else KIND_WEIGHT.get(kind, UNKNOWN_KIND_WEIGHT)


def reason_of(error: ErrorDetails) -> str:
    """Reason code of a validation error."""
    kind = error["type"]
    if kind == "missing":
        return "missing_field"
    if kind == "string_unicode":
        return "encoding"
    return kind if kind in REASONS else "wrong_type"


REASONS: Final = frozenset(
    {
        "broken_quotes",
        "category_cycle",
        "description_too_long",
        "duplicate_item_id",
        "empty_id",
        "encoding",
        "invalid_attribute",
        "invalid_id",
        "invalid_json",
        "invalid_position",
        "invalid_timestamp",
        "invalid_weight",
        "missing_field",
        "negative_price",
        "not_an_object",
        "not_finite",
        "text_too_long",
        "timestamp_in_future",
        "unknown_item",
        "wrong_number_of_fields",
        "wrong_type",
    }
)
"""Every reason for which a row can be refused."""


ITEM_FIELDS: Final = tuple(Item.model_fields)
EVENT_FIELDS: Final = tuple(Event.model_fields)


def validate_item(row: Mapping[str, Any]) -> Item:
    """One item from a mapping such as a JSON object.

    Raises:
        SourceError: a field is missing or wrong; the message names the field, its value and what was expected.
    """
    if not isinstance(row, Mapping):
        raise SourceError(f"an item is a mapping with the key 'item_id', not {type(row).__name__}: {clip(row)}")
    try:
        return Item.model_validate(dict(row))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = str(first["loc"][0]) if first["loc"] else "item"
        given = f" ({clip(row[field])})" if field in row else ""
        raise SourceError(f"item field {field!r}{given}: {first['msg']} [{reason_of(first)}]") from error


def meant_fields(names: Iterable[str], known: Iterable[str]) -> dict[str, str | None]:
    """Names that nothing reads, each with the known one that it looks like, or ``None``."""
    known_as = {name.casefold(): name for name in known}
    near = {name: get_close_matches(name.casefold(), known_as, n=1) for name in names}
    return {name: known_as[found[0]] if found else None for name, found in near.items()}


def say_ignored(names: Mapping[str, str | None]) -> str:
    """What ``meant_fields`` found, for people: at most 10 of them, the others counted."""
    parts = [
        f"{clip(name, 60)!r}" + (f" (did you mean {meant!r}?)" if meant else "")
        for name, meant in islice(names.items(), 10)
    ]
    return ", ".join(parts) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def clip(value: Any, limit: int = 200) -> str:
    """A value as one short line for messages and the rejects file."""
    text = value if isinstance(value, str) else repr(value)
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
