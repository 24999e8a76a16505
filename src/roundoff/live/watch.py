"""What is watched, and when: values that come from Python or from a TOML file."""

from __future__ import annotations

import difflib
import fnmatch
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from roundoff.errors import UnknownNameError, UsageError
from roundoff.formats import get_format
from roundoff.live.fields import what_is_wrong
from roundoff.metrics.probes import FORMAT_PROBES, PROBES, tensor_probe
from roundoff.operators.attention.observed import ROW_PROBES

__all__ = ["DEFAULT", "EVERY", "LIMIT", "Of", "Watch", "load_watches"]

Of = Literal["parameters", "gradients", "updates", "moments", "activations", "attention"]

EVERY = 100
"""Steps from one sampled step to the next, unless it is said otherwise."""

LIMIT = 4.0
"""How often the recipe's error a head may have, unless it is said otherwise."""

_USUAL = ("norm", "amax")

OF_ATTENTION = {"rows", "layers", "limit"}
"""Fields that only a watch of attention has."""


class Watch(BaseModel):
    """One thing to watch: tensors of a kind, whose names fit a pattern, by some probes.

    `of` is the kind; `names` a pattern (`*`, `?`, `[...]`) of parameters, or of modules for
    activations and attention; `probes` by name (empty: the usual ones of the kind). `format` is
    the one that `underflow` and `overflow` ask about, whether or not it is in use. Sampled are the
    steps `start`, `start + every`, ... before `stop`; a step is numbered from 0 on. `rows`,
    `layers` and `limit` are of attention: query rows of one sequence, layers at each sampled
    step (they take turns), and the ratio to the recipe's error beyond which a head is found.

    Errors: `UsageError` with all that is wrong, in one line; `UnknownNameError` for a probe or
    a format.

    >>> Watch(of="gradients", names="layers.*", probes=("overflow",), format="e4m3fn").every
    100
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    of: Of
    names: str = "*"
    probes: tuple[str, ...] = ()
    format: str | None = None
    every: int = Field(EVERY, ge=1, strict=True)
    start: int = Field(0, ge=0, strict=True)
    stop: int | None = Field(None, strict=True)
    rows: int = Field(16, ge=1, strict=True)
    layers: int = Field(1, ge=1, strict=True)
    limit: float = Field(LIMIT, gt=1)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise UsageError(f"watch: {what_is_wrong(error, type(self))}") from None

    @field_validator("probes", mode="before")
    @classmethod
    def _several(cls, probes: Any) -> Any:
        return (probes,) if isinstance(probes, str) else probes

    @model_validator(mode="after")
    def _known(self) -> Watch:
        if self.stop is not None and self.stop <= self.start:
            raise UsageError(
                f"watch of {self.of}: stop is {self.stop} and start {self.start}, which leaves no "
                "step; expected a stop behind start"
            )
        known = ROW_PROBES if self.of == "attention" else {**PROBES, **FORMAT_PROBES}
        if self.format is not None:
            get_format(self.format)
        alien = ({"format"} if self.of == "attention" else OF_ATTENTION) & self.model_fields_set
        if alien:
            name = sorted(alien)[0]
            raise UsageError(f"watch of {self.of}: it has no {name!r}, which is of other kinds")
        for name in self.probes:
            if name not in known:
                raise UnknownNameError(f"probe of {self.of}", name, known)
            if self.of != "attention":
                tensor_probe(name, self.format)
        return self

    @property
    def measured(self) -> tuple[str, ...]:
        """The probes, by name; the usual ones where none were asked for."""
        return self.probes or (tuple(ROW_PROBES) if self.of == "attention" else _USUAL)

    @property
    def called(self) -> str:
        """The kind, and the pattern where there is one.

        >>> Watch(of="gradients").called, Watch(of="gradients", names="layers.*").called
        ('gradients', "gradients of 'layers.*'")
        """
        return self.of if self.names == "*" else f"{self.of} of {self.names!r}"

    def samples(self, step: int) -> bool:
        """Whether this step is sampled."""
        within = step >= self.start and (self.stop is None or step < self.stop)
        return within and (step - self.start) % self.every == 0

    def fits(self, name: str) -> bool:
        """Whether the pattern fits a name."""
        return fnmatch.fnmatchcase(name, self.names)

    def chosen(self, names: Iterable[str]) -> list[str]:
        """Of `names` those that fit; `UsageError` where none does, with some that there are."""
        every = [*names]
        found = [name for name in every if self.fits(name)]
        if not found:
            kind = "modules" if self.of in ("activations", "attention") else "parameters"
            near = difflib.get_close_matches(self.names, every, n=3, cutoff=0.4)
            some = ", ".join(near or every[:3]) or "nothing"
            raise UsageError(
                f"watch of {self.of}: no {kind} fit the pattern {self.names!r}; "
                f"there are {len(every)}, such as {some}"
            )
        return found


DEFAULT: tuple[Watch, ...] = (
    Watch(of="gradients"),
    Watch(of="parameters"),
    Watch(of="activations", probes=("amax",)),
    Watch(of="attention"),
)
"""What a monitor watches unless it is told otherwise."""


def load_watches(path: str | Path) -> list[Watch]:
    """The watches of a TOML file: tables `[[watch]]`, with the fields of `Watch`.

    `every`, `start` and `stop` at the top of the file stand for all that do not say their own.
    `UsageError` names the file and all that is wrong in it.
    """
    try:
        document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        what = getattr(error, "strerror", None) or error
        raise UsageError(f"{path}: {what}; expected a TOML file with [[watch]] tables") from None
    shared = {name: document.pop(name) for name in ("every", "start", "stop") if name in document}
    tables: Any = document.pop("watch", None)
    if document or not isinstance(tables, list) or not tables:
        more = f"unknown {', '.join(map(repr, document))}; " if document else ""
        raise UsageError(f"{path}: {more}expected every, start, stop and [[watch]] tables")
    rows = cast("list[Any]", tables)
    return [_from_table(path, number, shared, row) for number, row in enumerate(rows, 1)]


def _from_table(path: str | Path, number: int, shared: dict[str, Any], row: Any) -> Watch:
    if not isinstance(row, dict):
        raise UsageError(f"{path}: watch {number} is no table; expected [[watch]]")
    try:
        return Watch(**{**shared, **row})
    except UsageError as error:
        raise UsageError(f"{path}, [[watch]] {number}: {error}") from None
