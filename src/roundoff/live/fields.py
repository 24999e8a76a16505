"""What is wrong with the fields of a value that comes from a user, in one line."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from roundoff.errors import UnknownNameError

__all__ = ["what_is_wrong"]


def what_is_wrong(error: ValidationError, kind: type[BaseModel]) -> str:
    """All that pydantic refused in a value of `kind`, each with its field and what was given."""

    def one(found: Any) -> str:
        place = ".".join(map(str, found["loc"])) or kind.__name__.lower()
        if found["type"] == "extra_forbidden":
            return str(UnknownNameError("field", place, kind.model_fields))
        if found["type"] == "missing":
            return f"{place} is missing"
        return f"{place} is {found['input']!r}: {found['msg'].lower()}"

    return "; ".join(one(found) for found in error.errors())
