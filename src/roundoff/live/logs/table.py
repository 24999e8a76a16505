"""CSV, as Lightning's CSVLogger and pandas write it: an empty cell was not logged."""

from __future__ import annotations

import csv
from pathlib import Path

from roundoff.errors import UsageError
from roundoff.live.logs.series import Series, collected
from roundoff.store.disk import disk_errors

__all__ = ["read"]


def read(path: Path) -> list[Series]:
    """The series of the columns; commas, semicolons or tabs between cells."""
    with disk_errors("read", path), path.open(encoding="utf-8-sig", newline="") as file:
        head = file.readline()
        file.seek(0)
        between = max(",;\t", key=head.count)
        try:
            rows = csv.DictReader(file, delimiter=between)
            return collected({k: v for k, v in row.items() if k and v is not None} for row in rows)
        except (csv.Error, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: {error}; expected a table in CSV with a head") from None
