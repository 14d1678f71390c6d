"""Implementations of ``kg.store.GraphStore``: memory (the meaning), embedded (the default) and Neo4j."""
