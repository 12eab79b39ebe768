"""Readers: a table of facts from a file, a data frame or a list, validated whole.

CSV, TSV, JSON and JSON Lines with our own columns, and CounterFact, zsRE, MQuAKE and KnowEdit as
they are published.
"""

from editcl.readers.read import KINDS, read_table
from editcl.readers.rows import FactRow, FactTable

__all__ = ["KINDS", "FactRow", "FactTable", "read_table"]
