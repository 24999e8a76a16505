"""Checkpoints in every format, written by the libraries whose formats they are."""

import json
import warnings

import pytest
import torch
from safetensors.torch import save_file

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


def weights(seed=0, dtype=torch.float32, layers=3):
    """A small model's weights, with what is odd among tensors: empty, scalar, of one column."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return (0.02 * torch.randn(shape, generator=generator)).to(dtype)

    found = {"model.embed.weight": draw(101, 16)}
    for layer in range(layers):
        found[f"model.layers.{layer}.attn.q.weight"] = draw(16, 16)
        found[f"model.layers.{layer}.mlp.bias"] = draw(16)
    return found | {"head.weight": draw(101, 16), "scale": draw(), "empty": draw(0, 3)}


def moved(tensors, seed=1, by=1e-3):
    generator = torch.Generator().manual_seed(seed)
    return {
        n: (t + by * torch.randn(t.shape, generator=generator)).to(t.dtype)
        for n, t in tensors.items()
    }


def save_sharded(folder, tensors, shards=3):
    """As transformers and others write it: files, and an index beside them."""
    folder.mkdir()
    names = list(tensors)
    homes = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors"
             for i, name in enumerate(names)}  # fmt: skip
    for file in set(homes.values()):
        save_file({n: tensors[n] for n in names if homes[n] == file}, folder / file)
    index = {"metadata": {"total_size": 0}, "weight_map": homes}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def save_dcp(folder, tensors):
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no process group
        dcp.save(dict(tensors), checkpoint_id=folder, no_dist=True)
    return folder


def save_torch(path, tensors):
    torch.save(tensors, path)
    return path


def save_safetensors(path, tensors):
    save_file(tensors, path)
    return path


WRITERS = {
    "a.safetensors": save_safetensors,
    "a.pt": save_torch,
    "sharded": save_sharded,
    "dcp": save_dcp,
}


@pytest.fixture(params=WRITERS)
def write(request, tmp_path):
    """Write tensors in one format; returns the path."""
    return lambda tensors: WRITERS[request.param](tmp_path / request.param, tensors)
