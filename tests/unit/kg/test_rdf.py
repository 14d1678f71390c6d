import json

import pytest

from kg.errors import SourceError
from kg.rdf import Concept, read_rdf

PREFIXES = """
@prefix skos: <http://www.w3.org/2004/02/skos/core#> .
@prefix rdfs: <http://www.w3.org/2000/01/rdf-schema#> .
@prefix owl: <http://www.w3.org/2002/07/owl#> .
@prefix s: <https://schema.org/> .
@prefix t: <https://shop.example/> .
"""
T = "https://shop.example/"


def turtle(text):
    return read_rdf((PREFIXES + text).encode(), "ttl", where="shop.ttl")


def jsonld(document, prefix=b""):
    return read_rdf(prefix + json.dumps(document).encode(), "jsonld", where="shop.jsonld")


def test_skos():
    content = turtle(
        """t:coffee a skos:Concept ; skos:prefLabel "Kaffee"@de , "Coffee"@en ; skos:altLabel "Java" .
        t:coffee skos:broader t:food .
        t:food skos:prefLabel "Aliment" , "Food"@en-GB ; skos:narrower t:tea .
        t:tea a skos:Concept ; skos:prefLabel "茶"@zh , "Tee"@de ."""
    )
    assert content.concepts == [
        Concept(T + "coffee", "Coffee", ["Coffee", "Kaffee", "Java"], [T + "food"]),
        Concept(T + "food", "Food", ["Food", "Aliment"], []),
        Concept(T + "tea", "Tee", ["Tee", "茶"], [T + "food"]),
    ]
    assert content.products == []


def test_classes_and_what_is_above_everything():
    content = turtle(
        """t:Pen a owl:Class ; rdfs:label "Pen" ; rdfs:subClassOf t:Tool , owl:Thing , [ a owl:Restriction ] .
        t:Tool a rdfs:Class ; rdfs:subClassOf rdfs:Resource . owl:Thing a owl:Class .
        t:notAClass rdfs:label "left alone" ."""
    )
    assert content.concepts == [Concept(T + "Pen", "Pen", ["Pen"], [T + "Tool"]), Concept(T + "Tool", "Tool", [], [])]


def test_a_parent_that_is_only_mentioned_bears_the_end_of_its_iri():
    content = turtle("t:a skos:broader <https://other.example/tree#Home_Textiles/> .")
    assert [concept.name for concept in content.concepts] == ["Home_Textiles", "a"]


def test_a_schema_org_product():
    content = turtle(
        """t:desk a skos:Concept ; skos:prefLabel "Desk" .
        t:pens a skos:Concept ; skos:prefLabel "Pens" ; skos:broader t:desk .
        t:p1 a s:Product ; s:sku "P-1" ; s:name "Pen"@en , "Stift"@de ; s:description "Writes." ; s:category t:pens ;
            s:brand [ a s:Brand ; s:name "Eikon" ] ; s:image <https://shop.example/p1.jpg> ; s:color "black" , "red" ;
            s:offers [ s:price "12.50" ; s:availabilityStarts "2024-01-01" ] ; s:releaseDate "2024-02-03" ;
            s:additionalProperty [ s:name "nib" ; s:value 0.5 ] , [ s:name "refill" ; s:value true ] ."""
    )
    assert content.products == [
        {
            "item_id": "P-1",
            "title": "Pen",
            "description": "Writes.",
            "category_path": ["Desk", "Pens"],
            "brand": "Eikon",
            "image": "https://shop.example/p1.jpg",
            "price": "12.50",
            "available_from": "2024-02-03",
            "attributes": {"color": ["black", "red"], "nib": [0.5], "refill": [True]},
        }
    ]


def test_values_that_their_datatype_does_not_allow_are_left_to_validation(caplog):
    xsd = "@prefix xsd: <http://www.w3.org/2001/XMLSchema#> ."
    (product,) = turtle(
        xsd + """t:p a s:Product ; s:releaseDate "2024-13-45"^^xsd:date ; s:offers [ s:price "abc"^^xsd:decimal ] ."""
    ).products
    assert (product["available_from"], product["price"]) == ("2024-13-45", "abc")
    assert not caplog.records


