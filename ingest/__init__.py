"""From a shop's files to the knowledge graph: reading, validating, cleaning, loading. ``load`` is the way in."""

from ingest.canonical import launches_file
from ingest.facts import GraphTables, item_facts
from ingest.generated import Taste, Tastes, generate_shop
from ingest.launch import launch_item, launched_item
from ingest.load import LoadReport, load
from ingest.rows import Event, Item, validate_item

__all__ = [
    "Event",
    "GraphTables",
    "Item",
    "LoadReport",
    "Taste",
    "Tastes",
    "generate_shop",
    "item_facts",
    "launch_item",
    "launched_item",
    "launches_file",
    "load",
    "validate_item",
]
