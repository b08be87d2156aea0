"""The list of episodes and the counting of outcomes."""

import subprocess
import sys
from argparse import Namespace

import pytest

from eval.benchmarks.calvin import CALVIN
from eval.benchmarks.registry import get_benchmark
from eval.benchmarks.single_tasks import SingleTasks, summarize
from eval.calvin.task_names import FIXTURE_TASKS
from eval.errors import EvaluationError
from eval.statistics import wilson_interval


def test_every_cell_has_its_episodes_and_every_prefix_is_balanced():
    episodes = SingleTasks(scenes=("A", "D"), tasks=FIXTURE_TASKS, episodes=3).all_episodes()
    assert [episode.index for episode in episodes] == list(range(48))
    cells = [(episode.scene, episode.tasks[0]) for episode in episodes]
    assert len(set(cells[:16])) == 16
    assert all(cells.count(cell) == 3 for cell in set(cells))
    assert len({episode.seed for episode in episodes}) == 48


def test_an_initial_state_does_not_depend_on_what_else_is_evaluated():
    def seeds(protocol):
        found = {}
        for episode in protocol.all_episodes():
            found.setdefault((episode.scene, episode.tasks[0]), []).append(episode.seed)
        return found

    everything, little = (
        seeds(SingleTasks(("A", "D"), FIXTURE_TASKS, 4)),
        seeds(SingleTasks(("D",), ("turn_on_led",), 2)),
    )
    assert everything["D", "turn_on_led"][:2] == little["D", "turn_on_led"]
    assert seeds(SingleTasks(("A",), FIXTURE_TASKS, 1, seed=1))["A", "open_drawer"] != everything["A", "open_drawer"][:1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"scenes": ("E",)}, "unknown scene 'E'.*known: A, B, C, D"),
        ({"tasks": "open_dawer"}, "unknown task 'open_dawer', did you mean 'open_drawer'"),
        ({"scenes": ("A", "A")}, "duplicate scene"),
        ({"episodes": 0}, "at least one per scene and task"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(flags, message):
    given = {"dump": "", "sequences": 0, "scenes": ("A",), "tasks": "fixtures", "episodes": 1, "seed": 0, "max_steps": 0}
    given |= {"states": None}
    arguments = Namespace(**given | {"environment": "", "environment_kwargs": {}} | flags)
    with pytest.raises(EvaluationError, match=message):
        CALVIN.plan(arguments)


def test_benchmarks_are_found_by_name_or_place():
    assert get_benchmark("calvin") is CALVIN
    assert get_benchmark("eval.benchmarks.calvin:CALVIN") is CALVIN
    for name, message in (
        ("calvn", "unknown benchmark 'calvn', did you mean 'calvin'"),
        ("no_such_package:X", "cannot be imported: No module named 'no_such_package'"),
        ("eval.benchmarks.calvin:SCENES", "is a tuple, not a benchmark"),
    ):
        with pytest.raises(EvaluationError, match=message):
            get_benchmark(name)


def test_summary_counts_by_hand():
    def line(scene, task, success, steps):
        return {"scene": scene, "tasks": [{"task": task, "success": success, "steps": steps}]}

    records = [
        line("A", "open_drawer", True, 30),
        line("A", "open_drawer", True, 50),
        line("A", "open_drawer", False, 120),
        line("A", "turn_on_led", False, 120),
        line("D", "open_drawer", True, 10),
    ]
    summary = summarize(records, scenes=("A", "D"), tasks=("open_drawer", "turn_on_led"))
    drawer = summary["scenes"]["A"]["tasks"]["open_drawer"]
    assert (drawer["successes"], drawer["trials"], drawer["mean_steps"]) == (2, 3, 40)
    assert (drawer["low"], drawer["high"]) == wilson_interval(2, 3)
    assert summary["scenes"]["A"]["overall"]["trials"] == 4
    assert summary["overall"]["successes"] == 3
    assert summary["tasks"]["open_drawer"]["trials"] == 4
    assert summary["scenes"]["D"]["tasks"]["turn_on_led"] | {} == {
        "successes": 0,
        "trials": 0,
        "rate": None,
        "low": 0.0,
        "high": 1.0,
        "mean_steps": None,
    }


def test_fixture_tasks_are_tasks_and_load_no_simulator():
    from eval.calvin.tasks import TASKS

    assert set(FIXTURE_TASKS) < set(TASKS)
    code = "import sys, eval.benchmarks.calvin, data_pipelines.builders.calvin_mujoco; assert 'mujoco' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
