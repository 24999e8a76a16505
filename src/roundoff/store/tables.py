"""Records as tables: flat columns with one type each, for pandas and for SQL.

The columns are typed here, in Python, because neither library can be trusted with
it: DuckDB makes text of a number column with one "nan", and NULL of a pandas NaN.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from roundoff.errors import RunError, UsageError
from roundoff.registry import require
from roundoff.store.json import dumps

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

__all__ = ["DROPPED_PREFIXES", "apart", "flatten", "frame", "sql"]

DROPPED_PREFIXES = ("cell.params.", "cell.", "outputs.")

_SQL_TYPES = {"bool": "BOOLEAN", "int": "BIGINT", "float": "DOUBLE", "text": "VARCHAR"}
_PANDAS_TYPES = {"bool": "boolean", "int": "Int64", "float": "float64", "text": "str"}


def flatten(
    record: Mapping[str, Any], *, drop: Sequence[str] = DROPPED_PREFIXES
) -> dict[str, object]:
    """A nested record as one level: its columns in a table.

    Nested keys are joined with a dot, the first of the prefixes `drop` that fits is
    left away, and dots that remain become underscores. Where two keys would get one
    name, each that was changed keeps its full dotted name instead. A list is one value;
    an empty mapping gives no column.

    >>> flatten({"id": "a1", "cell": {"params": {"seq_len": 512}},
    ...          "outputs": {"out": {"rmse": 0.5}}})
    {'id': 'a1', 'seq_len': 512, 'out_rmse': 0.5}
    """
    flat = dict(_leaves(record, ""))
    names = _column_names(flat, drop)
    return {names[key]: value for key, value in flat.items()}


def apart(
    records: Iterable[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """Records without their series, and the series as records of tables of their own.

    A series is a list of mappings. Those under one first key are one table of that name: a
    row an entry, with the `id` of its record and, as `part`, the rest of the path to it.

    >>> apart([{"id": "a1", "log": {"ulp": [{"step": 1}, {"step": 2}]}}])
    ([{'id': 'a1'}], {'log': [{'id': 'a1', 'part': 'ulp', 'step': 1},
                              {'id': 'a1', 'part': 'ulp', 'step': 2}]})
    """
    plain: list[dict[str, Any]] = []
    series: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        flat: dict[str, Any] = {}
        for path, value in _leaves(record, ""):
            name, _, part = path.partition(".")
            if entries := _entries(value):
                head = {"id": record.get("id"), "part": part}
                series.setdefault(name, []).extend({**head, **entry} for entry in entries)
            else:
                flat[path] = value
        plain.append(flat)
    return plain, series


def _entries(value: object) -> list[Mapping[str, Any]]:
    """The entries of a series; none of anything else."""
    held = cast("list[Any]", value) if isinstance(value, list) else []
    return held if all(isinstance(entry, Mapping) for entry in held) else []


def frame(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """The records as a DataFrame with one type a column; see `flatten` for the names."""
    pandas = require("pandas", extra="analysis", purpose="a table of a run")
    columns = {
        name: pandas.Series(values, dtype=_dtype(kind, values))
        for name, (kind, values) in _columns(records).items()
    }
    return pandas.DataFrame(columns)


def sql(
    query: str,
    named: Mapping[str, Iterable[Mapping[str, Any]]],
    *,
    parquet: Iterable[Path] = (),
) -> pd.DataFrame:
    """The answer to `query` over tables of records and Parquet files (named by their stem)."""
    require("pandas", extra="analysis", purpose="SQL over a run")
    duckdb = require("duckdb", extra="analysis", purpose="SQL over a run")
    with duckdb.connect() as connection:
        for name, records in named.items():
            _create_table(connection, name, _columns(records))
        for path in parquet:
            _create_view(connection, path, duckdb.Error)
        try:
            answer = connection.sql(query)
            if answer is not None:
                return answer.df()
        except duckdb.Error as error:
            raise UsageError(f"SQL: {' '.join(str(error).split())}") from None
        raise UsageError(f"SQL: {query!r} gives no table; expected a select")


def _create_table(connection: Any, name: str, columns: dict[str, tuple[str, list[Any]]]) -> None:
    """Fill a table by typed lists, which keep NaN apart from NULL."""
    if not columns:
        connection.execute(f"CREATE TABLE {_quoted(name)} (id VARCHAR)")
        return
    parts = (
        f"unnest(${i}::{_SQL_TYPES[kind]}[]) AS {_quoted(column)}"
        for i, (column, (kind, _)) in enumerate(columns.items(), start=1)
    )
    lists = [values for _, values in columns.values()]
    connection.execute(f"CREATE TABLE {_quoted(name)} AS SELECT {', '.join(parts)}", lists)


def _create_view(connection: Any, path: Path, error_type: type[Exception]) -> None:
    place = str(path).replace("'", "''")
    try:
        connection.execute(f"CREATE VIEW {_quoted(path.stem)} AS FROM read_parquet('{place}')")
    except error_type as error:
        raise RunError(f"cannot read {path}: {' '.join(str(error).split())}") from None


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _columns(records: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, list[Any]]]:
    """Column name -> (kind, values), None where a record has no value."""
    flat = [dict(_leaves(record, "")) for record in records]
    keys = dict.fromkeys(key for row in flat for key in row)
    names = _column_names(keys, DROPPED_PREFIXES)
    return {names[key]: _typed([row.get(key) for row in flat]) for key in keys}


def _typed(values: list[Any]) -> tuple[str, list[Any]]:
    """The one kind that holds all values; what no number type holds becomes text."""
    kinds = {_kind(value) for value in values if value is not None}
    if len(kinds) == 1 and (kind := kinds.pop()) != "json":
        return kind, values
    if kinds == {"int", "float"}:
        return "float", [None if v is None else float(v) for v in values]
    return "text", [v if v is None or isinstance(v, str) else dumps(v) for v in values]


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if -(2**63) <= value < 2**63 else "json"
    return "float" if isinstance(value, float) else "text" if isinstance(value, str) else "json"


def _dtype(kind: str, values: list[Any]) -> str:
    """Plain numpy types where nothing is missing, as users' code expects them."""
    if kind in ("int", "bool") and None not in values:
        return "int64" if kind == "int" else "bool"
    return _PANDAS_TYPES[kind]


def _leaves(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, object]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _leaves(cast("Mapping[str, Any]", item), f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def _column_names(keys: Iterable[str], drop: Sequence[str]) -> dict[str, str]:
    short = {key: _short(key, drop) for key in keys}
    uses = Counter(name.lower() for name in short.values())  # SQL ignores case
    return {k: n if uses[n.lower()] == 1 or n == k else k for k, n in short.items()}


def _short(key: str, drop: Sequence[str]) -> str:
    prefix = next((p for p in drop if key.startswith(p)), "")
    return key.removeprefix(prefix).replace(".", "_")
