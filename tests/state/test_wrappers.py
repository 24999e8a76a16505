"""Names of weights without what wrappers put into them."""

import pytest

from roundoff.state.wrappers import unwrapped_name


@pytest.mark.parametrize(
    ("name", "found"),
    [("_orig_mod.a.w", "a.w"), ("a.module.w", "a.module.w"), ("module.a.w", "module.a.w"),
     ("a._fsdp_wrapped_module.w", "a.w"), ("w", "w"), ("_orig_mod.module.w", "module.w")],
)  # fmt: skip
def test_names_without_wrappers(name, found):
    assert unwrapped_name(name) == found
