"""What a policy was trained on decides the defaults of its evaluation, and what differs is named."""

import json

import pytest

from eval.benchmarks.registry import get_benchmark
from eval.conditions import differences, differences_text
from eval.envs.calvin_mujoco.limits import VERSION
from vpp_jax.cli.eval import _parser

OURS = {"simulator": "calvin_mujoco", "version": VERSION, "quality": "faithful", "static_size": 128, "gripper_size": 64}
ORIGINAL = {"simulator": "calvin_pybullet", "static_size": 200, "gripper_size": 84}


def planned(recorded_in, *flags, environment_kwargs=None):
    given = [f"--environment_kwargs={json.dumps(environment_kwargs)}"] if environment_kwargs else []
    arguments = _parser(["calvin"]).parse_args(["calvin", "--checkpoint=x", *flags, *given])
    arguments.recorded_in = recorded_in
    return get_benchmark("calvin").plan(arguments)


@pytest.mark.parametrize("flags", [(), ("--sequences=10",)])
@pytest.mark.parametrize(
    ("recorded_in", "given", "expected"),
    [
        ({}, None, ("no_shadows", 200, 84)),
        (OURS, None, ("faithful", 128, 64)),
        (OURS, {"quality": "no_shadows", "static_size": 96}, ("no_shadows", 96, 64)),
        (ORIGINAL, None, ("faithful", 200, 84)),  # the closest there is
    ],
)
def test_defaults_follow_the_data(flags, recorded_in, given, expected):
    plan = planned(recorded_in, *flags, environment_kwargs=given)
    names = ("quality", "static_size", "gripper_size")
    assert tuple(plan.description[name] for name in names) == expected
    assert tuple(plan.environment_kwargs[name] for name in names) == expected


def test_a_simulator_of_your_own_is_not_described_by_our_choices():
    plan = planned(OURS, "--environment=my_simulators:Table")
    assert not plan.environment_kwargs
    assert "quality" not in plan.description


def test_differences():
    assert differences(OURS, OURS | {"renderer": "egl"}) == {}
    assert differences({}, OURS) == {}
    found = differences(OURS, OURS | {"version": "6", "static_size": 200})
    assert found == {"version": {"trained": VERSION, "evaluated": "6"}, "static_size": {"trained": 128, "evaluated": 200}}
    assert differences_text(found).endswith(f"of other conditions: version {VERSION} (here 6), static_size 128 (here 200)")
    assert set(differences(ORIGINAL | {"version": "3.2"}, OURS)) == {
        "simulator",
        "static_size",
        "gripper_size",
    }
    assert differences_text({}) == ""
