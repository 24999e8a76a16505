"""The lab: arms, lock step, killed and resumed."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from roundoff.errors import CellError, RunError, UsageError
from roundoff.state.random_states import RandomStates
from roundoff.store.json import dumps, loads
from roundoff.training import lab as room
from roundoff.training.arms import parse_arm
from roundoff.training.experiment import Experiment, logged_steps
from roundoff.training.lab import Lab

HERE = Path(__file__).parent
TINY = str(HERE / "tiny.py")
ARMS = {
    "candidates": ("fa2@bf16", f"{TINY}:doubled"),
    "yardsticks": ("rerun", "ulp", "ulp@7", "data-order", "seed", "bf16"),
}


def experiment(**changes) -> Experiment:
    options = {"steps": 20, "repeats": 1, "sampled": 10, **ARMS, **changes}
    return Experiment(f"{TINY}:build", "torch-math", **options)


def repeat(**changes):
    return next(iter(experiment(**changes).all_repeats().values()))


def plain(record) -> dict:
    """As it would be on the disk: NaN is equal to itself there."""
    return loads(dumps(record).encode())


@pytest.fixture(scope="module")
def straight():
    return Lab(repeat()).run()


def by_step(record, arm, metric="rel_l2"):
    return {at["step"]: at[metric] for at in record["distances"][arm]}


def test_every_arm_has_one_difference(straight):
    assert set(by_step(straight, "rerun").values()) == {0.0}
    assert all(d > 0 for d in by_step(straight, "ulp").values())
    assert by_step(straight, "ulp")[1] < 1e-4 < by_step(straight, "data-order")[1]
    assert by_step(straight, "seed")[1] > 0.3
    assert 0 < by_step(straight, "fa2@bf16")[1] < by_step(straight, "data-order")[1]


def test_a_late_arm_is_the_baseline_until_it_starts(straight):
    assert min(by_step(straight, "ulp@7")) == 10
    assert [at["step"] for at in straight["log"]["ulp@7"]] == list(range(8, 21))
    late, base = straight["log"]["ulp@7"][0], straight["log"]["baseline"][7]
    assert late["loss"] == pytest.approx(base["loss"], rel=1e-5)


def test_the_baseline_is_not_moved_by_its_arms(straight):
    alone = Lab(repeat(candidates=(), yardsticks=(), sampled=0)).run()
    assert alone["log"]["baseline"] == straight["log"]["baseline"]


def test_losses_fall(straight):
    long = Lab(repeat(steps=120, candidates=(), yardsticks=("rerun",), sampled=0)).run()
    losses = [at["loss"] for at in long["log"]["baseline"]]
    assert losses[-1] < 0.7 * losses[0]
    assert long["log"]["rerun"] == long["log"]["baseline"]


def test_direct_errors_of_candidates_alone(straight):
    assert set(straight["direct"]) == {"fa2@bf16", f"{TINY}:doubled"}
    judged = straight["direct"]["fa2@bf16"]["gradient"]
    assert (judged["samples"], judged["redrawn"]) == (8, 2)
    assert straight["direct"]["fa2@bf16"]["update"]["samples"] == 8


def test_nothing_is_sampled_where_none_is_asked_for():
    found = Lab(repeat(steps=2, candidates=("fa2@bf16",), yardsticks=(), sampled=0)).run()
    assert found["direct"] == {}
    assert by_step(found, "fa2@bf16")[2] > 0


@pytest.mark.parametrize("stops", [(1,), (8, 9), (3, 12, 19)])
def test_killed_and_resumed_is_bit_for_bit_the_same(straight, tmp_path, monkeypatch, stops):
    monkeypatch.setattr(room, "SECONDS", 0.0)
    for stop in stops:

        def end(step, stop=stop):
            if step == stop:
                raise KeyboardInterrupt

        # The state of a step is saved after it is told: the interrupted step is taken again.
        with pytest.raises(KeyboardInterrupt):
            Lab(repeat(), tmp_path).run(end)
    assert plain(Lab(repeat(), tmp_path).run()) == plain(straight)
    assert len(list(tmp_path.glob("step-*"))) == 1


def test_kill_9_and_the_same_again(straight, tmp_path):
    code = (
        "import sys, os, signal, torch; torch.set_num_threads(1); sys.path.insert(0, sys.argv[1])\n"
        "import test_lab as t; t.room.SECONDS = 0.0\n"
        "t.Lab(t.repeat(), t.Path(sys.argv[2])).run("
        "lambda s: os.kill(os.getpid(), signal.SIGKILL) if s == 11 else None)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(HERE), str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert plain(Lab(repeat(), tmp_path).run()) == plain(straight)


def test_arms_whose_names_read_alike_keep_states_of_their_own(tmp_path, monkeypatch):
    source = Path(TINY).read_text()
    for place in ("a/b.py", "a_b.py"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text(source)
    arms = {
        "candidates": (f"{tmp_path}/a/b.py:doubled",),
        "yardsticks": (f"{tmp_path}/a_b.py:doubled",),
    }
    monkeypatch.setattr(room, "SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        Lab(repeat(steps=4, **arms), tmp_path / "state").run(_interrupt_at(3))
    assert len(list((tmp_path / "state").glob("step-*/*-*.safetensors"))) == 3


def test_a_damaged_state_is_told(tmp_path, monkeypatch):
    """Cut short, or one bit of a number flipped where every format still reads."""
    monkeypatch.setattr(room, "SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        Lab(repeat(), tmp_path).run(_interrupt_at(5))
    cut, direct, notes = (
        next(tmp_path.glob(f"step-*/{name}"))
        for name in ("*-ulp.safetensors", "direct.safetensors", "notes.json")
    )
    whole = {file: file.read_bytes() for file in (cut, direct, notes)}
    assert b'"step": 3' in whole[notes]
    for file, broken in (
        (cut, whole[cut][:-9]),
        (direct, whole[direct][:-9] + bytes([whole[direct][-9] ^ 1]) + whole[direct][-8:]),
        (notes, whole[notes].replace(b'"step": 3', b'"step": 8', 1)),
    ):
        file.write_bytes(broken)
        with pytest.raises(RunError, match=r"^the state in .* is damaged .* remove") as raised:
            Lab(repeat(), tmp_path).run()
        assert "\n" not in str(raised.value)
        file.write_bytes(whole[file])


def _interrupt_at(stop):
    def tell(step):
        if step == stop:
            raise KeyboardInterrupt

    return tell


def test_fp16_trains_with_loss_scaling():
    found = Lab(repeat(candidates=("fp16",), yardsticks=("rerun",), steps=6, sampled=6)).run()
    assert by_step(found, "fp16")[6] > 0
    base = Lab(repeat(candidates=(), yardsticks=("fp32", "rerun"), steps=4, format="fp16")).run()
    assert by_step(base, "rerun")[4] == 0 < by_step(base, "fp32")[4]


def test_a_patch_must_keep_the_parameters():
    says = "arm .*:replacing., step 1: .* keep the model.s own parameters"
    with pytest.raises(CellError, match=says):
        Lab(repeat(candidates=(f"{TINY}:replacing",), yardsticks=())).run()


def test_an_attention_of_the_users_is_told_from_a_patch():
    assert parse_arm(f"{TINY}:attention").variant.over
    assert not parse_arm(f"{TINY}:doubled").variant.over


@pytest.mark.parametrize(
    ("text", "says"),
    [("fa22", "did you mean 'fa2'"), ("upl", "did you mean 'ulp'"), ("seed@3", "begins with the")],
)
def test_unknown_arms(text, says):
    with pytest.raises(UsageError, match=says):
        parse_arm(text)


def test_bad_experiments():
    for changes in (
        {"steps": 0}, {"repeats": 0}, {"threads": 0}, {"sampled": -1}, {"long": -1},
        {"format": "bf8"}, {"yardsticks": ("ulp@20",)},
    ):  # fmt: skip
        with pytest.raises(UsageError):
            experiment(**changes)


def test_ids_know_what_was_asked():
    ids = {repeat().id, repeat(steps=21).id, repeat(seed=1).id, repeat(yardsticks=("ulp",)).id}
    assert len(ids) == 4
    # A repeat is the same whatever the number of repeats.
    assert set(experiment(repeats=1).all_repeats()) < set(experiment(repeats=3).all_repeats())


def test_fp16_runs_in_few_repeats_on_a_cpu():
    many = experiment(repeats=9, yardsticks=("fp16", "ulp"))
    held = [any(a.format == "fp16" for a in many.arms_of(i)) for i in range(9)]
    assert held == [True] * 3 + [False] * 6
    gpu = experiment(repeats=9, yardsticks=("fp16", "ulp"), device="cuda")
    assert all(len(gpu.arms_of(i)) == 4 for i in range(9))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_repeat_on_cuda(tmp_path, monkeypatch):
    from roundoff.training.peak import peak_of

    asked = Experiment("text", "torch-math", ("fa2@bf16", "fp16"), ("ulp", "bf16"), steps=6,
                       repeats=1, sampled=6, device="cuda")  # fmt: skip
    [one] = asked.all_repeats().values()
    monkeypatch.setattr(room, "SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        Lab(one, tmp_path).run(_interrupt_at(3))
    lab = Lab(one, tmp_path)
    found = lab.run()
    assert lab.baseline.device == "cuda"
    assert {arm for arm in found["distances"] if by_step(found, arm)[6] > 0} == set(
        found["distances"]
    )
    assert found["direct"]["fa2@bf16"]["gradient"]["samples"] >= 4
    assert peak_of(asked, "torch-math") > 0


def test_logged_steps_end_with_the_last():
    assert logged_steps(1) == [1]
    assert logged_steps(7) == [1, 2, 5, 7]
    assert logged_steps(200) == [1, 2, 5, 10, 20, 50, 100, 200]


def test_one_ulp_is_one_ulp():
    from roundoff.training.runner import Runner

    e = experiment()
    made = [Runner(e, 3, parse_arm("ulp")) for _ in range(2)]
    with made[0]:
        made[0].nudge()
    a, b = (torch.cat([p.detach().flatten() for p in r.task.model.parameters()]) for r in made)
    assert int((a != b).sum()) == 1
    at = int((a != b).nonzero())
    assert a[at] == torch.nextafter(b[at], torch.tensor(torch.inf))
    # ... and of the weight of a matrix whose ulp changes the first loss most.
    with made[1] as other:
        other.gradients(0)
    weights = list(made[1].task.model.parameters())
    ulps = torch.nextafter(b, torch.tensor(torch.inf)) - b
    felt = (ulps * torch.cat([p.grad.flatten() for p in weights])).abs()
    matrices = torch.cat([torch.full((p.numel(),), p.ndim > 1) for p in weights])
    assert felt[at] == felt[matrices].max()


@pytest.mark.parametrize(("workload", "seed"), [("text", 0), ("text", 5), ("text-to-image", 0)])
def test_one_ulp_is_not_lost_in_the_next_update(workload, seed):
    """A weight that was drawn had no more than a gradient: at seed 5 its ulp was gone at once."""
    asked = Experiment(workload, yardsticks=("ulp",), steps=2, repeats=1, seed=seed, sampled=0)
    [one] = asked.all_repeats().values()
    assert all(at["rel_l2"] > 0 for at in Lab(one).run()["distances"]["ulp"])


def test_the_process_is_left_as_it_was():
    torch.manual_seed(3)
    states, attention = RandomStates.here(), functional.scaled_dot_product_attention
    expected = torch.rand(3)
    states.put_back()
    Lab(repeat(steps=8, sampled=4)).run()
    assert torch.equal(torch.rand(3), expected)
    assert functional.scaled_dot_product_attention is attention
    assert not torch.is_autocast_enabled("cpu")
