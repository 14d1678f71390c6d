"""RDF in: category hierarchies (SKOS, RDFS, OWL) and schema.org products, from Turtle, N-Triples and JSON-LD."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from kg.errors import SourceError

if TYPE_CHECKING:
    from rdflib import Graph
    from rdflib.term import Node

_FORMAT: Final = {"ttl": "turtle", "nt": "nt", "jsonld": "json-ld"}
_SCHEMA_ORG: Final = ("https://schema.org/", "http://schema.org/")
_TOP: Final = frozenset(
    {
        "http://www.w3.org/2002/07/owl#Thing",
        "http://www.w3.org/2002/07/owl#Class",
        "http://www.w3.org/2000/01/rdf-schema#Resource",
        "http://www.w3.org/2000/01/rdf-schema#Class",
    }
)
"""Classes above everything: as categories they would join everything with everything."""
_ATTRIBUTES: Final = (
    "color",
    "colour",
    "material",
    "pattern",
    "size",
    "model",
    "audience",
    "width",
    "height",
    "weight",
)


@dataclass(slots=True)
class Concept:
    """A category of a taxonomy. ``name`` is the preferred label, ``labels`` are all of them, in any language."""

    iri: str
    name: str
    labels: list[str] = field(default_factory=list)
    broader: list[str] = field(default_factory=list)


@dataclass(slots=True)
class RdfContent:
    """What a file says that a shop can use; other triples are not looked at. Everything in a fixed order.

    ``products`` have the keys of a shop folder's items, not yet validated.
    """

    concepts: list[Concept]
    products: list[dict[str, Any]]


def read_rdf(data: bytes, ending: str, *, where: str) -> RdfContent:
    """Read one RDF document.

    Categories are every ``skos:Concept``, every class (``rdfs:Class``, ``owl:Class``) and every end of
    ``skos:broader``, ``skos:narrower`` and ``rdfs:subClassOf``. The name is the preferred label (``skos:prefLabel``,
    else ``rdfs:label``) in English, else without a language, else of the first language; without any label it is the
    end of the IRI. Nothing is fetched: of remote JSON-LD contexts only schema.org's is known.

    Args:
        data: the file's bytes, UTF-8, with or without a byte-order mark.
        ending: ``ttl``, ``nt`` or ``jsonld``.
        where: the file's name for messages.

    Raises:
        SourceError: not UTF-8, not of that format, or a JSON-LD context that would have to be fetched.
    """
    from rdflib import Graph

    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{where!r} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    if not text.strip():
        raise SourceError(f"{where!r} is empty; expected {_FORMAT[ending]}, or no such file")
    if ending == "jsonld":
        text = _local_contexts(text, where)
    graph = Graph(bind_namespaces="none")
    # rdflib prints a traceback for each value that its datatype does not allow; the validation of rows reports them.
    log = logging.getLogger("rdflib.term")
    was_disabled, log.disabled = log.disabled, True
    try:
        graph.parse(data=text, format=_FORMAT[ending])
    except Exception as error:  # rdflib's parsers raise whatever they stumble over
        message = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(f"{where!r} is not valid {_FORMAT[ending]}: {message[:300]}") from error
    finally:
        log.disabled = was_disabled
    concepts = _concepts(graph)
    return RdfContent(concepts, _products(graph, {concept.iri: concept for concept in concepts}))


def _local_contexts(text: str, where: str) -> str:
    """JSON-LD whose schema.org context is replaced by a vocabulary of the same names, so that nothing is fetched."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where!r} is not valid JSON-LD: {error}") from error

    if not isinstance(document, dict | list):
        raise SourceError(f"{where!r} is not valid JSON-LD: it holds {type(document).__name__}, expected an object")

    def local(context: Any) -> Any:
        if isinstance(context, list):
            return [local(part) for part in context]
        if isinstance(context, str):
            if (
                context.rstrip("/").removeprefix("https://").removeprefix("http://").removeprefix("www.")
                != "schema.org"
            ):
                raise SourceError(
                    f"{where!r} needs the remote JSON-LD context {context[:200]!r}, and firstshelf fetches nothing; "
                    "put the context into the file"
                )
            return {"@vocab": _SCHEMA_ORG[0]}
        if isinstance(context, dict) and "@import" in context:
            return local(context["@import"])
        return walk(context)  # terms may have contexts of their own

    def walk(node: Any) -> Any:
        if isinstance(node, list):
            return [walk(part) for part in node]
        if isinstance(node, dict):
            return {key: local(value) if key == "@context" else walk(value) for key, value in node.items()}
        return node

    return json.dumps(walk(document))


def _concepts(graph: Graph) -> list[Concept]:
    from rdflib import URIRef
    from rdflib.namespace import OWL, RDF, RDFS, SKOS

    links: set[tuple[str, str]] = set()
    for narrower, broader in graph.subject_objects(SKOS.broader):
        links |= _link(narrower, broader)
    for broader, narrower in graph.subject_objects(SKOS.narrower):
        links |= _link(narrower, broader)
    for narrower, broader in graph.subject_objects(RDFS.subClassOf):
        links |= _link(narrower, broader)
    iris = {end for link in links for end in link}
    for kind in (SKOS.Concept, RDFS.Class, OWL.Class):
        iris |= {str(subject) for subject in graph.subjects(RDF.type, kind) if isinstance(subject, URIRef)}
    above: dict[str, list[str]] = {}
    for narrower_iri, broader_iri in sorted(links):
        above.setdefault(narrower_iri, []).append(broader_iri)
    return [_concept(graph, iri, above.get(iri, [])) for iri in sorted(iris - _TOP)]


