"""The host loop with a fake simulator: fixed batches, retries, continuation, independence of the number of workers."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from eval.closed_loop import choose_video_episodes, evaluate
from eval.errors import EvaluationError
from eval.host_loop import Episode, HostLoop, Interface, LoopOptions
from eval.policies import PolicyMetadata, chunk_seed
from eval.results import Journal, read_json
from eval.worker_process import WorkerCommand
from vpp_jax.common.locks import LockedError, exclusive

INTERFACE = Interface({"primary": "rgb_static"}, "robot_obs")
HERE = str(Path(__file__).parent)
EPISODES = [Episode(index, ("count_up",), "A", 100 + index) for index in range(7)]


class Drifting:
    """Rows are independent: the action depends on the observed state, the instruction and the row's seed. Remembers every call."""

    def __init__(self, action_horizon: int = 6, n_action_steps: int = 4, strength: float = 0.035) -> None:
        self.metadata = PolicyMetadata(
            views={"primary": 64, "rgb_gripper": 64}, action_dim=7, action_horizon=action_horizon, n_action_steps=n_action_steps
        )
        self.strength = strength
        self.calls: list[dict] = []

    def act(self, observations, seeds):
        self.calls.append(
            {
                "shapes": {view: image.shape for view, image in observations.images.items()} | {"proprio": observations.proprio.shape},
                "rows": len(observations),
                "seeds": seeds.tolist(),
            }
        )
        sign = np.array([1.0 if text == "count up" else -1.0 for text in observations.text])
        noise = np.stack([np.random.default_rng(int(seed)).normal(size=(self.metadata.action_horizon, 7)) for seed in seeds])
        pull = self.strength * sign - 0.02 * observations.proprio[:, 0]
        return (pull[:, None, None] + 0.2 * noise).astype(np.float32)


def command(**kwargs) -> WorkerCommand:
    return WorkerCommand("fake_simulator:Counter", kwargs, "fake_simulator:expert", variables={"PYTHONPATH": HERE})


def run(directory: Path, policy=None, episodes=EPISODES, environment=None, **options):
    policy = policy or Drifting()
    options = {"workers": 2, "max_steps": 40, "request_timeout": 20.0} | options
    with Journal(directory / "episodes.jsonl") as journal:
        loop = HostLoop(policy, command(**(environment or {})), journal, LoopOptions(**options), directory / "logs", INTERFACE)
        report = loop.run(episodes)
        records = sorted(journal.records, key=lambda record: record["index"])
    return records, report


def comparable(records):
    """Journal lines without what may differ between runs: the clock and the failures on the way."""
    return [{key: value for key, value in record.items() if key not in ("seconds", "failed_attempts")} for record in records]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """One undisturbed run."""
    records, report = run(tmp_path_factory.mktemp("reference"))
    assert report.restarts == 0
    return comparable(records)


