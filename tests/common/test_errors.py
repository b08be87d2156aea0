"""The hint at a similar name."""

from vpp_jax.common.errors import nearest


def test_nearest():
    assert nearest("stps", ["steps", "stage"]) == ", did you mean 'steps'?"
    assert nearest("zzz", ["steps"]) == ""
