"""Each small run is made and reported on once for all tests."""

import pytest

from roundoff.report import write_report

from .runs import RUNS
from .trainings import TRAININGS


@pytest.fixture(scope="session")
def reported(tmp_path_factory):
    """name -> (run, paths of its report)."""
    root = tmp_path_factory.mktemp("reports")
    made = {}

    def get(name):
        if name not in made:
            run = (RUNS | TRAININGS)[name](root / name)
            made[name] = (run, write_report(run))
        return made[name]

    return get
