import gzip
import io
import json
from pathlib import Path

import polars as pl
import pytest

from ingest.files import CHUNK, Place, Rejects, SourceFile, TableMapping, find_files, open_bytes, read_rows
from kg.errors import SourceError

FIELDS = ("item_id", "title", "price", "attributes")


def read(path, mapping=None, **options):
    """Rows, their places, and the rejects of one file."""
    rejects = Rejects(lambda: path.parent / "rejects.jsonl")
    ending = path.name.removesuffix(".gz").rpartition(".")[2]
    file = SourceFile(path, ending, mapping or TableMapping())
    seen = []
    chunks = list(read_rows(file, ("item_id",), FIELDS, rejects, seen.append, **options))
    rejects.close()
    rows = [row for chunk in chunks for row in chunk.rows]
    places = [place for chunk in chunks for place in chunk.places]
    count = rejects.count(path.name)
    assert count.read == len(rows) + count.rejected == sum(seen)
    refused = [] if rejects.path is None else [json.loads(line) for line in rejects.path.open(encoding="utf-8")]
    assert len(refused) == count.rejected == rejects.reasons.total()
    return rows, places, refused


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def parquet(frame):
    stream = io.BytesIO()
    frame.write_parquet(stream)
    return stream.getvalue()


# --- finding files ---


def test_a_folder_with_everything(tmp_path):
    for name in ("items.jsonl", "items.CSV.gz", "events.parquet", "b.ttl", "a.jsonld.gz", "readme.md", ".hidden"):
        (tmp_path / name).touch()
    folder = find_files(tmp_path)
    assert [file.name for file in folder.items] == ["items.CSV.gz", "items.jsonl"]
    assert [file.format for file in folder.items] == ["csv", "jsonl"]
    assert [file.name for file in folder.events] == ["events.parquet"]
    assert [(file.name, file.format) for file in folder.rdf] == [("a.jsonld.gz", "jsonld"), ("b.ttl", "ttl")]
    assert folder.ignored == ["readme.md"]


def test_no_folder(tmp_path):
    with pytest.raises(SourceError, match="does not exist"):
        find_files(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(SourceError, match="is a file"):
        find_files(tmp_path / "file")


def test_a_folder_with_nothing_to_read(tmp_path):
    with pytest.raises(SourceError, match="it is empty"):
        find_files(tmp_path)
    (tmp_path / "products.xlsx").touch()
    with pytest.raises(SourceError, match=r"products\.xlsx.*expected items\.jsonl"):
        find_files(tmp_path)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ("{broken", "mapping"),
        ('{"items": {"colums": {}}}', r"items\.colums"),
        ('{"items": {"file": "nowhere.csv"}}', "is not in"),
        ('{"items": {"file": "../secret.csv"}}', "plain file name"),
        ('{"items": {"file": "items.xml"}}', "no known format"),
    ],
)
def test_wrong_mappings(tmp_path, mapping, message):
    (tmp_path / "items.xml").touch()
    write(tmp_path, "mapping.json", mapping)
    with pytest.raises(SourceError, match=message):
        find_files(tmp_path)


def test_a_mapping_may_come_from_outside(tmp_path):
    (tmp_path / "products.csv").touch()
    mapping = {"items": {"file": "products.csv"}}
    assert [file.name for file in find_files(tmp_path, mapping).items] == ["products.csv"]
    path = write(tmp_path, "elsewhere.json", json.dumps(mapping))
    assert [file.name for file in find_files(tmp_path, path).items] == ["products.csv"]
    with pytest.raises(SourceError, match="cannot be read"):
        find_files(tmp_path, tmp_path / "missing.json")


# --- gzip and whole files ---


def test_gzip_is_seen_whatever_the_name(tmp_path):
    packed = gzip.compress(b'{"item_id": "1"}\n')
    for name in ("items.jsonl", "items.jsonl.gz"):
        assert read(write(tmp_path, name, packed))[0] == [{"item_id": "1"}]


@pytest.mark.parametrize(
    "content", [b"no gzip at all", gzip.compress(b'{"item_id": "1"}\n' * 50_000)[:-20], b"\x1f\x8b\x08\0garbage"]
)
def test_damaged_gzip(tmp_path, content):
    with pytest.raises(SourceError, match="gzip"):
        read(write(tmp_path, "items.jsonl.gz", content))


