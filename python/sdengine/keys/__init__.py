"""Parameter names: a table per dialect, and the one engine that reads them both ways."""

from sdengine.keys.engine import KeyTable, MappedName, NameMap, Rule, count_at, nearest, numbers_at

__all__ = ["KeyTable", "MappedName", "NameMap", "Rule", "count_at", "nearest", "numbers_at"]
