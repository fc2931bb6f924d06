"""Which images belong to a data set: one index contract for every collection, and an indexer for each."""

from mammo_train.index.contract import IndexRow, check_leaks, read_index

__all__ = ["IndexRow", "check_leaks", "read_index"]
