"""Writers in one process: claims, leases, and a disk that fails."""

import errno
import os
import resource
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from roundoff.errors import RunError, UsageError
from roundoff.store import Run
from roundoff.store.disk import AppendFile


def line(key, *, status="ok", **more):
    return {"schema": 1, "id": key, "status": status, **more}


@pytest.fixture
def run(tmp_path):
    return Run.create_or_open(tmp_path / "run", manifest={})


def leases(run):
    return [p.name for p in (run.path / "leases").iterdir()]


class TestClaims:
    def test_what_is_in_hand_is_not_handed_out_again(self, run):
        with run.writer() as one, run.writer() as two:
            assert one.claim(["a", "b", "a"]) == ["a", "b"]
            assert two.claim(["c", "b"]) == ["c"]
            assert one.claim(["a", "d"]) == ["d"]

    def test_what_is_released_or_left_is_free(self, run):
        with run.writer() as one, run.writer() as two:
            with run.writer() as three:
                three.claim(["x"])
            one.claim(["a", "b"])
            one.release(["a", "c"])
            assert two.claim(["a", "b", "x"]) == ["a", "x"]

    def test_a_finished_cell_is_never_claimed(self, run):
        with run.writer() as one, run.writer() as two:
            one.claim(["a"])
            one.append(line("a"))
            assert two.claim(["a"]) == []
            assert one.claim(["a"]) == []

    def test_a_failed_cell_is_tried_once_by_each_command(self, run):
        with run.writer() as one, run.writer() as two:
            one.claim(["a"])
            one.append(line("a", status="failed"))
            assert one.claim(["a"]) == []
            assert two.claim(["a"]) == []
        with run.writer() as later:
            assert later.claim(["a"]) == ["a"]
            later.append(line("a"))
        assert [row["status"] for row in run.rows()] == ["ok"]

    def test_a_writer_without_lines_leaves_no_file(self, run):
        with run.writer() as writer:
            writer.claim(["a"])
            assert leases(run) == [writer.name]
        assert leases(run) == []
        assert not list(run.path.glob("cells-*"))

    def test_the_lease_of_a_dead_writer_is_removed(self, run):
        (run.path / "leases").mkdir()
        (run.path / "leases" / "dead").write_text("+a\n+b\n")
        with run.writer() as writer:
            assert writer.claim(["a"]) == ["a"]
            assert leases(run) == [writer.name]

    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12, with threads
    def test_a_forked_child_does_not_keep_the_lease_alive(self, run):
        writer = run.writer()
        with writer:
            writer.claim(["a"])
            child = os.fork()
            if child == 0:
                time.sleep(30)
                os._exit(0)
            try:
                os.close(writer._lease._file.fd)  # as the kernel does when a writer is killed
                writer._lease._file.fd = -1
                deadline = time.monotonic() + 10  # the child may not have begun yet
                with run.writer() as other:
                    while other.claim(["a"]) != ["a"]:
                        assert time.monotonic() < deadline
            finally:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)

    def test_a_writer_lives_in_its_block(self, run):
        writer = run.writer()
        with pytest.raises(RunError, match="closed"):
            writer.claim(["a"])
        with writer:
            pass
        with pytest.raises(RunError, match="closed"):
            writer.append(line("a"))


class TestRecords:
    @pytest.mark.parametrize(
        "record",
        [
            {},
            {"id": "a", "status": "ok"},
            {"id": "", "status": "ok", "schema": 1},
            {"id": "a", "status": "done", "schema": 1},
            {"id": 3, "status": "ok", "schema": 1},
            {"id": "a", "status": "ok", "schema": 1, "out": {1, 2}},
        ],
    )
    def test_what_is_no_line_is_refused(self, run, record):
        with run.writer() as writer, pytest.raises(UsageError):
            writer.append(record)
        assert run.rows() == []


class TestDiskErrors:
    def test_a_file_size_limit_cuts_no_line(self, run):
        """EFBIG is a real half-written line: the kernel takes what fits, then refuses."""
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        with run.writer() as writer:
            writer.append(line("a", text="x" * 900))
            try:
                resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
                with pytest.raises(RunError, match=r"cannot write .*: File too large") as caught:
                    writer.append(line("b", text="x" * 900))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
                signal.signal(signal.SIGXFSZ, ignored)
            assert "\n" not in str(caught.value)
            assert run.finished_ids() == {"a"}
            writer.append(line("b"))
            writer.append(line("c"))
        assert Counter(row["id"] for row in run.rows()) == Counter("abc")
        assert run.problems == []

    def test_a_full_disk(self):
        file = AppendFile(Path("/dev/full"))
        try:
            with pytest.raises(RunError, match="No space left on device"):
                file.append("{}", sync=False)
        finally:
            file.close()

    @pytest.mark.parametrize("moment", ["write", "fsync"])
    def test_a_ctrl_c_in_the_middle_cuts_no_line(self, run, monkeypatch, moment):
        real = getattr(os, moment)

        def interrupted(fd, *data):
            real(fd, *(part[:10] for part in data))
            raise KeyboardInterrupt

        with run.writer() as writer:
            writer.append(line("a"))
            with monkeypatch.context() as patch:
                patch.setattr(os, moment, interrupted)
                with pytest.raises(KeyboardInterrupt):
                    writer.append(line("b"))
            writer.append(line("c"))
        assert run.finished_ids() == {"a", "c"}
        assert run.problems == []

    def test_a_file_system_without_locks(self, run, monkeypatch):
        def unsupported(fd, operation):
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")

        monkeypatch.setattr("fcntl.flock", unsupported)
        with pytest.raises(RunError, match="file system that has flock"), run.writer():
            pass

    def test_a_lock_that_is_never_freed(self, run, monkeypatch):
        monkeypatch.setattr("roundoff.store.disk.LOCK_SECONDS", 0.05)
        monkeypatch.setattr("roundoff.store.disk.try_lock", lambda fd: False)
        with pytest.raises(RunError, match="stopped process"), run.writer():
            pass
