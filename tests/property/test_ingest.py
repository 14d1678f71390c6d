"""Loading twice is loading once; every row is counted; the order of rows says nothing; keys do not collide."""

import csv
import io
import json
import math
import random
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest import load
from ingest.facts import attribute_key, category_key, number_bucket
from ingest.rows import clean_text
from kg import Workspace, open_store
from kg.schema import BEHAVIOURAL, INTERACTED, LABELS, RELATIONS

NOW = datetime(2025, 1, 1, tzinfo=UTC)
IDS = st.sampled_from(["1", "2", "3", "a/b", 'q"uote', "🛒", "商品", "'}) DETACH DELETE n //"])
LABELS_OF_TEXT = st.sampled_from(["Kitchen", "kitchen", "Coffee > Tea", "back\\slash", "Töpfe", "&amp;"])
VALUES = st.one_of(st.booleans(), st.floats(-1e6, 1e6), LABELS_OF_TEXT)

GOOD_ITEM = st.fixed_dictionaries(
    {"item_id": IDS},
    optional={
        "title": st.text(max_size=20),
        "brand": LABELS_OF_TEXT,
        "category_path": st.lists(LABELS_OF_TEXT, max_size=3, unique=True),
        "categories": st.lists(LABELS_OF_TEXT, max_size=2),
        "attributes": st.dictionaries(LABELS_OF_TEXT, st.one_of(VALUES, st.lists(VALUES, max_size=2)), max_size=3),
        "price": st.floats(0, 1e6),
        "available_from": st.integers(0, 1_700_000_000),
        "also_bought": st.lists(IDS, max_size=3),
    },
)
BAD_ITEM = st.sampled_from(
    [{}, {"item_id": ""}, {"item_id": "x", "price": -1}, {"item_id": "x", "price": "NaN"}, [], 1]
)
GOOD_EVENT = st.fixed_dictionaries(
    {"user_id": st.sampled_from("uvw"), "item_id": IDS, "timestamp": st.integers(1, 5)},
    optional={"event": st.sampled_from(["view", "buy"]), "weight": st.sampled_from([0.1, 0.2, 0.7])},
)
BAD_EVENT = st.sampled_from([{}, {"user_id": "u"}, {"user_id": "u", "item_id": "1", "weight": -1}, "text"])


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


class Place:
    """A shop folder, a store and a workspace that go away."""

    def __enter__(self):
        self._folder = tempfile.TemporaryDirectory()
        self.path = Path(self._folder.name)
        self.shop = self.path / "shop"
        self.shop.mkdir()
        self.workspace = Workspace.create(self.path / "workspace")
        self.store = open_store("memory:")
        self._usual, tempfile.tempdir = tempfile.tempdir, str(self.path)  # for rejects without a workspace
        return self

    def __exit__(self, *_):
        tempfile.tempdir = self._usual
        self._folder.cleanup()

    def load(self, items, events, *, workspace=True):
        (self.shop / "items.jsonl").write_bytes(items)
        (self.shop / "events.jsonl").write_bytes(events)
        return load(self.shop, self.store, workspace=self.workspace if workspace else None, now=NOW)

    def graph(self):
        nodes = {label: self.store.nodes(label).rows() for label in LABELS}
        return nodes | {relation: self.store.edges(relation).rows() for relation in RELATIONS}


def counted(report):
    for count in report.files.values():
        assert count.read == count.accepted + count.rejected
    assert report.rows_read == sum(count.read for count in report.files.values())
    assert sum(report.reasons.values()) == report.rows_rejected
    if report.rows_rejected:
        assert len(Path(report.rejects_file).read_text(encoding="utf-8").splitlines()) == report.rows_rejected
    else:
        assert report.rejects_file is None


@pytest.mark.parametrize("workspace", [True, False])
@settings(max_examples=40, deadline=None)
@given(
    items=st.lists(st.one_of(GOOD_ITEM, BAD_ITEM), min_size=1, max_size=8),
    events=st.lists(st.one_of(GOOD_EVENT, BAD_EVENT), min_size=1, max_size=12),
)
def test_twice_is_once(workspace, items, events):
    with Place() as place:
        first = place.load(lines(items), lines(events), workspace=workspace)
        counted(first)
        graph = place.graph()
        second = place.load(lines(items), lines(events), workspace=workspace)
        counted(second)
        assert place.graph() == graph
        assert (second.nodes_added, second.nodes_updated, second.nodes_deleted) == (0, 0, 0)
        assert (second.edges_added, second.edges_updated, second.edges_deleted) == (0, 0, 0)
        assert (second.content_hash, second.reasons) == (first.content_hash, first.reasons)
        # What the graph holds can be followed back to what was accepted.
        taken = {(row["user_id"], row["item_id"]) for row in events if isinstance(row, dict) and "timestamp" in row}
        assert set(place.store.edges(INTERACTED).select("head", "tail").rows()) <= taken
        cold = {key for key, *_ in graph["Product"]} - {item for _, item in taken}
        for relation in BEHAVIOURAL:
            assert not cold & {end for row in graph[relation] for end in row[:2]}


