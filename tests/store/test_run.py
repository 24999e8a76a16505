"""A run directory: made, refused, written, read, asked."""

import json
import math
import os
import stat
from pathlib import Path

import pytest

from roundoff.errors import RunError, UsageError
from roundoff.store import Run


def line(key, *, status="ok", **more):
    return {"schema": 1, "id": key, "status": status, **more}


@pytest.fixture
def run(tmp_path):
    return Run.create_or_open(tmp_path / "run", manifest={"study": "tiny"})


def append(run, *records):
    with run.writer() as writer:
        for record in records:
            writer.append(record)


def snapshot(folder: Path):
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


class TestOpening:
    def test_a_new_run_has_its_manifest(self, run):
        manifest = json.loads((run.path / "manifest.json").read_text())
        assert manifest["study"] == "tiny"
        assert manifest["schema"] == 1
        assert Run.open(run.path).manifest == manifest

    def test_an_existing_run_keeps_its_manifest(self, run):
        again = Run.create_or_open(run.path, manifest={"study": "other"})
        assert again.manifest == run.manifest

    def test_opening_touches_nothing(self, run):
        before = snapshot(run.path)
        Run.open(run.path).sql("select count(*) from cells")
        assert snapshot(run.path) == before

    @pytest.mark.parametrize("make", ["missing", "empty", "foreign manifest", "file"])
    def test_what_is_no_run_is_refused(self, tmp_path, make):
        path = tmp_path / "x"
        if make == "file":
            path.write_text("")
        elif make != "missing":
            path.mkdir()
        if make == "foreign manifest":
            (path / "manifest.json").write_text('{"name": "a web app"}')
        with pytest.raises(RunError, match="is no run"):
            Run.open(path)

    @pytest.mark.parametrize("name", ["notes.txt", "manifest.json", ".git"])
    def test_a_folder_of_something_else_is_left_alone(self, tmp_path, name):
        (tmp_path / name).write_text("{}")
        before = snapshot(tmp_path)
        with pytest.raises(RunError, match="is no run"):
            Run.create_or_open(tmp_path, manifest={})
        assert snapshot(tmp_path) == before

    def test_a_file_in_the_way(self, tmp_path):
        (tmp_path / "x").write_text("")
        with pytest.raises(RunError, match="found a file"):
            Run.create_or_open(tmp_path / "x", manifest={})
        with pytest.raises(RunError, match="cannot create"):
            Run.create_or_open(tmp_path / "x" / "y", manifest={})

    def test_a_newer_manifest_is_refused(self, run):
        manifest = {**run.manifest, "schema": 2}
        (run.path / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(RunError, match=r"schema 2.*upgrade"):
            Run.open(run.path)

    def test_a_damaged_manifest_is_refused(self, run):
        (run.path / "manifest.json").write_text('{"kind": ')
        with pytest.raises(RunError, match="damaged"):
            Run.open(run.path)

    def test_a_run_opened_for_reading_is_not_written(self, run):
        reader = Run.open(run.path)
        with pytest.raises(RunError, match="opened for reading"):
            reader.writer()
        with pytest.raises(RunError, match="opened for reading"):
            reader.write_document("claims.json", {})

    def test_a_read_only_folder(self, tmp_path, monkeypatch):
        # The tests may run as root, whom no permission stops: refuse at the system call.
        folder = tmp_path / "run"
        folder.mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
        real = os.open

        def refuse(path, flags, *args, **kwargs):
            if flags & (os.O_WRONLY | os.O_RDWR):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, flags, *args, **kwargs)

        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(RunError, match=r"cannot lock .*: Permission denied") as caught:
            Run.create_or_open(folder, manifest={})
        assert "\n" not in str(caught.value)