def test_gzip_with_a_flipped_byte(tmp_path):
    content = bytearray(gzip.compress(b"".join(b'{"item_id": "%d"}\n' % num for num in range(9_000))))
    content[len(content) // 2] ^= 0xFF
    with pytest.raises(SourceError, match="gzip"):
        read(write(tmp_path, "items.jsonl.gz", bytes(content)))


def test_a_file_that_may_not_be_read(tmp_path):
    with pytest.raises(SourceError, match="cannot be read"), open_bytes(tmp_path):
        pass


@pytest.mark.parametrize("name", ["items.csv", "items.jsonl"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_utf_16_is_one_clear_error(tmp_path, name, encoding):
    text = "item_id,title\n1,Größe\n" if name.endswith("csv") else '{"item_id": "1", "title": "Größe"}\n'
    with pytest.raises(SourceError, match="UTF-16"):
        read(write(tmp_path, name, text.encode(encoding)))


@pytest.mark.parametrize("name", ["items.csv", "items.jsonl"])
def test_latin_1_rows_are_refused_and_the_others_taken(tmp_path, name):
    rows = ["1,Tisch", "2,Größe", "3,Stuhl"] if name.endswith("csv") else ['{"item_id": "1"}', '{"item_id": "ß"}']
    header = "item_id,title\n" if name.endswith("csv") else ""
    found, _, refused = read(write(tmp_path, name, (header + "\n".join(rows) + "\n").encode("latin-1")))
    assert [row["item_id"] for row in found] == (["1", "3"] if name.endswith("csv") else ["1"])
    assert [(reject["row"], reject["reason"]) for reject in refused] == [(2, "encoding")]
    assert r"\xdf" in refused[0]["value"]


@pytest.mark.parametrize("name", ["items.csv", "items.jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path, name):
    text = "item_id\n1\n" if name.endswith("csv") else '{"item_id": "1"}\n'
    assert read(write(tmp_path, name, "\ufeff" + text))[0] == [{"item_id": "1"}]


# --- JSON lines ---


def test_json_lines_with_bad_ones_between(tmp_path):
    lines = ['{"item_id": "1"}', "", "[1, 2]", '"text"', "{broken", '{"item_id": "2"}', '{"item_id": "3", "ti']
    rows, places, refused = read(write(tmp_path, "items.jsonl", "\r\n".join(lines)))
    assert rows == [{"item_id": "1"}, {"item_id": "2"}]
    assert places == [Place(1, 1), Place(5, 6)]
    assert [(reject["row"], reject["line"], reject["reason"]) for reject in refused] == [
        (2, 3, "not_an_object"),
        (3, 4, "not_an_object"),
        (4, 5, "invalid_json"),
        (6, 7, "invalid_json"),
    ]
    assert refused[-1]["value"] == '{"item_id": "3", "ti'
    assert {reject["file"] for reject in refused} == {"items.jsonl"}


def test_line_separators_inside_json_text(tmp_path):
    row = {"item_id": "1", "title": "a\u2028b\x85c\x0bd"}
    assert read(write(tmp_path, "items.jsonl", json.dumps(row, ensure_ascii=False)))[0] == [row]


def test_json_with_half_a_character_is_refused(tmp_path):
    _, _, refused = read(write(tmp_path, "items.jsonl", '{"item_id": "\\ud83d"}'))
    assert refused[0]["reason"] == "invalid_json"


def test_json_nested_too_deep_is_refused(tmp_path):
    _, _, refused = read(write(tmp_path, "items.jsonl", '{"item_id": ' + "[" * 100_000))
    assert refused[0]["reason"] == "invalid_json"
    assert len(refused[0]["value"]) == 200


# --- CSV ---


def csv_rows(tmp_path, text, **options):
    return read(write(tmp_path, "items.csv", text), **options)


def test_csv_as_it_should_be(tmp_path):
    text = 'item_id,title,price\n1,"a, b",3\n2,"say ""hi""",\n\n3,"two\nlines",5\n4,15" screen,\n'
    rows, places, _ = csv_rows(tmp_path, text)
    assert [row["title"] for row in rows] == ["a, b", 'say "hi"', "two\nlines", '15" screen']
    assert places == [Place(1, 2), Place(2, 3), Place(3, 5), Place(4, 7)]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiters(tmp_path, delimiter):
    text = "item_id,title\n1,a\n2,b\n".replace(",", delimiter)
    assert csv_rows(tmp_path, text)[0] == [{"item_id": "1", "title": "a"}, {"item_id": "2", "title": "b"}]


@pytest.mark.parametrize("broken", ['2,"never closed,9', '2,"closed" twice",9', '2,"a"b,9', '"2,x,9'])
def test_an_open_quote_costs_one_row(tmp_path, broken):
    text = f"item_id,title,price\n1,a,1\n{broken}\n3,c,3\n4,d,4\n"
    rows, places, refused = csv_rows(tmp_path, text)
    assert [row["item_id"] for row in rows] == ["1", "3", "4"]
    assert places == [Place(1, 2), Place(3, 4), Place(4, 5)]
    assert [(r["row"], r["line"], r["reason"], r["value"]) for r in refused] == [(2, 3, "broken_quotes", broken)]


def test_two_open_quotes_do_not_make_one_record_of_the_rows_between(tmp_path):
    text = 'item_id,title,price\n1,"open,1\n2,b,2\n3,c",3\n4,d,4\n'
    rows, _, refused = csv_rows(tmp_path, text)
    assert [row["item_id"] for row in rows] == ["2", "3", "4"]
    assert [reject["reason"] for reject in refused] == ["broken_quotes"]


def test_a_text_whose_lines_have_as_many_commas_as_a_row(tmp_path):
    text = 'item_id,title,description\nA1,T,"first line\nred, blue, green"\nA2,T,"one, two, three\n4, five, six"\n'
    rows, _, refused = csv_rows(tmp_path, text)
    assert [row["description"] for row in rows] == ["first line\nred, blue, green", "one, two, three\n4, five, six"]
    assert refused == []


def test_an_open_quote_before_many_rows_and_at_the_end(tmp_path):
    many = "".join(f"{num},x,1\n" for num in range(2_000))
    rows, _, refused = csv_rows(tmp_path, f'item_id,title,price\na,"open,1\n{many}b,"open,2')
    assert len(rows) == 2_000
    assert [reject["row"] for reject in refused] == [1, 2_002]


def test_a_text_of_many_lines_is_one_row(tmp_path):
    text = "\n".join(["one, two", "", 'a ""quoted"" word', *["more"] * 300])
    rows, places, _ = csv_rows(tmp_path, f'title,item_id\n"{text}",1\nshort,2\n')
    assert rows[0]["title"].count("\n") == 302
    assert [row["item_id"] for row in rows] == ["1", "2"]
    assert places[1].line == 305


def test_a_quoted_text_longer_than_the_csv_module_reads_by_itself(tmp_path):
    rows, _, _ = csv_rows(tmp_path, f'item_id,title\n1,"{"x" * 200_000}"\n')
    assert len(rows[0]["title"]) == 200_000


def test_rows_with_too_many_or_too_few_fields(tmp_path):
    _, _, refused = csv_rows(tmp_path, "item_id,title\n1\n2,b,c\n")
    assert [reject["reason"] for reject in refused] == ["wrong_number_of_fields"] * 2
    assert refused[1]["message"] == "3 fields; the header has 2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n", "is empty"),
        ("name,title\n1,a\n", "no column 'item_id'"),
        ('item_id,"title\n1,a\n', "header"),
    ],
)
def test_csv_files_that_cannot_be_read_at_all(tmp_path, text, message):
    with pytest.raises(SourceError, match=message):
        csv_rows(tmp_path, text)


def test_a_latin_1_header(tmp_path):
    with pytest.raises(SourceError, match="not UTF-8"):
        read(write(tmp_path, "items.csv", "item_id,größe\n1,2\n".encode("latin-1")))


def test_more_rows_than_one_chunk(tmp_path):
    n_rows = CHUNK + 5
    for name, line in (("items.csv", "{}\n"), ("items.jsonl", '{{"item_id": "{}"}}\n')):
        text = ("item_id\n" if name.endswith("csv") else "") + "".join(line.format(num) for num in range(n_rows))
        rows, places, _ = read(write(tmp_path, name, text))
        assert [row["item_id"] for row in rows] == [str(num) for num in range(n_rows)]
        assert places[-1].row == n_rows


# --- Parquet ---


def test_parquet(tmp_path):
    frame = pl.DataFrame({"item_id": [1, 2], "price": [1.5, None], "other": ["a", "b"]})
    for name, pack in (("items.parquet", bytes), ("items.parquet.gz", gzip.compress)):
        rows, places, _ = read(write(tmp_path, name, pack(parquet(frame))))
        assert rows == [{"item_id": 1, "price": 1.5}, {"item_id": 2, "price": None}]
        assert places == [Place(1), Place(2)]


@pytest.mark.parametrize("content", [b"", b"PAR1 nothing more", b"item_id\n1\n"])
def test_what_is_no_parquet(tmp_path, content):
    with pytest.raises(SourceError, match="Parquet"):
        read(write(tmp_path, "items.parquet", content))


def test_damaged_parquet(tmp_path):
    content = bytearray(parquet(pl.DataFrame({"item_id": [str(num) for num in range(5_000)]})))
    content[10:2_000] = b"\xff" * 1_990
    with pytest.raises(SourceError, match=r"items\.parquet"):
        read(write(tmp_path, "items.parquet", bytes(content)))


def test_parquet_without_the_needed_column(tmp_path):
    with pytest.raises(SourceError, match="no column 'item_id'"):
        read(write(tmp_path, "items.parquet", parquet(pl.DataFrame({"id": [1]}))))


# --- mappings ---


def test_columns_constants_and_attributes(tmp_path):
    mapping = TableMapping.model_validate(
        {
            "columns": {"item_id": "sku", "title": "name", "price": None},
            "constants": {"title": "no name"},
            "attributes": [
                {"prefix": "t_", "type": "text"},
                {"prefix": "n_", "type": "number"},
                {"prefix": "b_", "type": "yes/no"},
                {"prefix": "x_"},
            ],
        }
    )
    text = "sku,name,price,t_cores,n_weight,b_touch,x_any,n_odd\n1,Phone,9,2,1.5,True,q,many\n2,,9,,,,,\n"
    rows, _, _ = read(write(tmp_path, "items.csv", text), mapping)
    attributes = {"cores": "2", "weight": 1.5, "touch": True, "any": "q", "odd": "many"}
    assert rows == [
        {"item_id": "1", "title": "Phone", "attributes": attributes},
        {"item_id": "2", "title": "no name", "attributes": {}},
    ]


def test_a_mapping_with_a_field_that_does_not_exist(tmp_path):
    mapping = TableMapping(columns={"item_id": "item_id", "colour": "farbe"})
    with pytest.raises(SourceError, match=r"'colour' is no field.*item_id, title"):
        read(write(tmp_path, "items.csv", "item_id,farbe\n1,rot\n"), mapping)


def test_items_described_by_events(tmp_path):
    rejects = Rejects(lambda: Path("unused"))
    file = SourceFile(
        write(tmp_path, "sales.csv", "who,what\nu,tent\n"), "csv", TableMapping(columns={"item_id": "what"})
    )
    items = TableMapping(columns={"item_id": "what", "title": "what"})
    (chunk,) = read_rows(
        file, ("item_id",), ("item_id",), rejects, lambda _: None, items=items, item_fields=("item_id", "title")
    )
    assert (chunk.rows, chunk.items) == ([{"item_id": "tent"}], [{"item_id": "tent", "title": "tent"}])


# --- what nothing reads ---


@pytest.mark.parametrize("name", ["items.csv", "items.jsonl", "items.parquet"])
def test_columns_that_nothing_reads_are_named(tmp_path, name):
    frame = pl.DataFrame({"item_id": ["1"], "tilte": ["x"], "zzz": ["y"], "price": [2]})
    pack = {"items.csv": frame.write_csv, "items.jsonl": frame.write_ndjson, "items.parquet": lambda: parquet(frame)}
    path = write(tmp_path, name, pack[name]())
    rejects = Rejects(lambda: tmp_path / "rejects.jsonl")
    file = SourceFile(path, name.partition(".")[2])
    rows = [row for chunk in read_rows(file, ("item_id",), FIELDS, rejects, lambda _: None) for row in chunk.rows]
    assert len(rows) == 1
    assert rejects.ignored_columns == {name: {"tilte": "title", "zzz": None}}


def test_a_field_of_a_single_line_is_seen_and_a_file_without_surplus_is_not_named(tmp_path):
    lines = "".join(f'{{"item_id": "{num}"}}\n' for num in range(CHUNK)) + '{"item_id": "x", "pirce": 1}\n'
    rejects = Rejects(lambda: tmp_path / "rejects.jsonl")
    for name, text in (("a.jsonl", lines), ("b.jsonl", '{"item_id": "1"}\n')):
        file = SourceFile(write(tmp_path, name, text), "jsonl")
        list(read_rows(file, ("item_id",), FIELDS, rejects, lambda _: None))
    assert rejects.ignored_columns == {"a.jsonl": {"pirce": "price"}}


def test_what_a_mapping_reads_or_drops_is_not_named(tmp_path):
    mapping = TableMapping.model_validate(
        {"columns": {"item_id": "sku", "title": "name", "price": None}, "attributes": [{"prefix": "t_"}]}
    )
    rejects = Rejects(lambda: tmp_path / "rejects.jsonl")
    text = "sku,name,price,t_cores,title,stock\n1,Phone,9,2,unread,4\n"
    file = SourceFile(write(tmp_path, "items.csv", text), "csv", mapping)
    list(read_rows(file, ("item_id",), FIELDS, rejects, lambda _: None))
    assert set(rejects.ignored_columns["items.csv"]) == {"title", "stock"}


def test_columns_that_describe_items_of_events_are_not_named(tmp_path):
    rejects = Rejects(lambda: tmp_path / "rejects.jsonl")
    file = SourceFile(write(tmp_path, "sales.csv", "item_id,name,till\n1,tent,3\n"), "csv")
    items = TableMapping(columns={"title": "name"})
    list(read_rows(file, ("item_id",), ("item_id",), rejects, lambda _: None, items=items, item_fields=FIELDS))
    assert rejects.ignored_columns == {"sales.csv": {"till": None}}
