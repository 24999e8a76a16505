"""What flows between the layers: plain values with a schema version, and no behaviour."""

from roundoff.records.cell import Cell, SubjectName
from roundoff.records.environment import Environment
from roundoff.records.measurement import SCHEMA, Measurement
from roundoff.records.reading import Finding, Reading
from roundoff.records.spike import Spike
from roundoff.records.verdict import Verdict

__all__ = [
    "SCHEMA",
    "Cell",
    "Environment",
    "Finding",
    "Measurement",
    "Reading",
    "Spike",
    "SubjectName",
    "Verdict",
]
