"""Human preference data: labellers' files in, checked records out.

`read_preferences` reads a file of labels at once; `import_data` writes a data folder with every
row accounted for, which `read_judgements` and its like read back.
"""

from preference_data.quarantine import DataError, Rejected
from preference_data.records import (
    Comparison,
    Demonstration,
    Judgement,
    Message,
    Prompt,
    Response,
    Source,
)
from preference_data.sources import (
    FORMATS,
    Columns,
    ImportReport,
    import_data,
    read_preferences,
    sniff,
)
from preference_data.sources.store import (
    read_demonstrations,
    read_judgements,
    read_prompts,
    read_text,
)
from preference_data.splits import split, split_of

__all__ = [
    "FORMATS",
    "Columns",
    "Comparison",
    "DataError",
    "Demonstration",
    "ImportReport",
    "Judgement",
    "Message",
    "Prompt",
    "Rejected",
    "Response",
    "Source",
    "import_data",
    "read_demonstrations",
    "read_judgements",
    "read_preferences",
    "read_prompts",
    "read_text",
    "sniff",
    "split",
    "split_of",
]
