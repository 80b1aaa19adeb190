"""Readers of labellers' files: any format in, records out, nothing lost on the way.

A file is found (files), taken apart into rows (carriers: tables, json_lines, json_arrays,
parquet_rows, text_blocks), and each row becomes its records (a module for each format, label_tables
for everyone's own) or a reject with its reason. FORMATS names the formats; import_data does it all.
"""

from preference_data.sources.columns.mapping import Columns, Verdict
from preference_data.sources.finishing import PersonalData
from preference_data.sources.formats import FORMATS, Format, Kind, sniff
from preference_data.sources.importing import ImportReport, import_data, read_preferences

__all__ = [
    "FORMATS",
    "Columns",
    "Format",
    "ImportReport",
    "Kind",
    "PersonalData",
    "Verdict",
    "import_data",
    "read_preferences",
    "sniff",
]
