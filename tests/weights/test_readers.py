"""Every reader gives back what the library of its format wrote, block by block."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from roundoff.errors import CheckpointError
from roundoff.weights import checkpoint
from roundoff.weights.readers import open_checkpoint
from roundoff.weights.readers.tiles import Tile, check_tiles, fill

from ..several import in_processes
from .conftest import DTYPES, moved, save_dcp, save_sharded, weights


def whole(found, name):
    entry = found.entries[name]
    return found.read(name, 0, entry.size).reshape(entry.shape)


def same(found, tensors):
    assert set(found.entries) == set(tensors)
    for name, expected in tensors.items():
        entry = found.entries[name]
        assert (entry.shape, entry.dtype) == (tuple(expected.shape), expected.dtype)
        raw = [t.contiguous().view(torch.uint8) if t.dim() else t for t in (expected,)]
        read = whole(found, name)
        assert read.dtype == expected.dtype
        if expected.dim():
            assert torch.equal(read.contiguous().view(torch.uint8), raw[0])
        else:
            assert read.item() == expected.item()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(write, dtype):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "a": (4 * torch.randn(5, 7, generator=generator)).to(dtype),
        "odd": (4 * torch.randn(3, generator=generator)).to(dtype),
        "none": torch.zeros(0, 4, dtype=dtype),
        "one": torch.ones((), dtype=dtype),
    }
    same(open_checkpoint(write(tensors)), tensors)


def test_blocks_make_up_the_tensor(write):
    tensors = weights()
    found = open_checkpoint(write(tensors))
    name = "model.embed.weight"
    expected = tensors[name].flatten()
    for start in range(0, expected.numel(), 97):
        stop = min(start + 97, expected.numel())
        assert torch.equal(found.read(name, start, stop), expected[start:stop])


def test_unaligned_tensors(tmp_path):
    """A tensor of one byte shifts all that follow it by one."""
    tensors = {
        "a": torch.ones(1, dtype=torch.int8),
        "b": torch.arange(9.0),
        "c": torch.ones(3).half(),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    same(open_checkpoint(tmp_path / "a.safetensors"), tensors)


def test_what_training_loops_write(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 7,
        "losses": [1.0, 2.0], "rng": torch.get_rng_state(), "shape": torch.Size([1, 2]),
    }  # fmt: skip
    torch.save(state, tmp_path / "a.pt")
    found = open_checkpoint(tmp_path / "a.pt")
    assert torch.equal(whole(found, "model.weight"), model.weight)
    moment = optimizer.state_dict()["state"][0]["exp_avg"]
    assert torch.equal(whole(found, "optimizer.state.0.exp_avg"), moment)
    assert found.left_out["step"] == "int: no tensor"
    assert {"losses.0", "losses.1", "optimizer.param_groups.0.lr", "shape"} <= set(found.left_out)


def test_a_lone_tensor_and_the_old_format(tmp_path):
    torch.save(torch.arange(4.0), tmp_path / "one.pt")
    assert open_checkpoint(tmp_path / "one.pt").read("", 1, 3).tolist() == [1, 2]
    tensors = {"a": torch.arange(4.0), "b": torch.ones(2, 2).bfloat16()}
    torch.save(tensors, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    same(open_checkpoint(tmp_path / "old.bin"), tensors)


def test_tensors_that_lie_otherwise(tmp_path):
    base = torch.arange(60.0).reshape(3, 4, 5)
    tensors = {
        "transposed": base.permute(2, 0, 1),
        "strided": base[:, ::2, 1:],
        "expanded": base[:1, :1, 0].expand(6, 4),
    }
    torch.save(tensors, tmp_path / "a.pt")
    found = open_checkpoint(tmp_path / "a.pt")
    for name, expected in tensors.items():
        assert torch.equal(whole(found, name), expected)
        assert torch.equal(found.read(name, 2, 9), expected.flatten()[2:9])


def test_tied_tensors_are_told(tmp_path):
    shared = torch.ones(3, 3)
    torch.save({"embed": shared, "head": shared, "part": shared[:2]}, tmp_path / "a.pt")
    found = open_checkpoint(tmp_path / "a.pt")
    assert {n: e.tied_to for n, e in found.entries.items()} == {
        "embed": None, "head": "embed", "part": None
    }  # fmt: skip


def test_what_is_left_out_by_name(tmp_path):
    odd = {
        "z": torch.zeros(2, dtype=torch.complex64),
        "s": torch.eye(3).to_sparse(),
        "m": torch.zeros(2, device="meta"),
        "w": torch.ones(2),
    }
    found = open_checkpoint(odd)
    assert set(found.entries) == {"w"}
    assert "complex numbers have no order" in found.left_out["z"]
    assert "sparse_coo" in found.left_out["s"]
    assert "meta" in found.left_out["m"]
    save_file({"z": odd["z"], "w": odd["w"]}, tmp_path / "a.safetensors")
    assert "complex" in open_checkpoint(tmp_path / "a.safetensors").left_out["z"]


def _rank(rank, folder):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    tensors = weights(dtype=torch.bfloat16)
    ways = {"model.embed.weight": Shard(0), "head.weight": Shard(1)}
    state = {
        name: distribute_tensor(t, mesh, [ways.get(name, Replicate())]) if t.dim() == 2 else t
        for name, t in tensors.items()
    }
    dcp.save({"model": state, "step": 3}, checkpoint_id=folder)


def test_dcp_from_two_processes(tmp_path):
    in_processes(_rank, str(tmp_path / "dcp"))
    assert len(list((tmp_path / "dcp").glob("*.distcp"))) == 2
    found = open_checkpoint(tmp_path / "dcp")
    expected = {f"model.{n}": t for n, t in weights(dtype=torch.bfloat16).items()}
    assert any(len(pieces) == 2 for pieces in found.pieces.values())
    same(found, expected)
    assert found.left_out == {"step": "bytes: no tensor"}
    for name in ("model.model.embed.weight", "model.head.weight"):
        flat = expected[name].flatten()
        for start in range(0, flat.numel(), 61):
            stop = min(start + 61, flat.numel())
            assert torch.equal(found.read(name, start, stop), flat[start:stop])


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_tiles_make_up_any_block(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 6), max_size=4)))
    tiles = [Tile((0,) * len(shape), shape)]
    for _ in range(data.draw(st.integers(0, 5)) if shape else 0):
        tile = tiles.pop(data.draw(st.integers(0, len(tiles) - 1)))
        axis = data.draw(st.integers(0, len(shape) - 1))
        cut = data.draw(st.integers(0, tile.sizes[axis]))
        for first, size in ((0, cut), (cut, tile.sizes[axis] - cut)):
            offsets, sizes = list(tile.offsets), list(tile.sizes)
            offsets[axis] += first
            sizes[axis] = size
            tiles.append(Tile(tuple(offsets), tuple(sizes)))
    check_tiles("x", "w", shape, tiles)
    tensor = torch.arange(int(torch.tensor(shape).prod()) if shape else 1).reshape(shape)
    start = data.draw(st.integers(0, tensor.numel()))
    stop = data.draw(st.integers(start, tensor.numel()))
    out = torch.full((stop - start,), -1)
    for tile in tiles:
        box = tuple(slice(o, o + n) for o, n in zip(tile.offsets, tile.sizes, strict=True))
        flat = tensor[box].flatten()
        fill(out, start, shape, tile, lambda first, last, flat=flat: flat[first:last])
    assert torch.equal(out, tensor.flatten()[start:stop])


@pytest.mark.parametrize(
    "tiles",
    [
        [Tile((0, 0), (2, 3))],
        [Tile((0, 0), (2, 3)), Tile((1, 0), (2, 3))],
        [Tile((0, 0), (4, 3))],
        [Tile((-1, 0), (4, 3))],
        [Tile((0,), (9,))],
        [Tile((0, 0), (2, 3)), Tile((1, 0), (1, 3))],
    ],
)
def test_tiles_that_do_not_make_up_the_tensor(tiles):
    with pytest.raises(CheckpointError, match="do not make up"):
        check_tiles("x", "w", (3, 3), tiles)


class Tiny:
    """Models of transformers, a few kilobytes large."""

    @staticmethod
    def llama(tie=False):
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, vocab_size=64, tie_word_embeddings=tie,
        )  # fmt: skip
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


@pytest.mark.parametrize("size", ["5GB", "20KB"])
def test_transformers(tmp_path, size):
    model = Tiny.llama()
    model.save_pretrained(tmp_path / "hf", max_shard_size=size)
    sharded = (tmp_path / "hf" / "model.safetensors.index.json").exists()
    assert sharded == (size == "20KB")
    found = open_checkpoint(tmp_path / "hf")
    same(found, {n: t.detach() for n, t in model.state_dict().items()})


def test_folders(tmp_path):
    tensors = weights()
    (tmp_path / "torch").mkdir()
    torch.save(tensors, tmp_path / "torch" / "pytorch_model.bin")
    torch.save({"step": 1}, tmp_path / "torch" / "optimizer.pt")
    same(open_checkpoint(tmp_path / "torch"), tensors)
    (tmp_path / "bins").mkdir()
    names = list(tensors)
    homes = {n: f"pytorch_model-{i % 2}.bin" for i, n in enumerate(names)}
    for file in set(homes.values()):
        torch.save({n: tensors[n] for n in names if homes[n] == file}, tmp_path / "bins" / file)
    index = json.dumps({"weight_map": homes})
    (tmp_path / "bins" / "pytorch_model.bin.index.json").write_text(index)
    same(open_checkpoint(tmp_path / "bins"), tensors)
    same(open_checkpoint(tmp_path / "bins" / "pytorch_model.bin.index.json"), tensors)


def test_a_tensor_that_the_index_leaves_out(tmp_path):
    tensors = weights()
    folder = save_sharded(tmp_path / "s", tensors)
    index = folder / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    del document["weight_map"]["scale"]
    index.write_text(json.dumps(document))
    found = open_checkpoint(folder)
    assert "scale" not in found.entries
    assert "not in the index" in found.left_out["scale"]


def test_blocks_are_bounded(tmp_path, monkeypatch):
    """A reader is never asked for more than a block."""
    monkeypatch.setattr(checkpoint, "BLOCK", 1024)
    from roundoff.weights.diff import compare_checkpoints

    tensors = weights()
    a = open_checkpoint(save_dcp(tmp_path / "a", tensors))
    b = open_checkpoint(save_dcp(tmp_path / "b", moved(tensors)))
    asked = []
    read = a.read
    a.read = lambda name, start, stop: asked.append(stop - start) or read(name, start, stop)
    compare_checkpoints(a, b)
    assert max(asked) * 4 <= 1024
