"""Our own judgements, read again: judgements.jsonl, its Parquet shards, an aggregated.jsonl."""

from __future__ import annotations

from collections.abc import Mapping

from preference_data.quarantine import RowFault
from preference_data.records import Judgement
from preference_data.sources.carriers.rows import Row


def recognises(values: Mapping[str, object]) -> bool:
    """A judgement's ids and the version of its schema."""
    return {"schema_version", "judgement_id", "responses", "ranks"} <= values.keys()


def judgement(row: Row) -> Judgement:
    """The judgement as it was written, with the source it was first read from."""
    try:
        return Judgement.from_json(row.values)
    except KeyError as error:
        raise RowFault("key_missing", f"there is no {error.args[0]}.") from None
    except (TypeError, AttributeError) as error:
        raise RowFault("wrong_type", f"this is no judgement of ours: {error}.") from None
