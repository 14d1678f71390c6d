"""A shop small enough to know every path by hand.

u1 ─▶ glue, drill          u2 ─▶ glue, tape

glue   Gorilla   Tools > Adhesives
drill  Bosch     Tools > Drills
tape             Tools > Tapes       colour=black     glue ─BOUGHT_WITH▶ tape (lift 4)
saw    Bosch     Tools > Saws                         (new)
epoxy  Gorilla   Tools > Adhesives                    (new) epoxy ─SIMILAR_TO▶ tape (.8)
cable                                colour=black     (new)
stone                                                 (new, nothing known)
"""

from __future__ import annotations

import polars as pl

from kg import schema
from kg.store import GraphStore


def write_shop(store: GraphStore) -> None:
    def nodes(label: str, names: dict[str, str]) -> None:
        store.write_nodes(label, pl.DataFrame({"key": list(names), "name": list(names.values())}))

    def edges(relation: schema.Relation, source: str, pairs: list[tuple[str, str]], **columns: pl.Expr) -> None:
        frame = pl.DataFrame(pairs, schema=["head", "tail"], orient="row")
        store.write_edges(relation, frame.with_columns(pl.lit(source).alias("source"), **columns))

    nodes(schema.CATEGORY, {"Tools": "Tools", **{f"Tools > {x}": x for x in ("Adhesives", "Drills", "Tapes", "Saws")}})
    nodes(schema.BRAND, {"gorilla": "Gorilla", "bosch": "Bosch"})
    nodes(schema.ATTRIBUTE, {"colour=black": "colour black"})
    titles = {"glue": "Super Glue", "drill": "Power Drill", "tape": "Black Tape", "saw": "Hand Saw"}
    nodes(schema.PRODUCT, {**titles, "epoxy": "Epoxy", "cable": "Cable", "stone": "Stone"})
    store.write_nodes(schema.CUSTOMER, pl.DataFrame({"key": ["u1", "u2", "u3"]}))
    children = [(f"Tools > {name}", "Tools") for name in ("Adhesives", "Drills", "Tapes", "Saws")]
    edges(schema.SUBCATEGORY_OF, "catalogue", children)
    places = {"glue": "Adhesives", "drill": "Drills", "tape": "Tapes", "saw": "Saws", "epoxy": "Adhesives"}
    edges(schema.IN_CATEGORY, "catalogue", [(item, f"Tools > {name}") for item, name in places.items()])
    makers = [("glue", "gorilla"), ("epoxy", "gorilla"), ("drill", "bosch"), ("saw", "bosch")]
    edges(schema.MADE_BY, "catalogue", makers)
    edges(schema.HAS_ATTRIBUTE, "catalogue", [("tape", "colour=black"), ("cable", "colour=black")])
    bought = [("u1", "glue", 0), ("u1", "drill", 1), ("u2", "glue", 0), ("u2", "tape", 1)]
    frame = pl.DataFrame(bought, schema=["head", "tail", "position"], orient="row")
    store.write_edges(schema.INTERACTED, frame.with_columns(source=pl.lit("behaviour"), weight=pl.lit(1.0)))
    edges(schema.BOUGHT_WITH, "behaviour", [("glue", "tape")], lift=pl.lit(4.0), support=pl.lit(2))
    edges(schema.SIMILAR_TO, "text", [("epoxy", "tape")], score=pl.lit(0.8))
    store.set_mark("tiny")
