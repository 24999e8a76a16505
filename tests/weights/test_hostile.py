"""Damaged, truncated and hostile files: one `CheckpointError` in one line, and nothing executed."""

import io
import json
import os
import pickle
import struct
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from roundoff.errors import CheckpointError
from roundoff.weights.diff import diff
from roundoff.weights.readers import open_checkpoint

from .conftest import save_dcp, save_sharded, weights


def read_all(path):
    found = open_checkpoint(path)
    for name, entry in found.entries.items():
        assert found.read(name, 0, entry.size).numel() == entry.size


def refused(path, *words):
    """Why a checkpoint is refused: when it is opened, or when it is read."""
    with pytest.raises(CheckpointError) as caught:
        read_all(path)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    for word in words:
        assert word in text
    return text


class Evil:
    """Unpickled freely, it leaves a file behind."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("old", [True, False])
def test_a_pickle_that_calls_code(tmp_path, old):
    mark = tmp_path / "executed"
    torch.save(
        {"w": torch.ones(2), "x": Evil(mark)}, tmp_path / "a.pt",
        _use_new_zipfile_serialization=not old,
    )  # fmt: skip
    refused(tmp_path / "a.pt", "more than tensors")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil(mark)))
    refused(tmp_path / "plain.pt")
    assert not mark.exists()


def test_metadata_that_calls_code(tmp_path):
    mark = tmp_path / "executed"
    folder = save_dcp(tmp_path / "dcp", weights())
    (folder / ".metadata").write_bytes(pickle.dumps(Evil(mark)))
    refused(folder, "not to be trusted", "posix.mkdir")
    (folder / ".metadata").write_bytes(pickle.dumps({"state_dict_metadata": Evil(mark)}))
    refused(folder, "not to be trusted")
    assert not mark.exists()


def test_a_piece_that_calls_code(tmp_path):
    mark = tmp_path / "executed"
    folder = save_dcp(tmp_path / "dcp", {"w": torch.ones(1000)})
    piece = next(folder.glob("*.distcp"))
    held, new = piece.read_bytes(), io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(held)) as old, zipfile.ZipFile(new, "w") as changed:
        for record in old.infolist():
            data = old.read(record)
            evil = pickle.dumps(Evil(mark), protocol=2)
            changed.writestr(record.filename, evil if record.filename.endswith(".pkl") else data)
    smaller = new.getvalue()
    assert len(smaller) <= len(held)
    # Garbage before a zip is skipped by its readers.
    piece.write_bytes(b"\0" * (len(held) - len(smaller)) + smaller)
    refused(folder)
    assert not mark.exists()


@pytest.mark.parametrize("module", ["builtins.eval", "torch.load", "torch.serialization.load"])
def test_names_that_are_no_data(tmp_path, module):
    place, _, name = module.rpartition(".")
    (tmp_path / ".metadata").write_bytes(b"c" + f"{place}\n{name}\n.".encode())
    refused(tmp_path, "not to be trusted", module)


def header(entries, data=b"", length=None):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BAD_HEADERS = {
    "nothing": (b"", "header"),
    "short": (b"\0\0", "header"),
    "too long": (header({}, length=1 << 40), "header"),
    "longer than the file": (header({"a": F32}, length=500), "header"),
    "no JSON": (header(b"{nothing}"), "header is damaged"),
    "no object": (header(b"[1, 2]"), "header is damaged"),
    "no UTF-8": (header(b'{"\xff\xfe": 1}'), "header is damaged"),
    "deep": (header(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "damaged"),
    "twice": (header(b'{"a": 1, "a": 2}'), "occurs twice"),
    "no offsets": (header({"a": {"dtype": "F32", "shape": [2]}}, b"\0" * 8), "'a' is damaged"),
    "a text": (header({"a": "b"}), "'a' is damaged"),
    "negative": (header({"a": F32 | {"shape": [-2]}}, b"\0" * 8), "'a' is damaged"),
    "fraction": (header({"a": F32 | {"shape": [2.0]}}, b"\0" * 8), "'a' is damaged"),
    "beyond the end": (header({"a": F32}, b"\0" * 4), "cut short"),
    "backwards": (header({"a": F32 | {"data_offsets": [8, 0]}}, b"\0" * 8), "cut short"),
    "another size": (header({"a": F32 | {"shape": [3]}}, b"\0" * 8), "needs 12"),
    "huge": (header({"a": F32 | {"shape": [1 << 40, 1 << 40]}}, b"\0" * 8), "needs"),
    "overlap": (header({"a": F32, "b": F32}, b"\0" * 8), "overlap"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_headers(tmp_path, case):
    data, words = BAD_HEADERS[case]
    (tmp_path / "a.safetensors").write_bytes(data)
    refused(tmp_path / "a.safetensors", words)


def test_an_unknown_dtype_is_left_out(tmp_path):
    odd = {"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}
    (tmp_path / "a.safetensors").write_bytes(header(odd, b"\0"))
    assert "F4" in open_checkpoint(tmp_path / "a.safetensors").left_out["a"]


@pytest.mark.parametrize("file", ["../x.safetensors", "/etc/passwd", "sub/x.bin", "..", ""])
def test_an_index_that_leads_out(tmp_path, file):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"w": file}}))
    refused(path, "not beside it")
    refused(tmp_path, "not beside it")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "damaged"), ("{", "damaged"), ("[]", "no weight_map"),
        ('{"weight_map": 3}', "weight_map"), ('{"weight_map": {}}', "empty"),
        ('{"weight_map": {"a": 3}}', "weight_map"),
        ("[" * 100_000, "damaged"), ('{"weight_map": {"w": "gone.safetensors"}}', "lacks 'gone"),
    ],
)  # fmt: skip
def test_bad_indexes(tmp_path, text, words):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    refused(tmp_path, words)


def test_an_index_of_itself(tmp_path):
    name = "model.safetensors.index.json"
    (tmp_path / name).write_text(json.dumps({"weight_map": {"w": name}}))
    refused(tmp_path, "index")


def test_missing_shards(tmp_path):
    folder = save_sharded(tmp_path / "s", weights())
    shards = sorted(folder.glob("*.safetensors"))
    shards[1].unlink()
    refused(folder, "lacks 'model-00002-of-00003.safetensors'")
    shards[1].write_bytes(shards[0].read_bytes())
    refused(folder, "of the index")


def test_missing_and_short_pieces(tmp_path):
    folder = save_dcp(tmp_path / "dcp", weights())
    piece = next(folder.glob("*.distcp"))
    whole = piece.read_bytes()
    piece.write_bytes(whole[: len(whole) // 2])
    refused(folder, "cut short")
    piece.write_bytes(b"")
    refused(folder, "cut short")
    piece.unlink()
    refused(folder, "lacks")


def test_a_folder_that_names_another_s_files(tmp_path):
    folder = save_dcp(tmp_path / "dcp", {"w": torch.ones(3)})
    data = (folder / ".metadata").read_bytes()
    name = next(folder.glob("*.distcp")).name.encode()
    (folder / ".metadata").write_bytes(data.replace(name, b"../" + name[3:]))
    refused(folder, "not in it")


def test_compressed_records(tmp_path):
    torch.save({"w": torch.zeros(1 << 16)}, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as old,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for record in old.infolist():
            new.writestr(record.filename, old.read(record))
    refused(tmp_path / "b.pt", "compressed")


def test_few_bytes_that_claim_many_elements(tmp_path):
    torch.save({"w": torch.ones(1).expand(1 << 40)}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "1099511627776 elements in a storage of 1")


def test_trees_that_hold_themselves_or_double(tmp_path):
    cycle: dict = {"w": torch.ones(1)}
    cycle["again"] = cycle
    refused(cycle, "holds itself")
    tree: list = [torch.ones(1)]
    for _ in range(40):
        tree = [tree, tree]
    torch.save({"tree": tree}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "holds more than")


def test_two_of_one_name():
    refused({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, "'a.b'")
    with pytest.raises(CheckpointError, match="are both 'w'"):
        diff({"w": torch.ones(1), "_orig_mod.w": torch.ones(1)}, {"w": torch.ones(1)})


@pytest.mark.parametrize(
    ("name", "words"),
    [("nowhere.pt", "no such file"), ("a.txt", "by its name"), ("folder", "holds no checkpoint")],
)
def test_what_is_no_checkpoint(tmp_path, name, words):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / name, words)


@pytest.mark.parametrize("cut", [0, 20, 0.3])
def test_torch_files_that_are_cut_short_or_something_else(tmp_path, cut):
    torch.save(weights(), tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: int(cut * len(whole)) if cut < 1 else cut])
    refused(tmp_path / "cut.pt", "is no checkpoint of torch.save, or is cut short or damaged")
    (tmp_path / "text.pt").write_text("hello world")
    refused(tmp_path / "text.pt", "is no checkpoint of torch.save")


def test_several_checkpoints_in_a_folder(tmp_path):
    for name in ("one.safetensors", "two.safetensors"):
        (tmp_path / name).write_bytes(save({"w": torch.ones(1)}))
    refused(tmp_path, "several checkpoints", "name the file")


def test_a_folder_that_is_a_file_s_name(tmp_path):
    (tmp_path / "a.pt").mkdir()
    refused(tmp_path / "a.pt", "holds no checkpoint")


KINDS = ["a.safetensors", "a.pt", "dcp"]


@pytest.mark.parametrize("kind", KINDS)
def test_any_damage_is_one_line_or_harmless(tmp_path, kind):
    """Bytes overwritten or cut off anywhere: numbers may change, but nothing else is raised."""
    from .conftest import WRITERS

    path = WRITERS[kind](tmp_path / kind, {"w": torch.arange(40.0), "b": {} or torch.ones(2, 3)})
    files = [path] if path.is_file() else [p for p in sorted(path.iterdir()) if p.is_file()]
    before = {file: file.read_bytes() for file in files}

    @settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def damaged(data):
        file = data.draw(st.sampled_from(files))
        held = bytearray(before[file])
        if data.draw(st.booleans()):
            held = held[: data.draw(st.integers(0, len(held)))]
        for _ in range(data.draw(st.integers(0, 3)) if held else 0):
            held[data.draw(st.integers(0, len(held) - 1))] = data.draw(st.integers(0, 255))
        file.write_bytes(bytes(held))
        try:
            read_all(path)
        except CheckpointError as error:
            lines = str(error).split("\n")
        else:
            lines = [""]
        finally:
            file.write_bytes(before[file])
        assert len(lines) == 1

    damaged()
