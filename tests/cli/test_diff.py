"""The command `roundoff diff`."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from roundoff.cli.differences import shortened
from roundoff.store.json import loads


def tensors(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embed.weight": (20, 8), "layers.0.up.weight": (8, 8), "layers.1.up.weight": (8, 8)}
    return {
        name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()
    }


@pytest.fixture
def place(folder, monkeypatch):
    a = tensors()
    save_file(a, folder.path / "a.safetensors")
    save_file({n: t + 0.01 for n, t in a.items()}, folder.path / "b.safetensors")
    save_file({n: t.bfloat16() for n, t in a.items()}, folder.path / "cast.safetensors")
    torch.save({"module." + n: t * 1.02 for n, t in a.items()} | {"step": 3}, folder.path / "c.pt")
    (folder.path / "broken.safetensors").write_bytes(b"x" * 50)
    (folder.path / "text.toml").write_text("[rename]\n")
    (folder.path / "bad.toml").write_text('[rename]\n"nothing" = "x"\n')
    return folder.path


def test_the_tables(inside, place):
    out, err = inside("diff", "a.safetensors", "b.safetensors")
    assert "3 pairs of tensors, 0 of them the same" in out
    for word in ("layers.0", "embed.weight", "W1 pool", "W1 mean", "all", "0.01"):
        assert word in out
    assert max(map(len, out.splitlines())) <= 100
    assert err.splitlines()[-1] == "again: roundoff diff a.safetensors b.safetensors"


def test_json_is_one_strict_document(inside, place):
    out, _ = inside("diff", "a.safetensors", "c.pt", "--json", "--base", "b.safetensors")
    document = loads(out)
    assert document["schema"]
    assert document["kind"] == "diff"
    assert document["overall"]["rel_l2"] == pytest.approx(0.02, rel=1e-5)
    assert document["overall"]["update"]["norm_a"] == pytest.approx(0.01 * 288**0.5, rel=1e-4)
    assert document["b"]["left_out"] == {"step": "int: no tensor"}
    assert document["command"].startswith("roundoff ")


def test_nan_travels_as_a_word(inside, place):
    b = tensors()
    b["embed.weight"][0, 0] = torch.nan
    save_file(b, place / "nan.safetensors")
    out, _ = inside("diff", "a.safetensors", "nan.safetensors", "--json")
    assert json.loads(out)["overall"]["max_diff"] == "nan"
    out, err = inside("diff", "a.safetensors", "nan.safetensors")
    assert "nan" in out
    assert "not finite: embed.weight" in err


def test_a_cast_is_said(inside, place):
    out, _ = inside("diff", "a.safetensors", "cast.safetensors")
    assert "B is A cast to bf16 (nearest)" in out


def test_a_series(inside, place):
    steps = ("a.safetensors", "b.safetensors", "c.pt")
    out, _ = inside("diff", *steps)
    assert "each against the first" in out
    assert "b.safetensors" in out
    assert "c.pt" in out
    out, _ = inside("diff", *steps, "--json", "--against", "previous")
    series = json.loads(out)["series"]
    assert [(one["a"]["path"], one["b"]["path"]) for one in series] == [
        ("a.safetensors", "b.safetensors"), ("b.safetensors", "c.pt")
    ]  # fmt: skip


def test_a_report(inside, place):
    _, err = inside("diff", "a.safetensors", "b.safetensors", "-o", "out")
    assert "report: out/diff.html" in err
    page = (place / "out" / "diff.html").read_text()
    assert "layers.0" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert (place / "out" / "diff.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((place / "out" / "diff.json").read_text())["overall"]["tensors"] == 3
    inside("diff", "a.safetensors", "b.safetensors", "c.pt", "-o", "series")
    assert {p.name for p in (place / "series").iterdir()} == {
        "diff.html", "diff.json", "diff-1.png", "diff-2.png"
    }  # fmt: skip


def test_names_that_would_write_to_the_terminal(inside, place):
    odd = {"[bold]x[/]": torch.ones(1), "\x1b[31mred\n": torch.ones(2), "<script>": torch.ones(1),
           "[/nothing]": torch.ones(3), "a" * 300: torch.ones(1)}  # fmt: skip
    torch.save(odd, place / "odd.pt")
    torch.save({n: t + 1 for n, t in odd.items()} | {"\x1b[2J": torch.ones(1)}, place / "odd2.pt")
    out, err = inside("diff", "odd.pt", "odd2.pt", "-o", "odd")
    assert "\x1b" not in out + err
    assert "[bold]x[/]" in out
    assert "[/nothing]" in out
    assert max(map(len, out.splitlines())) <= 100
    assert "<script>" not in (place / "odd" / "diff.html").read_text()


@pytest.mark.parametrize("optimizer", [False, True])
def test_long_names_stay_apart_in_100_columns(inside, place, optimizer):
    """Names of real models, numbers that take their whole width, and every table."""
    layers = [f"model.language_model.layers.{i}.{m}.weight" for i in (0, 1, 10, 11)
              for m in ("self_attn.q_proj", "self_attn.k_proj")]  # fmt: skip
    layers += [f"model.visual.blocks.{i}.attention.output.dense.weight" for i in (3, 13)]
    generator = torch.Generator().manual_seed(0)
    base = {n: 1e-3 * torch.randn(4096, 48, generator=generator) for n in layers}
    sides = [{n: t * (1 + by) - by * 1e-4 for n, t in base.items()} for by in (0, 1e-5, 0.01)]
    for at, side in enumerate(sides):
        if optimizer:
            side["optimizer.state.0.exp_avg_sq"] = torch.full((2,), 1e-30 * (1 + at))
        torch.save(side, place / f"a-rather-long-name-of-a-checkpoint-at-step-{at}000.pt")
    files = sorted(p.name for p in place.glob("a-rather*"))
    out, err = inside("diff", *files[:2], "--base", files[2], "--worst", 20)
    series, _ = inside("diff", *files)
    tables = [part.split("\n \u2500")[1:] for part in (out, series)]
    assert max(map(len, [*out.splitlines(), *series.splitlines()])) <= 100
    for heads in (
        "layer n max_diff rel_l2 1-cos steps flips % W1 pool W1 mean",
        "tensor shape max_diff rel_l2 1-cos steps flips % W1",
        "layer |A-C| |B-C| cosine |B-A|/|A-C|",
        "checkpoint max_diff rel_l2 1-cos steps flips % W1 pool W1 mean",
    ):
        assert any(" ".join(x.split()) == heads for x in (out + series).splitlines()), heads
    for table, count in zip([*tables[0], *tables[1]], (7 + optimizer, 10, 7, 2), strict=True):
        rows = [
            line.split()[0] for line in table.split("\n \n")[0].splitlines()[1:] if line.strip()
        ]
        names = rows[:count]
        assert len(set(names)) == count, table
    assert "--json has them whole" in " ".join(err.split())


@given(st.lists(st.text("ab.", min_size=1, max_size=40), unique=True, max_size=30))
def test_shortened_names_are_short_and_apart(names):
    short = shortened(names, 12)
    assert max(map(len, short), default=0) <= 12
    assert len(set(short)) == len(names)
    assert all(a == b for a, b in zip(names, short, strict=True) if len(a) <= 12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.safetensors"], "two checkpoints or more"),
        (["a.safetensors", "nowhere.pt"], "nowhere.pt: no such file"),
        (["a.safetensors", "broken.safetensors"], "broken.safetensors is no safetensors file"),
        (["a.safetensors", "text.toml"], "no checkpoint by its name"),
        (["a.safetensors", "b.safetensors", "--map", "bad.toml"], "'nothing'"),
        (["a.safetensors", "b.safetensors", "--map", "gone.toml"], "cannot read the mapping"),
        (["a.safetensors", "b.safetensors", "--base", "gone.pt"], "no such file"),
        (["a.safetensors", "b.safetensors", "-o", "text.toml"], "is no folder"),
        (["a.safetensors", "b.safetensors", "-o", "text.toml/in"], "cannot write text.toml/in"),
        (["a.safetensors", "b.safetensors", "-o", "/proc/nowhere"], "cannot write /proc/nowhere"),
        (["a.safetensors", "b.safetensors", "--against", "last"], "first"),
    ],
)
def test_bad_input_gives_one_line(inside, place, arguments, message):
    out, err = inside("diff", *arguments, status=2)
    assert out == ""
    assert message in err
    assert err.strip().count("\n") == 0


def test_the_pooled_distance_can_be_left_out(inside, place):
    out, _ = inside("diff", "a.safetensors", "b.safetensors", "--no-pooled", "--json")
    assert json.loads(out)["overall"]["wasserstein_pooled"] is None
    assert json.loads(out)["overall"]["wasserstein_per_tensor"] == pytest.approx(0.01, rel=1e-5)
