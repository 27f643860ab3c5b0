"""Lists of the past: the rows of a fleet, narrowed and cut into pages in memory exactly as SQL does for the present.

Must not know any noun: rows and their columns come from the read models.
"""

import re
from collections.abc import Mapping

from vmorch.core.fleet import Fleet
from vmorch.views.filters import Filters
from vmorch.views.rows import Row, ids_of, row_of
from vmorch.views.tables import TABLES, Model

_EQUAL = ("host", "state", "verb", "actor", "active", "started")


def rows_of(fleet: Fleet, model: Model, filters: Filters, after: str | None = None) -> list[Row]:
    """Every row that a model would hold of the fleet, as it is listed: VMs and the like by name, operations and
    drains newest first, from the one after `after`."""
    made = (row_of(fleet, model, id) for id in ids_of(fleet, model))
    found = [row for row in made if row is not None and _admits(model, filters, row)]
    if model in ("operations", "drains"):
        last = None if after is None else after.rpartition("/")[2]
        return sorted(
            (row for row in found if last is None or row["id"] < last), key=lambda row: str(row["id"]), reverse=True
        )
    name, _, id = ("", "", "") if after is None else after.rpartition("/")
    later = (row for row in found if after is None or (row["name"], row["id"]) > (name, id))
    return sorted(later, key=lambda row: (str(row["name"]), str(row["id"])))


def _admits(model: Model, filters: Filters, row: Row) -> bool:
    columns = TABLES[model].c
    for field in _EQUAL:
        wanted = getattr(filters, field)
        if wanted is not None and field in columns and row[field] != wanted:
            return False
    if filters.name is not None and "name" in columns and not _glob(filters.name).fullmatch(row["name"]):
        return False
    if filters.vm is not None and "vm" in columns and filters.vm not in (row["vm"], row["vm_name"]):
        return False
    return "labels" not in columns or _holds(row["labels"], filters.labels)


def _holds(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in wanted.items())


def _glob(pattern: str) -> re.Pattern[str]:
    parts = {"*": ".*", "?": "."}
    return re.compile("".join(parts.get(each) or re.escape(each) for each in pattern), re.DOTALL)