class TestReading:
    def test_what_is_written_is_read(self, run):
        record = line("a", outputs={"out": {"rmse": math.inf, "bias": -0.0}}, note="é\u2028")
        append(run, record)
        assert Run.open(run.path).rows() == [record]

    def test_refresh_reads_only_what_is_new(self, run):
        reader = Run.open(run.path)
        with run.writer() as writer:
            assert reader.refresh() == 0
            writer.append(line("a"))
            assert reader.refresh() == 1
            writer.append(line("b"))
            writer.append(line("c"))
            assert reader.refresh() == 2
            assert reader.refresh() == 0
        assert reader.finished_ids() == {"a", "b", "c"}

    def test_a_damaged_line_costs_only_itself(self, run):
        lines = [json.dumps(line("a")), "{]", json.dumps({"id": "b"}), "[1]", json.dumps(line("c"))]
        lines += ['{"schema": 1, "id": "d", "status": "ok", "rmse": NaN}', "\udcff", ""]
        text = "\n".join(lines).encode("utf-8", "surrogateescape")
        (run.path / "cells-x.jsonl").write_bytes(text)
        assert list(run.read()) == ["a", "c"]
        places = [problem.split(": ")[0] for problem in run.problems]
        assert places == [f"cells-x.jsonl:{n}" for n in (2, 3, 4, 6, 7)]
        assert "status" in run.problems[1]

    def test_a_deep_line_is_damage_not_a_crash(self, run):
        (run.path / "cells-x.jsonl").write_text("[" * 100_000 + "\n")
        assert run.problems[0].startswith("cells-x.jsonl:1: ")

    @pytest.mark.parametrize("cut", range(1, len(json.dumps(line("b"))) + 2))
    def test_a_half_written_last_line_is_not_there_yet(self, run, cut):
        whole = (json.dumps(line("a")) + "\n" + json.dumps(line("b")) + "\n").encode()
        file = run.path / "cells-x.jsonl"
        file.write_bytes(whole[:-cut])
        assert set(run.read()) == ({"a", "b"} if cut == 1 else {"a"})
        file.write_bytes(whole + b"{]\n")
        assert set(run.read()) == {"a", "b"}
        assert run.problems[0].startswith("cells-x.jsonl:3: ")

    def test_the_first_ok_line_counts(self, run):
        for name, record in {
            "1": line("a", status="failed", n=1),
            "2": line("a", n=2),
            "3": line("a", n=3),
        }.items():
            (run.path / f"cells-{name}.jsonl").write_text(json.dumps(record) + "\n")
        assert [row["n"] for row in run.rows()] == [2]
        (run.path / "cells-0.jsonl").write_text(json.dumps(line("a", n=0)) + "\n")
        assert [row["n"] for row in run.rows()] == [row["n"] for row in Run.open(run.path).rows()]

    def test_of_writers_the_one_that_was_begun_first_counts(self, run):
        """Whatever the random ends of their names are."""
        for cell in "abcdef":
            for n in (1, 2):
                append(run, line(cell, n=n))
        assert [row["n"] for row in run.rows()] == [1] * 6

    def test_a_failed_cell_is_not_finished(self, run):
        append(run, line("a", status="failed"), line("b"))
        assert run.finished_ids() == {"b"}

    def test_a_file_that_was_cut_is_read_again(self, run):
        append(run, line("a"), line("b"))
        assert len(run.read()) == 2
        (file,) = run.path.glob("cells-*.jsonl")
        file.write_text(json.dumps(line("c")) + "\n")
        assert list(run.read()) == ["c"]

    def test_a_newer_line_is_refused(self, run):
        (run.path / "cells-x.jsonl").write_text(json.dumps({**line("a"), "schema": 2}) + "\n")
        with pytest.raises(RunError, match=r"cells-x.jsonl:1 has schema 2.*upgrade"):
            run.read()


class TestDocuments:
    def test_round_trip(self, run):
        run.write_document("environments/ab.json", {"schema": 1, "torch": "2.13.0"})
        run.write_document("environments/ab.json", {"schema": 1, "torch": "2.14.0"})
        assert run.documents("environments") == {"ab": {"schema": 1, "torch": "2.14.0"}}
        assert [p.name for p in (run.path / "environments").iterdir()] == ["ab.json"]

    @pytest.mark.parametrize("name", ["../x.json", "/x.json", "claims", "", "a/.x.json"])
    def test_names_outside_the_run_are_refused(self, run, name):
        with pytest.raises(UsageError, match="is no document"):
            run.write_document(name, {})

    def test_missing(self, run):
        with pytest.raises(RunError, match=r"cannot read .*claims.json: No such file"):
            run.read_document("claims.json")

    def test_a_failed_write_keeps_the_old_document(self, run, monkeypatch):
        run.write_document("claims.json", {"claims": []})

        def full(fd):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match="No space left on device"):
            run.write_document("claims.json", {"claims": [{"name": "x"}]})
        assert run.read_document("claims.json") == {"claims": []}
        assert not list(run.path.glob("*.tmp"))
