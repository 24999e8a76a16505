"""Comparisons of checkpoints: against numbers computed from whole tensors, in every format."""

import json
import math

import pytest
import torch
from scipy.stats import wasserstein_distance

import roundoff
from roundoff import metrics
from roundoff.errors import CheckpointError, UnknownNameError, UsageError
from roundoff.store.json import dumps, loads
from roundoff.weights import checkpoint, heap
from roundoff.weights.diff import compare_checkpoints, diff
from roundoff.weights.names import bare_names, group_of, read_renames, renamed
from roundoff.weights.readers import open_checkpoint

from .conftest import moved, save_dcp, save_safetensors, save_torch, weights


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 64 bytes, so that every tensor has several."""
    monkeypatch.setattr(checkpoint, "BLOCK", 64)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_every_number(write, tmp_path, dtype):
    a = weights(dtype=dtype)
    b = moved(a)
    found = diff(save_torch(tmp_path / "golden.pt", a), write(b))
    assert [t.pair.name for t in found.tensors if t.distance.n] == [
        n for n, t in a.items() if t.numel()
    ]
    for tensor in found.tensors:
        x, y = (side[tensor.pair.name].double() for side in (a, b))
        if not x.numel():
            assert math.isnan(tensor.wasserstein)
            continue
        assert tensor.distance.max_diff == metrics.max_abs_err(x, y)
        assert tensor.distance.rel_l2 == pytest.approx(metrics.rel_l2(x, y), rel=1e-12)
        expected = wasserstein_distance(x.flatten().numpy(), y.flatten().numpy())
        assert tensor.wasserstein == pytest.approx(expected, rel=1e-10)
    x, y = (torch.cat([t.double().flatten() for t in side.values()]) for side in (a, b))
    overall = found.overall
    assert overall.distance.n == x.numel()
    assert overall.distance.cosine == pytest.approx(metrics.cosine(x, y), rel=1e-12)
    pooled = wasserstein_distance(x.numpy(), y.numpy())
    assert overall.wasserstein_pooled == pytest.approx(pooled, rel=1e-10)
    assert overall.wasserstein_per_tensor >= overall.wasserstein_pooled * (1 - 1e-12)


@pytest.mark.usefixtures("small_blocks")
def test_groups_are_their_tensors():
    a = weights()
    b = moved(a)
    found = diff(a, b)
    group = next(g for g in found.groups if g.name == "model.layers.1")
    names = [n for n in a if group_of(n) == "model.layers.1"]
    assert group.tensors == len(names) == 2
    x, y = (torch.cat([side[n].flatten() for n in names]) for side in (a, b))
    assert group.distance.rel_l2 == pytest.approx(metrics.rel_l2(x, y), rel=1e-12)
    expected = wasserstein_distance(x.double().numpy(), y.double().numpy())
    assert group.wasserstein_pooled == pytest.approx(expected, rel=1e-10)


def test_a_permutation_moves_weights_but_no_pooled_mass():
    a = {"x": torch.zeros(4), "y": torch.ones(4)}
    found = diff(a, {"x": torch.ones(4), "y": torch.zeros(4)})
    assert found.overall.wasserstein_pooled == 0
    assert found.overall.wasserstein_per_tensor == 1


def test_mixed_formats_share_a_heap():
    a = weights(dtype=torch.bfloat16)
    a["head.weight"] = a["head.weight"].float() * 1.1
    b = moved(a)
    x, y = (torch.cat([t.double().flatten() for t in side.values()]) for side in (a, b))
    expected = wasserstein_distance(x.numpy(), y.numpy())
    assert diff(a, b).overall.wasserstein_pooled == pytest.approx(expected, rel=1e-10)


def test_a_heap_that_takes_too_many_passes(monkeypatch):
    a = weights()
    sides = open_checkpoint(a), open_checkpoint(moved(a))
    found = compare_checkpoints(*sides, most_passes=0)
    assert found.overall.wasserstein_pooled is None
    assert any("--pooled" in note for note in found.notes)
    assert found.overall.wasserstein_per_tensor > 0
    monkeypatch.setattr(heap, "MOST_SORTED", 0)
    wide = {n: t.double() for n, t in a.items()}
    found = diff(wide, moved(wide))
    assert found.overall.wasserstein_pooled is None
    assert any("sort" in note for note in found.notes)


@pytest.mark.parametrize(
    ("format", "mode", "text"),
    [
        ("bf16", "nearest", "B is A cast to bf16 (nearest)"),
        ("bf16", "toward-zero", "B is A cast to bf16 (truncated)"),
        ("fp16", "nearest", "B is A cast to fp16 (nearest)"),
        ("fp16", "toward-zero", "B is A cast to fp16 (truncated)"),
        ("e4m3fn", "nearest", "B is A cast to e4m3fn (nearest)"),
    ],
)
@pytest.mark.parametrize("source", [torch.float32, torch.float64])
def test_casts_are_recognised(tmp_path, format, mode, text, source):
    a = {n: t for n, t in weights(dtype=source).items() if t.numel()}
    target = roundoff.get_format(format).dtype
    b = {n: roundoff.round_to(t, format, mode=mode).to(target) for n, t in a.items()}
    found = diff(a, save_safetensors(tmp_path / "b.safetensors", b))
    assert str(found.cast) == text
    assert str(diff(b, a).cast) == text.replace("B is A", "A is B")
    if format != "e4m3fn":  # kept in the dtype of A
        assert str(diff(a, {n: t.to(source) for n, t in b.items()}).cast) == text


def test_what_is_no_cast():
    a = weights()
    assert diff(a, a).cast is None
    assert diff(a, moved(a)).cast is None
    b = {n: t.bfloat16() for n, t in a.items()}
    b["scale"] = b["scale"] * 2
    found = diff(a, b)
    assert found.cast is None
    assert sum(t.cast is not None for t in found.tensors) == len(a) - 2  # scale, and the empty one
    exact = {n: t.to(torch.bfloat16).float() for n, t in a.items()}
    assert "nothing is lost" in str(diff(exact, b | {"scale": exact["scale"].bfloat16()}).cast)


def test_a_loss_that_both_ways_of_rounding_share():
    a = {"norm": torch.full((4,), 1.001), "w": torch.tensor([1.0, -2.0])}
    b = {n: t.bfloat16() for n, t in a.items()}
    assert str(diff(a, b).cast) == "B is A cast to bf16 (nearest or truncated)"
    more = {"x": torch.tensor([1.007])}  # truncated to 1.0
    found = diff(a | more, b | {"x": torch.ones(1, dtype=torch.bfloat16)})
    assert str(found.cast) == "B is A cast to bf16 (truncated)"
    assert [str(t.cast.mode) for t in found.tensors] == ["either", "exact", "truncated"]


def test_updates_from_a_base(tmp_path):
    c = weights()
    a, b = moved(c, seed=1), moved(c, seed=2)
    base = save_dcp(tmp_path / "c", {n: c[n] for n in c if n != "scale"})
    found = diff(a, b, base=base)
    names = [n for n in c if n not in ("scale", "empty")]
    x, y = (
        torch.cat([side[n].double().flatten() - c[n].double().flatten() for n in names])
        for side in (a, b)
    )
    update = found.overall.update
    assert math.sqrt(update.aa) == pytest.approx(x.norm().item(), rel=1e-12)
    assert math.sqrt(update.bb) == pytest.approx(y.norm().item(), rel=1e-12)
    assert update.cosine == pytest.approx(metrics.cosine(x, y), abs=1e-12)
    assert any("the base lacks scale" in note for note in found.notes)
    with pytest.raises(CheckpointError, match="has none of the tensors"):
        diff(a, b, base={"other": torch.ones(1)})


def test_wrappers_are_taken_off():
    a = weights()
    for prefix in ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."):
        assert diff(a, {prefix + n: t for n, t in a.items()}).overall.distance.differing == 0
    inner = {
        n.replace("layers.1.", "layers.1._checkpoint_wrapped_module."): t for n, t in a.items()
    }
    assert not diff(a, inner).pairing.only_a
    nested = {"model": {"module." + n: t for n, t in a.items()}}
    assert not diff({"model": a}, nested).pairing.only_a
    assert bare_names("x", ["net.module.w", "net.other"]) == {
        "net.module.w": "net.module.w", "net.other": "net.other"
    }  # fmt: skip


def test_missing_and_reshaped_tensors_are_reported():
    a = {"w": torch.ones(2, 3), "x": torch.ones(1), "y": torch.ones(2)}
    found = diff(a, {"w": torch.ones(3, 2), "x": torch.ones(1), "z": torch.ones(2)})
    assert found.pairing.only_a == ["y"]
    assert found.pairing.only_b == ["z"]
    assert found.pairing.reshaped == {"w": ((2, 3), (3, 2))}
    assert [t.pair.name for t in found.tensors] == ["x"]
    with pytest.raises(CheckpointError, match="share no tensor"):
        diff({"a": torch.ones(1)}, {"b": torch.ones(1)})


def test_renames(tmp_path):
    a = weights()
    b = {n.replace("model.layers.", "h.").replace("scale", "temperature"): t for n, t in a.items()}
    renames = {"model.layers.": "h.", "scale": "temperature"}
    assert not diff(a, b, rename=renames).pairing.only_a
    inside = {"net." + n: t for n, t in a.items()}
    assert not diff(inside, a, rename={"net.": ""}).pairing.only_a
    assert not diff(a, inside, rename={"": "net."}).pairing.only_a
    with pytest.raises(UnknownNameError, match="did you mean 'scale'"):
        diff(a, b, rename={"scael": "temperature"})
    with pytest.raises(UsageError, match="would both be"):
        renamed({"a": "a", "b": "b"}, {"a": "b"})
    file = tmp_path / "map.toml"
    file.write_text('[rename]\n"model.layers." = "h."\nscale = "temperature"\n')
    assert read_renames(file) == renames
    for text, words in {
        "[rename": "no TOML", "": "one table", "[rename]\na = 1\n": "given a name",
        '[rename]\n"a." = "b"\n': "ends in a dot", "[rename]\na.b = 'c'\n": "quoted",
    }.items():  # fmt: skip
        file.write_text(text)
        with pytest.raises(UsageError, match=words):
            read_renames(file)
    with pytest.raises(UsageError, match="cannot read"):
        read_renames(tmp_path / "nowhere.toml")


def test_tied_tensors_are_counted_once(tmp_path):
    shared = torch.ones(2, 2)
    a = save_torch(tmp_path / "a.pt", {"embed": shared, "head": shared})
    b = save_torch(tmp_path / "b.pt", {"embed": 2 * shared})
    found = diff(a, b)
    assert found.pairing.tied == {"head": "embed"}
    assert not found.pairing.only_a
    again = diff(a, a)
    assert [t.pair.tied for t in again.tensors] == [False, True]
    assert again.overall.distance.n == 4


def test_an_optimizer_s_state_is_apart(tmp_path):
    """As training loops keep it, in the layouts of torch.save, of DCP and of a file of its own."""
    a = {n: t for n, t in weights().items() if t.numel()}
    b = moved(a)

    def moments(tensors, factor):
        names = ("step", "exp_avg", "exp_avg_sq")
        return {
            key: dict(zip(names, (torch.tensor(factor), factor * t, t * t), strict=True))
            for key, t in tensors.items()
        }

    alone = diff(a, b)
    for write, numbered in ((save_torch, True), (save_dcp, False)):
        sides: list[object] = []
        for at, side in enumerate((a, b)):
            states = moments(dict(enumerate(side.values())) if numbered else side, 1.0 + at)
            tree = {"model": side, "optimizer": {"state": states}}
            sides.append(write(tmp_path / f"{write.__name__}-{at}.pt", tree))
        found = diff(*sides)
        assert found.overall.distance == alone.overall.distance
        assert found.overall.wasserstein_pooled == alone.overall.wasserstein_pooled
        kinds = {group.name: group for group in found.optimizer}
        assert set(kinds) == {"optimizer step", "optimizer exp_avg", "optimizer exp_avg_sq"}
        assert {group.tensors for group in kinds.values()} == {len(a)}
        assert kinds["optimizer step"].distance.max_diff == 1
        assert len(found.groups) == len(alone.groups)
        assert not any("exp_avg" in t.pair.name for t in found.worst())
        assert any("optimizer state" in note for note in found.notes)
        states = {"state": moments(dict(enumerate(a.values())), 1.0)}
    only = diff(save_torch(tmp_path / "a.pt", states), save_torch(tmp_path / "b.pt", states))
    assert only.overall.tensors == 0
    assert len(only.optimizer) == 3


def test_buffers_are_compared_but_not_pooled():
    a = {"w": torch.ones(3), "n": torch.tensor(5), "mask": torch.tensor([True, False])}
    found = diff(a, a | {"n": torch.tensor(9), "mask": torch.tensor([True, True])})
    assert found.overall.distance.differing == 0
    changed = {t.pair.name: t for t in found.tensors if t.distance.differing}
    assert set(changed) == {"n", "mask"}
    assert changed["n"].distance.max_diff == changed["n"].wasserstein == 4
    assert changed["mask"].wasserstein == 0.5


def test_nan_and_infinity_stay_in():
    a = weights()
    b = moved(a)
    b["head.weight"][3, 3] = math.nan
    b["model.embed.weight"][1, 1] = math.inf
    found = diff(a, b)
    assert found.worst()[0].pair.name in ("head.weight", "model.embed.weight")
    assert math.isnan(found.overall.distance.max_diff)
    assert math.isnan(found.overall.wasserstein_pooled)
    assert found.overall.distance.nonfinite_b == 2
    record = loads(dumps(found.to_record()))
    assert math.isnan(record["overall"]["max_diff"])
    assert '"nan"' in dumps(found.to_record())


def test_the_record_holds_everything():
    a = weights()
    record = json.loads(dumps(diff(a, moved(a), base=a).to_record()))
    assert {
        "a", "b", "base", "cast", "overall", "groups", "optimizer", "tensors", "worst", "only_a",
        "only_b", "reshaped", "tied", "notes",
    } == set(record)  # fmt: skip
    expected = {
        "max_diff", "rel_l2", "rel_l1", "cosine", "ulp_mean", "ulp_max", "sign_flips", "wasserstein"
    }  # fmt: skip
    assert all(expected <= set(tensor) for tensor in record["tensors"])
    assert {"wasserstein_pooled", "wasserstein_per_tensor", "update"} <= set(record["overall"])


def test_without_numba_the_numbers_are_the_same(monkeypatch):
    a = weights()
    b = moved(a)
    fast = diff(a, b)
    for module in ("weights", "wasserstein_counts", "wasserstein_parts"):
        monkeypatch.setattr(f"roundoff.metrics.{module}.is_installed", lambda name: False)
    slow = diff(a, b)
    assert any("roundoff[fast]" in note for note in slow.notes)
    for ours, theirs in ((slow.overall, fast.overall), *zip(slow.groups, fast.groups, strict=True)):
        for one, other in (
            (ours.wasserstein_pooled, theirs.wasserstein_pooled),
            (ours.distance.rel_l2, theirs.distance.rel_l2),
        ):
            assert one == pytest.approx(other, rel=1e-12, nan_ok=True)


def test_transformers_that_tie_their_weights(tmp_path):
    from .test_readers import Tiny

    model = Tiny.llama(tie=True)
    model.save_pretrained(tmp_path / "hf")
    torch.save(model.state_dict(), tmp_path / "a.pt")
    found = diff(tmp_path / "a.pt", tmp_path / "hf")
    assert found.overall.distance.differing == 0
    assert found.pairing.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    assert not found.pairing.only_a
    assert "model.layers.0" in {g.name for g in found.groups}