def test_blank_nodes_come_in_an_order_of_their_own():
    text = "t:p a s:Product ; s:additionalProperty %s ."
    pairs = [f'[ s:name "colour" ; s:value "{colour}" ]' for colour in ("red", "blue", "green", "black", "white")]
    found = {str(turtle(text % " , ".join(order)).products) for order in (pairs, pairs[::-1], pairs) for _ in range(3)}
    assert len(found) == 1


def test_products_in_other_shapes():
    content = turtle(
        """<http://shop.example/p2> a <http://schema.org/Product> ; <http://schema.org/category> "Home > Light" ;
            <http://schema.org/brand> "Lumi" .
        [] a s:Product ; s:name "no id" ."""
    )
    by_title = {product["title"]: product for product in content.products}
    assert by_title[None]["item_id"] == "http://shop.example/p2"
    assert by_title[None]["category_path"] == ["Home", "Light"]
    assert by_title[None]["brand"] == "Lumi"
    assert by_title["no id"]["item_id"] is None


@pytest.mark.parametrize("context", ["https://schema.org", "http://schema.org/", ["https://schema.org", {"x": "t:"}]])
def test_json_ld_with_schema_orgs_context_and_a_byte_order_mark(context):
    document = {"@context": context, "@type": "Product", "sku": "1", "name": "Lamp", "brand": {"name": "Lumi"}}
    (product,) = jsonld(document, prefix=b"\xef\xbb\xbf").products
    assert (product["item_id"], product["title"], product["brand"]) == ("1", "Lamp", "Lumi")


def test_json_ld_with_its_own_context():
    document = {
        "@context": {
            "skos": "http://www.w3.org/2004/02/skos/core#",
            "broader": {"@id": "skos:broader", "@type": "@id"},
        },
        "@graph": [{"@id": "t:a", "@type": "skos:Concept", "skos:prefLabel": "A", "broader": "t:b"}],
    }
    assert jsonld(document).concepts == [Concept("t:a", "A", ["A"], ["t:b"]), Concept("t:b", "b", [], [])]


@pytest.mark.parametrize("place", ["top", "inside", "term", "import"])
def test_nothing_is_fetched(place):
    remote = "https://example.org/context.jsonld"
    document = {
        "top": {"@context": remote},
        "inside": {"@graph": [{"@context": [remote]}]},
        "term": {"@context": {"x": {"@id": "t:x", "@context": remote}}, "x": 1},
        "import": {"@context": {"@import": remote}},
    }[place]
    with pytest.raises(SourceError, match=r"remote JSON-LD context.*example\.org"):
        jsonld(document)


def test_n_triples():
    line = f'<{T}a> <http://www.w3.org/2004/02/skos/core#prefLabel> "\\u8336" .\n'
    line += f"<{T}a> <http://www.w3.org/2004/02/skos/core#broader> <{T}b> .\n"
    content = read_rdf(line.encode(), "nt", where="shop.nt")
    assert [(concept.name, concept.broader) for concept in content.concepts] == [("茶", [T + "b"]), ("b", [])]


@pytest.mark.parametrize(
    ("data", "ending", "message"),
    [
        (b"t:a t:b", "ttl", "not valid turtle"),
        (b"<a> <b>", "nt", "not valid nt"),
        (b"{broken", "jsonld", "not valid JSON-LD"),
        (b"[" * 100_000, "jsonld", "not valid JSON-LD"),
        (b"5", "jsonld", "not valid JSON-LD: it holds int"),
        ("größe".encode("latin-1"), "ttl", "not UTF-8"),
        (b" \n", "ttl", "is empty"),
    ],
)
def test_what_cannot_be_read_is_one_clear_error(data, ending, message):
    with pytest.raises(SourceError, match=f"'shop.rdf'.*{message}"):
        read_rdf(data, ending, where="shop.rdf")


def test_the_same_triples_in_another_order_give_the_same():
    lines = [
        f"t:c{num} a skos:Concept ; skos:broader t:c{num // 2} ; skos:prefLabel 'c{num}' ." for num in range(1, 30)
    ]
    assert turtle("\n".join(lines)) == turtle("\n".join(reversed(lines)))
