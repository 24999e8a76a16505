"""Help is instant: it loads no library."""

import subprocess
import sys

import pytest

import roundoff
from roundoff.cli import main

LIBRARIES = {"torch", "numpy", "pandas", "numba", "duckdb", "altair", "pydantic", "mpmath"}


def test_help_loads_no_library():
    code = f"""
import sys
from roundoff.cli import main
try:
    main(["--help"])
except SystemExit as ended:
    assert ended.code == 0
print(sorted({LIBRARIES} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "bench" in done.stdout
    assert done.stderr.strip() == "[]"


def test_the_help_of_bench(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--help"])
    assert ended.value.code == 0
    out, err = capsys.readouterr()
    for option in ("--kernel", "--recipe", "--format", "--shard", "--json", "--dry-run"):
        assert option in out
    assert not err


def test_the_package_is_the_command_too():
    command = [sys.executable, "-m", "roundoff", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == roundoff.__version__