def test_reference_run_is_complete_and_mixed(reference):
    assert [record["index"] for record in reference] == list(range(7))
    assert {record["solved"] for record in reference} == {0, 1}  # otherwise equality below would prove little
    for record in reference:
        (task,) = record["tasks"]
        assert task["steps"] <= 40
        assert task["chunks"] == -(-task["steps"] // 4)


@pytest.mark.parametrize(("workers", "batch_size"), [(1, 0), (3, 0), (4, 2)])
def test_results_do_not_depend_on_the_number_of_workers(reference, tmp_path, workers, batch_size):
    records, _ = run(tmp_path, workers=workers, batch_size=batch_size, environment={"delay": 0.001})
    assert comparable(records) == reference


def test_the_policy_sees_one_batch_shape(tmp_path):
    policy = Drifting()
    _, report = run(tmp_path, policy, workers=3)
    shapes = {json.dumps(call["shapes"], sort_keys=True) for call in policy.calls}
    assert shapes == {'{"primary": [3, 200, 200, 3], "proprio": [3, 15], "rgb_gripper": [3, 84, 84, 3]}'}
    assert {call["rows"] for call in policy.calls} == {3}
    assert report.policy_calls == len(policy.calls)
    assert report.policy_rows < 3 * report.policy_calls  # 7 episodes on 3 rows: some calls were padded
    # padding repeats the first row; every real row's seed belongs to exactly one (episode, chunk)
    allowed = {chunk_seed(episode.seed, 0, chunk): (episode.index, chunk) for episode in EPISODES for chunk in range(10)}
    real = [seed for call in policy.calls for place, seed in enumerate(call["seeds"]) if place == 0 or seed != call["seeds"][0]]
    assert len(real) == len(set(real)) == report.policy_rows
    assert set(real) <= allowed.keys()


def test_execute_never_exceeds_the_chunk(tmp_path):
    with pytest.raises(ValueError, match=r"n_action_steps=7 is more than the policy predicts \(action_horizon=6\)"):
        run(tmp_path, n_action_steps=7)
    with pytest.raises(ValueError, match="n_action_steps=9 must be between 1 and action_horizon=6"):
        Drifting(n_action_steps=9)


def test_an_expert_is_asked_for_a_part_of_a_long_task(tmp_path):
    """The timeout is that of one request: tasks that are not solved would be those whose slow simulator did not answer in time."""
    records, _ = run(tmp_path, "expert", EPISODES[:1], {"goal": 1000.0}, max_steps=300)
    assert (records[0]["tasks"][0]["steps"], records[0]["tasks"][0]["chunks"]) == (300, 3)


def test_one_drawing_per_executed_chunk(tmp_path):
    log = tmp_path / "renders"
    records, _ = run(tmp_path, environment={"render_log": str(log)})
    # one drawing per prediction: none for the last chunk, whose observation nobody would use
    assert len(log.read_text().splitlines()) == sum(record["tasks"][0]["chunks"] for record in records)


def test_a_killed_worker_costs_time_but_no_result(reference, tmp_path):
    records, report = run(tmp_path, environment={"trouble": {"kill": 102}, "once": str(tmp_path / "once")})
    assert report.restarts == 1
    assert report.retried == {2: 1}
    assert [record["failed_attempts"] for record in records] == [0, 0, 1, 0, 0, 0, 0]
    assert comparable(records) == reference


def test_a_hanging_worker_is_replaced(reference, tmp_path):
    records, report = run(tmp_path, environment={"trouble": {"hang": 101}, "once": str(tmp_path / "once")}, request_timeout=1.5)
    assert report.retried == {1: 1}
    assert comparable(records) == reference


def test_an_episode_that_always_breaks_is_never_scored(reference, tmp_path):
    records, report = run(tmp_path, environment={"trouble": {"raise": 103}}, retries=1)
    assert report.retried == {3: 2}
    assert "the simulation diverged" in report.unscored[3]
    assert comparable(records) == [record for record in reference if record["index"] != 3]


def test_systematic_failure_stops_with_the_reason(tmp_path):
    episodes = [Episode(index, ("fly",), "A", index) for index in range(20)]
    with pytest.raises(EvaluationError, match=r"3 episodes could not be scored.*unknown task 'fly'"):
        run(tmp_path, episodes=episodes, retries=0)
    with pytest.raises(EvaluationError, match=r"does not start.*no_such_argument"):
        run(tmp_path, environment={"no_such_argument": 1})


def test_a_chain_continues_from_the_state_reached_and_ends_at_the_first_failure(tmp_path):
    episodes = [
        Episode(0, ("count_up", "count_down", "count_up"), "D", 1, {"state": 0.0}),
        Episode(1, ("count_down", "count_up"), "D", 2, {"state": 0.0}),
    ]
    records, _ = run(tmp_path, "expert", episodes)
    assert [record["solved"] for record in records] == [3, 2]
    assert [task["instruction"] for task in records[0]["tasks"]] == ["count up", "count down", "count up"]

    class Upwards(Drifting):
        def act(self, observations, seeds):
            return np.abs(super().act(observations, seeds))

    records, _ = run(tmp_path / "upwards", Upwards(), episodes)
    assert [record["solved"] for record in records] == [1, 0]
    assert [len(record["tasks"]) for record in records] == [2, 1]


def test_nan_actions_and_wrong_shapes_are_refused(tmp_path):
    class Broken(Drifting):
        def act(self, observations, seeds):
            actions = super().act(observations, seeds)
            actions[0, 0, 0] = np.nan
            return actions

    with pytest.raises(EvaluationError, match="NaN or infinite actions in episode 0, 'count up', step 0"):
        run(tmp_path, Broken(), workers=1)

    class Narrow(Drifting):
        def act(self, observations, seeds):
            return super().act(observations, seeds)[..., :6]

    with pytest.raises(EvaluationError, match=r"shape \(1, 6, 6\), expected \(1, 6, 7\)"):
        run(tmp_path, Narrow(), workers=1)

    blind = Drifting()
    blind.metadata.views["rgb_wrist"] = 64
    with pytest.raises(EvaluationError, match=r"needs rgb_wrist \(rgb_wrist\), the simulator's observation has rgb_gripper, rgb_static"):
        run(tmp_path, blind, workers=1)


# --- the whole directory: evaluation.json, journal, videos, results.json ------------------------------------------------------------


def whole(out: Path, policy="expert", episodes=EPISODES, environment=None, protocol=None, **options):
    return evaluate(
        out,
        episodes=episodes,
        policy=policy,
        command=command(**(environment or {})),
        options=LoopOptions(**{"workers": 2, "max_steps": 40} | options),
        protocol=protocol or {"benchmark": "counting"},
        published=True,
        summarize=lambda records: {"solved": sum(record["solved"] for record in records), "of": len(records)},
        interface=INTERFACE,
        argv=["vpp", "eval", "counting"],
    )


def journal_lines(directory: Path):
    lines = (directory / "episodes.jsonl").read_text().splitlines()
    return sorted((json.loads(line) for line in lines), key=lambda record: record["index"])


def test_directory_of_an_evaluation(tmp_path):
    results = whole(tmp_path, video_episodes=choose_video_episodes(EPISODES, 2))
    assert results["complete"]
    assert results["metrics"] == {"solved": 7, "of": 7}
    assert results == read_json(tmp_path / "results.json")
    assert results["simulator"]["environment_version"] == "fake-1"
    assert results["conditions"] == {"simulator": "fake_simulator:Counter", "version": "fake-1", "renderer": "none"}
    assert results["published"]
    videos = [json.loads(line).get("video") for line in (tmp_path / "episodes.jsonl").read_text().splitlines()]
    assert sorted(filter(None, videos)) == ["videos/00000_A_count_up.mp4", "videos/00001_A_count_up.mp4"]
    first = (tmp_path / "results.json").read_bytes()
    whole(tmp_path, video_episodes=choose_video_episodes(EPISODES, 2))
    assert (tmp_path / "results.json").read_bytes() == first  # nothing left to do, nothing rewritten


def test_a_policy_trained_elsewhere_is_announced(tmp_path, capsys):
    policy = Drifting()
    policy.metadata = dataclasses.replace(policy.metadata, recorded_in={"simulator": "fake_simulator:Counter", "version": "fake-0"})
    results = whole(tmp_path, policy, EPISODES[:1])
    assert results["differences"] == {"version": {"trained": "fake-0", "evaluated": "fake-1"}}
    assert "trained on data of other conditions: version fake-0 (here fake-1)" in capsys.readouterr().err
    assert whole(tmp_path / "same", Drifting(), EPISODES[:1])["differences"] == {}
    assert "other conditions" not in capsys.readouterr().err


def test_recording_does_not_change_results(tmp_path):
    plain, recorded = Drifting(), Drifting()
    whole(tmp_path / "plain", plain)
    whole(tmp_path / "recorded", recorded, video_episodes=choose_video_episodes(EPISODES, 7))
    lines = [journal_lines(tmp_path / name) for name in ("plain", "recorded")]
    for record in lines[1]:
        del record["video"]
    assert comparable(lines[0]) == comparable(lines[1])


def test_a_stopped_evaluation_continues(reference, tmp_path):
    class Stopping(Drifting):
        def act(self, observations, seeds):
            if len(self.calls) == 17:
                raise KeyboardInterrupt
            return super().act(observations, seeds)

    with pytest.raises(KeyboardInterrupt):
        whole(tmp_path, Stopping())
    finished = len((tmp_path / "episodes.jsonl").read_text().splitlines())
    assert 0 < finished < 7
    assert not (tmp_path / "results.json").exists()
    results = whole(tmp_path, Drifting())
    assert results["continued_episodes"] == finished
    assert comparable(journal_lines(tmp_path)) == reference


def test_a_log_shows_the_running_average_and_the_time_left(tmp_path, capsys):
    whole(tmp_path)
    first, *_, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"1/7 episodes, .* elapsed, .* left  1/1 tasks solved, 1\.00 per episode", first)
    assert re.fullmatch(r"7/7 episodes, .* elapsed  7/7 tasks solved, 1\.00 per episode", last)


