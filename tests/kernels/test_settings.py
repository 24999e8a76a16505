"""torch's settings: read completely, and put back whatever others do to them."""

import pytest
import torch

from roundoff.kernels import settings


def set_new_interface():
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"


def set_tf32():
    torch.backends.cuda.matmul.allow_tf32 = True


CHANGES = {
    "float32_matmul_precision": lambda: torch.set_float32_matmul_precision("medium"),
    "mkldnn.matmul.fp32_precision": set_new_interface,
    "cuda.matmul.fp32_precision": set_tf32,
    "default_dtype": lambda: torch.set_default_dtype(torch.float64),
    "default_device": lambda: torch.set_default_device("meta"),
    "deterministic": lambda: torch.use_deterministic_algorithms(True),
    "flush_subnormals": lambda: torch.set_flush_denormal(True),
    "math_sdp_reduction": lambda: torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True),
    "flash_sdp": lambda: torch.backends.cuda.enable_flash_sdp(False),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen_and_undone(name):
    before = settings.read()
    with settings.kept():
        CHANGES[name]()
        assert name in settings.changed(before)
    assert settings.changed(before) == {}


def test_a_change_is_undone_after_an_error():
    before = settings.read()

    @settings.kept()
    def fail():
        torch.set_default_dtype(torch.float64)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert settings.read() == before


def test_own_settings_are_in_force_inside_only():
    with settings.kept({"float32_matmul_precision": "medium"}):
        assert torch.get_float32_matmul_precision() == "medium"
    assert torch.get_float32_matmul_precision() == "highest"


def test_random_state_and_threads_are_put_back():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    with settings.kept():
        torch.rand(7)
        torch.manual_seed(5)
        torch.set_num_threads(threads + 1)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