def _link(narrower: Node, broader: Node) -> set[tuple[str, str]]:
    """The pair of IRIs; nothing for OWL restrictions and other blank nodes, nor for the classes above everything."""
    from rdflib import URIRef

    usable = isinstance(narrower, URIRef) and isinstance(broader, URIRef)
    return {(str(narrower), str(broader))} if usable and not {str(narrower), str(broader)} & _TOP else set()


def _concept(graph: Graph, iri: str, broader: list[str]) -> Concept:
    from rdflib import Literal, URIRef
    from rdflib.namespace import RDFS, SKOS

    ranked = []
    for rank, predicate in enumerate((SKOS.prefLabel, RDFS.label, SKOS.altLabel)):
        for label in graph.objects(URIRef(iri), predicate):
            text = " ".join(str(label).split())
            if isinstance(label, Literal) and text:
                language = (label.language or "").lower()
                order = 0 if language.partition("-")[0] == "en" else 1 if not language else 2
                ranked.append((rank, order, language, text))
    labels = list(dict.fromkeys(text for _, _, _, text in sorted(ranked)))
    return Concept(iri, labels[0] if labels else _local_name(iri), labels, broader)


def _local_name(iri: str) -> str:
    trimmed = iri.rstrip("/#")
    return trimmed[max(trimmed.rfind("/"), trimmed.rfind("#"), trimmed.rfind(":")) + 1 :] or iri


def _products(graph: Graph, concepts: dict[str, Concept]) -> list[dict[str, Any]]:
    from rdflib.namespace import RDF

    reader = _SchemaOrg(graph)
    subjects = {s for kind in reader.terms("Product") for s in graph.subjects(RDF.type, kind)}
    return [_product(reader, subject, concepts) for subject in sorted(subjects, key=reader.order)]


class _SchemaOrg:
    """Values of schema.org properties, whichever of its two spellings (http, https) a file takes."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def terms(self, name: str) -> list[Node]:
        from rdflib import URIRef

        return [URIRef(base + name) for base in _SCHEMA_ORG]

    def objects(self, subject: Node, *names: str) -> list[Node]:
        """Values of the first of the properties that has any, in a fixed order."""
        for name in names:
            values = [value for term in self.terms(name) for value in self.graph.objects(subject, term)]
            if values:
                return sorted(values, key=self.order)
        return []

    def order(self, node: Node) -> tuple[bool, str]:
        """Sorts English first, then by text; a blank node by what it says, for its own name changes at each parse."""
        from rdflib import BNode

        if not isinstance(node, BNode):
            return getattr(node, "language", None) != "en", str(node)
        said = sorted(f"{predicate} {_text(value)}" for predicate, value in self.graph.predicate_objects(node))
        return True, "\n".join(said)

    def first(self, subject: Node, *names: str) -> Any:
        """The first value as Python sees it: a number, a text or an IRI; of a node its ``name``, else its ``url``."""
        for value in self.objects(subject, *names):
            return self.plain(value)
        return None

    def plain(self, value: Node) -> Any:
        from rdflib import BNode, Literal

        if isinstance(value, Literal):
            number = value.value
            if isinstance(number, Decimal):
                return float(number)
            return number if isinstance(number, bool | int | float) else str(value)
        named = self.first(value, "name", "url", "value") if (value, None, None) in self.graph else None
        return named if named is not None else None if isinstance(value, BNode) else str(value)


def _text(node: Node) -> str:
    from rdflib import BNode

    return "" if isinstance(node, BNode) else str(node)


def _product(reader: _SchemaOrg, subject: Node, concepts: dict[str, Concept]) -> dict[str, Any]:
    from rdflib import URIRef

    iri = str(subject) if isinstance(subject, URIRef) else None
    row: dict[str, Any] = {
        "item_id": reader.first(subject, "sku", "productID", "gtin", "gtin13", "mpn", "identifier") or iri,
        "title": reader.first(subject, "name"),
        "description": reader.first(subject, "description"),
        "brand": reader.first(subject, "brand", "manufacturer"),
        "image": reader.first(subject, "image"),
        "available_from": reader.first(subject, "releaseDate"),
    }
    offers = reader.objects(subject, "offers")
    prices = [reader.first(offer, "price", "lowPrice") for offer in offers]
    row["price"] = next((price for price in prices if price is not None), None)
    if row["available_from"] is None:
        starts = [reader.first(offer, "availabilityStarts", "validFrom") for offer in offers]
        row["available_from"] = next((start for start in starts if start is not None), None)
    paths = [_category_path(reader, value, concepts) for value in reader.objects(subject, "category")]
    if paths:
        row["category_path"] = max(paths, key=len)
    attributes: dict[str, list[Any]] = {}
    for name in _ATTRIBUTES:
        for value in reader.objects(subject, name):
            attributes.setdefault(name, []).append(reader.plain(value))
    for pair in reader.objects(subject, "additionalProperty"):
        name, value = reader.first(pair, "name", "propertyID"), reader.first(pair, "value")
        if isinstance(name, str) and value is not None:
            attributes.setdefault(name, []).append(value)
    row["attributes"] = attributes
    return row


def _category_path(reader: _SchemaOrg, value: Node, concepts: dict[str, Concept]) -> list[str]:
    """Labels from the root: of a concept its own chain (the first parent a step), of a text its parts between ``>``."""
    if str(value) not in concepts:
        text = reader.plain(value)
        return _parts(text.split(">")) if isinstance(text, str) else []
    path: list[str] = []
    seen: set[str] = set()
    iri: str | None = str(value)
    while iri is not None and iri not in seen and iri in concepts:
        seen.add(iri)
        path.append(concepts[iri].name)
        iri = next(iter(concepts[iri].broader), None)
    return path[::-1]


def _parts(labels: Iterable[str]) -> list[str]:
    return [label.strip() for label in labels if label.strip()]