def test_results_lost_after_the_last_episode_name_the_simulator_again(tmp_path):
    before = whole(tmp_path)
    (tmp_path / "results.json").unlink()
    again = whole(tmp_path)
    assert again["continued_episodes"] == again["episodes"] == 7
    assert again["conditions"] == before["conditions"]
    assert again["simulator"]["environment_version"] == "fake-1"


def test_another_configuration_is_refused(tmp_path):
    whole(tmp_path)
    with pytest.raises(EvaluationError, match=r"loop\.max_steps: was 40, is 50"):
        whole(tmp_path, max_steps=50)
    with pytest.raises(EvaluationError, match="policy: was 'expert', is 'random'"):
        whole(tmp_path, policy="random")


def test_a_policy_call_longer_than_the_timeout_harms_no_recording(tmp_path):
    """The images of an episode do not fit into the pipe, and the loop does not look while the policy computes."""

    class Slow(Drifting):
        def act(self, observations, seeds):
            time.sleep(0.7)
            return super().act(observations, seeds)

    results = whole(
        tmp_path,
        Slow(action_horizon=40, n_action_steps=20, strength=0.2),
        EPISODES[:4],
        video_episodes=choose_video_episodes(EPISODES, 4),
        batch_size=1,
        request_timeout=0.5,
        environment={"size": 600},
    )
    assert results["failures"]["worker_restarts"] == 0
    assert len(list((tmp_path / "videos").iterdir())) == 4


