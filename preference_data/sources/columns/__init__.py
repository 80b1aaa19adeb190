"""A table of labels in its owner's own columns: the mapping, and rows to judgements."""