@settings(max_examples=30, deadline=None)
@given(
    first=st.tuples(st.lists(GOOD_ITEM, min_size=1, max_size=6), st.lists(GOOD_EVENT, min_size=1, max_size=8)),
    second=st.tuples(st.lists(GOOD_ITEM, min_size=1, max_size=6), st.lists(GOOD_EVENT, min_size=1, max_size=8)),
)
def test_a_graph_reached_by_steps_is_the_graph_of_its_data(first, second):
    """Updating a store and filling an empty one from the same workspace end in the same graph."""
    with Place() as place:
        place.load(*map(lines, first))
        place.load(*map(lines, second))
        stepwise = place.graph()
        place.store = open_store("memory:")
        place.load(*map(lines, second))
        assert place.graph() == stepwise


@settings(max_examples=30, deadline=None)
@given(
    items=st.lists(GOOD_ITEM, min_size=1, max_size=8, unique_by=lambda row: row["item_id"]),
    events=st.lists(GOOD_EVENT, min_size=1, max_size=15),
    seed=st.integers(0, 99),
)
def test_the_order_of_rows_does_not_matter(items, events, seed):
    rng = random.Random(seed)
    with Place() as place, Place() as other:
        one = place.load(lines(items), lines(events))
        two = other.load(lines(rng.sample(items, len(items))), lines(rng.sample(events, len(events))))
        assert one.content_hash == two.content_hash
        assert place.graph() == other.graph()


@settings(max_examples=60, deadline=None)
@given(
    items=st.lists(st.binary(max_size=30), max_size=8), events=st.lists(st.text('u,1"\n\r;é', max_size=12), max_size=8)
)
def test_rubbish_is_counted_too(items, events):
    with Place() as place:
        (place.shop / "events.csv").write_bytes(b"user_id,item_id\n" + "\n".join(events).encode())
        (place.shop / "items.jsonl").write_bytes(b'{"item_id": "1"}\n' + b"\n".join(items).replace(b"\0", b""))
        counted(load(place.shop, place.store, workspace=place.workspace, now=NOW))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.text('ab ,"\n;', max_size=8), min_size=2, max_size=2), min_size=1, max_size=6))
def test_csv_as_pythons_own_writer_writes_it(texts):
    """Texts with quotes, commas and line breaks come back as they were."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(("item_id", "title", "description"))
    for num, row in enumerate(texts):
        writer.writerow((f"Item-{num}", *row))
    with Place() as place:
        (place.shop / "items.csv").write_bytes(stream.getvalue().encode())
        report = load(place.shop, place.store, now=NOW)
        counted(report)
        assert report.rows_rejected == 0
        found = place.store.nodes("Product").select("name", "description").rows()
        assert found == [tuple(clean_text(text) or None for text in row) for row in texts]


@given(
    st.lists(st.lists(st.text("a>\\ ", min_size=1, max_size=4), min_size=1, max_size=3), unique_by=tuple, max_size=20)
)
def test_two_category_paths_never_share_a_key(paths):
    cleaned = {tuple(clean_text(label) or "-" for label in path) for path in paths}
    assert len({category_key(path) for path in cleaned}) == len(cleaned)


@given(st.sets(st.tuples(st.text("a=\\", max_size=4), st.text("a=\\", max_size=4)), max_size=20))
def test_two_attributes_never_share_a_key(attributes):
    assert len({attribute_key(*pair) for pair in attributes}) == len(attributes)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_lies_in_its_bucket(number):
    bucket = number_bucket(number)
    if number == 0:
        assert bucket == "0"
        return
    assert number_bucket(-number) != bucket
    lower, upper = sorted(abs(float(bound)) for bound in bucket.split(" to "))
    assert lower <= abs(number) < upper or math.isinf(upper)