def test_two_processes_in_one_directory_are_refused(tmp_path):
    with (
        exclusive(tmp_path / "lock", "somebody"),
        pytest.raises(LockedError, match=rf"is run by another process \(process {os.getpid()}\)"),
    ):
        whole(tmp_path)
    assert whole(tmp_path)["complete"]


def test_finished_episodes_of_an_unknown_evaluation_are_refused(tmp_path):
    whole(tmp_path)
    (tmp_path / "evaluation.json").unlink()
    with pytest.raises(EvaluationError, match=r"has 7 finished episodes, but no evaluation\.json"):
        whole(tmp_path)


def test_another_version_of_the_simulator_is_refused(tmp_path, monkeypatch):
    stopped = whole(tmp_path, environment={"trouble": {"raise": 103}}, retries=0)
    assert not stopped["complete"]
    monkeypatch.setenv("FAKE_VERSION", "fake-2")
    with pytest.raises(EvaluationError, match=r"simulator\.environment_version: was 'fake-1', is 'fake-2'"):
        whole(tmp_path, environment={"trouble": {"raise": 103}}, retries=0)


def test_the_weights_identify_a_policy_not_the_path_of_its_checkpoint(tmp_path):
    def stored(path: str, weights: str) -> Drifting:
        policy = Drifting()
        policy.metadata = dataclasses.replace(policy.metadata, checkpoint=path, weights_hash=weights)
        return policy

    whole(tmp_path, stored("runs/policy", "abc"))
    whole(tmp_path, stored("../somewhere/runs/policy", "abc"))
    with pytest.raises(EvaluationError, match=r"policy\.weights_hash: was 'abc', is 'abd'"):
        whole(tmp_path, stored("runs/policy", "abd"))


def test_restarts_are_counted_over_all_starts_of_an_evaluation(tmp_path):
    broken = {"environment": {"trouble": {"raise": 103}}, "retries": 1}
    assert whole(tmp_path, **broken)["failures"]["worker_restarts"] == 2
    failures = whole(tmp_path, **broken)["failures"]
    assert failures["worker_restarts"] == 4
    assert failures["failed_attempts"] == {"3": 4}
    assert list(failures["unscored"]) == ["3"]


def test_tasks_that_the_simulator_ends_itself_are_counted(tmp_path):
    results = whole(tmp_path, environment={"limit": 5})
    assert results["failures"]["ended_by_simulator"] == 7
    assert all(record["tasks"][0]["ended"] == "by the simulator" for record in journal_lines(tmp_path))
    assert whole(tmp_path / "in_time", environment={"limit": 40})["failures"]["ended_by_simulator"] == 0


def test_actions_of_another_kind_are_refused(tmp_path):
    with pytest.raises(EvaluationError, match="the expert gives relative actions, but the simulator was made for absolute ones"):
        whole(tmp_path, environment={"action_mode": "absolute"})
    policy = Drifting()
    policy.metadata = dataclasses.replace(policy.metadata, action_mode="relative")
    with pytest.raises(EvaluationError, match="the policy gives relative actions"):
        whole(tmp_path, policy, environment={"action_mode": "absolute"})


def test_videos_of_failures(tmp_path):
    whole(tmp_path, Drifting(), failure_videos=1, workers=1)
    failed = [record for record in journal_lines(tmp_path) if not record["solved"]]
    assert len(failed) > 1
    video = f"videos/{failed[0]['index']:05d}_A_count_up.mp4"
    assert [record.get("video") for record in failed] == [video] + [None] * (len(failed) - 1)
    assert [path.name for path in (tmp_path / "videos").iterdir()] == [Path(video).name]


def test_a_failed_start_leaves_nothing_in_the_way(tmp_path):
    with pytest.raises(EvaluationError, match="does not start"):
        whole(tmp_path, environment={"no_such_argument": 1})
    assert whole(tmp_path)["complete"]


def test_unscored_episodes_make_the_results_incomplete_and_are_tried_again(tmp_path):
    trouble = {"trouble": {"raise": 103}, "once": ""}
    results = whole(tmp_path, environment=trouble, retries=0)
    assert not results["complete"]
    assert not results["published"]
    assert results["metrics"] == {"solved": 6, "of": 6}
    assert list(results["failures"]["unscored"]) == ["3"]
    assert whole(tmp_path, environment=trouble, retries=0)["continued_episodes"] == 6


def test_the_loop_itself_needs_no_jax(project):
    code = "import sys, eval.host_loop, eval.closed_loop, eval.benchmarks.calvin, vpp_jax.cli.eval; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=project)
