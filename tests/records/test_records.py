"""Records: what is written can be read back, and an environment leaves out nothing that counts."""

import math
import os
import platform
from pathlib import Path

import pytest
import torch

from roundoff.errors import UnsupportedError, UsageError
from roundoff.kernels import settings
from roundoff.records import Cell, Environment, Measurement, SubjectName, Verdict, environment
from roundoff.store.json import dumps, loads
from roundoff.store.lines import check_record

CELLS = [
    Cell("attention", SubjectName("kernel", "torch-math"), SubjectName("recipe", "fa2"), "bf16",
         {"seq_len": 8, "scale": 0.5, "mask": "none", "tile": None}, 3),
    Cell("softmax", SubjectName("recipe", "x"), SubjectName("kernel", "m.py:f", "bshd", 64),
         "fp64", {}, 0, "cuda:1", 4, "timing"),
    Cell("attention", SubjectName("kernel", "recipe.py:f", "bhsd"),
         SubjectName("kernel", "kernel:f"), "e4m3fn", {"n": 1}, 0),
]  # fmt: skip


def through_json(record):
    return loads(dumps(record))


@pytest.mark.parametrize("cell", CELLS, ids=lambda c: c.operator + c.format)
class TestRoundTrip:
    def test_cell(self, cell):
        assert Cell.from_record(through_json(cell.to_record())) == cell

    def test_measurement(self, cell):
        done = Measurement(
            id="0123", cell=cell, environment="4567", status="ok",
            outputs={"out": {"rmse": 0.5, "gain": -0.0}}, floor={"out": {"rmse": math.inf}},
            evidence={"out": {"lift": 1.0}}, condition={"logit_max": 3.0},
            probes={"rescales": 1.0}, timing={"ratio": 2.0}, ran=("a", "b c"), elapsed=1.5,
        )  # fmt: skip
        assert Measurement.from_record(through_json(done.to_record())) == done

    @pytest.mark.parametrize("status", ["failed", "skipped"])
    def test_a_measurement_that_was_not_made(self, cell, status):
        failed = Measurement(
            id="0123", cell=cell, environment="4567", status=status,
            error="KernelError: no [bold]luck[/x]",
        )  # fmt: skip
        record = check_record(failed.to_record())
        assert record["status"] == status
        assert Measurement.from_record(through_json(record)) == failed


def test_nan_is_not_lost():
    done = Measurement(
        id="0", cell=CELLS[0], environment="1", status="ok", outputs={"out": {"rmse": math.nan}}
    )
    assert math.isnan(
        Measurement.from_record(through_json(done.to_record())).outputs["out"]["rmse"]
    )


def test_verdict():
    verdict = Verdict("c1", "text", "2x", "holds only if", "1.9", "above 512", [{"n": 1}])
    assert Verdict.from_record(through_json(verdict.to_record())) == verdict


class TestSubjectName:
    @pytest.mark.parametrize(
        ("text", "kind", "name"),
        [
            ("fa2", "kernel", "fa2"),
            ("recipe:fa2", "recipe", "fa2"),
            ("kernel:m.py:f", "kernel", "m.py:f"),
            ("m:f", "kernel", "m:f"),
            ("recipe.py:f", "kernel", "recipe.py:f"),
        ],
    )
    def test_parse(self, text, kind, name):
        assert SubjectName.parse(text) == SubjectName(kind, name)

    def test_an_empty_name(self):
        with pytest.raises(UsageError, match="empty name"):
            SubjectName.parse("")


class TestEnvironment:
    def test_it_is_plain_data(self):
        here = Environment.here(threads=2)
        assert Environment.from_record(through_json(here.to_record())) == here
        assert here.threads == 2

    def test_host_and_memory_are_no_numerics(self, monkeypatch):
        before = Environment.here().numerics()
        monkeypatch.setattr(platform, "node", lambda: "elsewhere")
        monkeypatch.setattr(os, "sysconf", lambda name: 4096)
        assert Environment.here().host == "elsewhere"
        assert Environment.here().numerics() == before

    @pytest.mark.parametrize(
        "change",
        [
            lambda: torch.set_float32_matmul_precision("medium"),
            lambda: torch.set_flush_denormal(True),
            lambda: torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True),
            lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
        ],
    )
    def test_a_setting_is_part_of_the_numerics(self, change):
        before = Environment.here().numerics()
        with settings.kept():
            change()
            assert Environment.here().numerics() != before

    @pytest.mark.parametrize("name", ["MKL_CBWR", "ONEDNN_DEFAULT_FPMATH_MODE", "NUMBA_CPU_NAME"])
    def test_a_variable_is_part_of_the_numerics(self, name, monkeypatch):
        before = Environment.here().numerics()
        monkeypatch.setenv(name, "SOMETHING")
        assert Environment.here().numerics() != before

    def test_a_library_version_is_part_of_the_numerics(self, monkeypatch):
        before = Environment.here().numerics()
        versions = {**before["libraries"], "torch": "0.0.1"}
        monkeypatch.setattr(environment, "_versions", lambda: versions)
        assert Environment.here().numerics() != before

    def test_our_own_source_is_part_of_the_numerics(self, tmp_path, monkeypatch):
        for name in (*environment._NUMERIC_ROOMS, "store", "bench/plan.py"):
            file = tmp_path / name if name.endswith(".py") else tmp_path / name / "a.py"
            file.parent.mkdir(exist_ok=True)
            file.write_text("X = 1\n")
        monkeypatch.setattr(environment.roundoff, "__file__", str(tmp_path / "__init__.py"))

        def digest():
            return environment.source_of.__wrapped__(environment._NUMERIC_ROOMS)

        before = digest()
        for name in ("store/a.py", "bench/plan.py"):
            (tmp_path / name).write_text("X = 2\n")
            assert digest() == before
        for name in ("formats/a.py", "registry.py", "bench/measure.py"):
            (tmp_path / name).write_text("X = 2\n")
            assert digest() != before
            before = digest()

    def test_every_numeric_room_is_there(self):
        root = Path(environment.roundoff.__file__).parent
        assert all((root / room).exists() for room in environment._NUMERIC_ROOMS)

    def test_the_compiler_is_part_of_the_numerics(self, tmp_path, monkeypatch):
        before = Environment.here()
        compiler = tmp_path / "mine++"
        compiler.write_text("#!/bin/sh\necho mine++ 1.2\necho more\n")
        compiler.chmod(0o755)
        monkeypatch.setenv("CXX", str(compiler))
        assert Environment.here().libraries["c++"] == "mine++ 1.2"
        assert Environment.here().numerics() != before.numerics()

    @pytest.mark.parametrize("name", ["no-such-compiler", "false"])
    def test_no_compiler_is_no_error(self, name, monkeypatch):
        monkeypatch.setenv("CXX", name)
        assert "c++" not in Environment.here().libraries

    @pytest.mark.parametrize("device", ["cuda", "cuda:7"])
    def test_a_device_that_is_not_here(self, device, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(UnsupportedError, match=f"device '{device}' is not here"):
            Environment.here(device=device)
