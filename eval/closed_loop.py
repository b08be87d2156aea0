"""One closed-loop evaluation in one directory: identity check, journal, loop, videos, `results.json`.

The directory holds `evaluation.json` (what is evaluated, written first), `episodes.jsonl` (one line per finished episode),
`restarts.jsonl` (one per simulator process that was replaced), `videos/`, `logs/` and, at the end, `results.json`. The same call on the
same directory resumes; a different configuration, and a second process at the same time, are refused.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.conditions import conditions, differences, differences_text
from eval.errors import EvaluationError
from eval.host_loop import Episode, HostLoop, Interface, LoopOptions, LoopReport, Recording
from eval.policies import Policy
from eval.results import Journal, read_json, write_json, write_results
from eval.worker_process import WorkerCommand
from vpp_jax.common.json_values import flatten_dict, to_jsonable
from vpp_jax.common.locks import exclusive


def evaluate(
    out: Path,
    *,
    episodes: Sequence[Episode],
    policy: Policy | str,
    command: WorkerCommand,
    options: LoopOptions,
    protocol: Mapping[str, Any],
    summarize: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]],
    interface: Interface,
    published: bool = False,
    argv: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Runs `episodes` with `policy` (a policy, 'expert' or 'random') and returns the content of `results.json`.

    Args:
      protocol: describes what is measured; a resumed run must have the same protocol, policy and simulator.
      summarize: journal lines -> metrics.
      interface: how the simulator names what the policy sees, and its control rate.
      published: whether the result, once it is complete, may stand beside published ones.
    """
    started = time.time()
    simulator_name = protocol.get("simulator", command.environment)
    recorded_in = {} if isinstance(policy, str) else policy.metadata.recorded_in
    loop_identity = {"n_action_steps": options.n_action_steps, "max_steps": options.max_steps}
    config = to_jsonable(
        {
            "protocol": protocol,
            "policy": policy if isinstance(policy, str) else asdict(policy.metadata),
            "environment": {"name": command.environment, "kwargs": command.kwargs, "expert": command.expert},
            "loop": loop_identity
            if isinstance(policy, str)
            else loop_identity | {"n_action_steps": options.n_action_steps or policy.metadata.n_action_steps},
        }
    )
    with (
        exclusive(out / "lock", f"evaluation {out}"),
        Journal(out / "episodes.jsonl") as journal,
        Journal(out / "restarts.jsonl") as restarts,
    ):
        identity = _Identity(out / "evaluation.json", config, journal)
        _check_journal(journal, episodes)
        continued = len(journal.records)

        def begin(hello: Mapping[str, Any]) -> None:
            identity.check_simulator(hello)
            if warning := differences_text(differences(recorded_in, conditions(simulator_name, hello, protocol))):
                print(warning, file=sys.stderr, flush=True)

        loop = HostLoop(
            policy,
            command,
            journal,
            options,
            out / "logs",
            interface,
            open_recording=_recordings(out, options, interface.control_hz),
            on_simulator=begin,
            restarts=restarts,
        )
        report = loop.run(episodes)
        simulator = report.simulator or identity.simulator()
        records = sorted(journal.records, key=lambda record: record["index"])
    complete = len(records) == len(episodes)
    previous = read_json(out / "results.json") if (out / "results.json").exists() and continued == len(episodes) else None
    if previous is not None and previous.get("config") == config:
        return previous  # nothing was left to do: the timing of the first run is still valid
    measured_in = conditions(simulator_name, simulator, protocol)
    results = {
        "complete": complete,
        "episodes": len(records),
        "continued_episodes": continued,
        "published": published and complete,
        "conditions": measured_in,
        "differences": differences(recorded_in, measured_in),
        "simulator": simulator,
        "workers": {"processes": options.workers, "batch_size": loop.batch_size, "python": command.python},
        "failures": {
            "worker_restarts": report.restarts,
            "failed_attempts": report.retried,
            "ended_by_simulator": report.ended_early,
            "unscored": report.unscored,
        },
        "timing": _timing(report, len(records) - continued),
    }
    path = write_results(
        out / "results.json",
        metrics=summarize(records),
        config=config,
        started=started,
        seconds=time.time() - started,
        command=argv,
        **results,
    )
    return read_json(path)


def choose_video_episodes(episodes: Sequence[Episode], count: int) -> frozenset[int]:
    """The first `count` episodes of the list, fixed before anything is run, so that videos are not selected by outcome."""
    return frozenset(episode.index for episode in episodes[:count])


class _Identity:
    """What `evaluation.json` says is being evaluated; a directory never mixes two evaluations.

    Of the policy its weights count, not how the path of its checkpoint is written. The simulator tells its versions and renderer when it
    has started; before a further episode is run they are compared with those of the finished ones.
    """

    def __init__(self, path: Path, config: dict[str, Any], journal: Journal):
        self._path, self._config, self._resumes = path, config, bool(journal.records)
        if not self._resumes:  # nothing to mix up
            write_json(path, config)
        elif not path.exists():
            raise EvaluationError(
                f"{path.parent} has {len(journal.records)} finished episodes, but no {path.name}, which says of what. Restore it, or "
                "choose another --out"
            )
        else:
            self._compare(read_json(path), config, ("simulator",))

    def simulator(self) -> dict[str, Any]:
        """The simulator of the finished episodes, where no other one was needed."""
        return read_json(self._path).get("simulator") or {}

    def check_simulator(self, hello: Mapping[str, Any]) -> None:
        simulator = {name: hello[name] for name in ("environment", "environment_version", "renderer", "versions")}
        if self._resumes:
            self._compare({"simulator": read_json(self._path).get("simulator")}, {"simulator": to_jsonable(simulator)}, ())
        else:
            write_json(self._path, self._config | {"simulator": simulator})

    def _compare(self, stored: Mapping[str, Any], config: Mapping[str, Any], apart: tuple[str, ...]) -> None:
        before, now = (flatten_dict({name: value for name, value in tree.items() if name not in apart}) for tree in (stored, config))
        ignored = {"policy.checkpoint"} if now.get("policy.weights_hash") else set()
        keys = [key for key in sorted((before.keys() | now.keys()) - ignored) if before.get(key) != now.get(key)]
        if keys:
            listed = "; ".join(f"{key}: was {before.get(key)!r}, is {now.get(key)!r}" for key in keys[:8])
            raise EvaluationError(
                f"{self._path.parent} holds a different evaluation ({listed}). Choose another --out, or remove that directory."
            )


def _check_journal(journal: Journal, episodes: Sequence[Episode]) -> None:
    seeds = {episode.index: episode.seed for episode in episodes}
    seen: set[int] = set()
    for record in journal.records:
        if record["index"] in seen or seeds.get(record["index"]) != record["seed"]:
            raise EvaluationError(f"{journal.path}: episode {record['index']} is a duplicate or not part of this protocol")
        seen.add(record["index"])


def _recordings(out: Path, options: LoopOptions, control_hz: float) -> Callable[[dict[str, Any]], Recording]:
    def open_recording(record: dict[str, Any]) -> Recording:
        from eval.recording import RolloutWriter  # only recorded evaluations need a video encoder

        task = record["tasks"][0]["task"] if len(record["tasks"]) == 1 else "chain"
        path = out / "videos" / f"{record['index']:05d}_{record['scene']}_{task}.mp4"
        return RolloutWriter(path, record, control_hz, options.video_stride, name=str(path.relative_to(out)))

    return open_recording


def _timing(report: LoopReport, episodes: int) -> dict[str, Any]:
    later_calls = max(report.policy_calls - 1, 0)
    return {
        "seconds": report.seconds,
        "simulator_start_seconds": report.start_seconds,
        "episodes_per_second": episodes / (report.seconds - report.start_seconds) if episodes else None,
        "policy_calls": report.policy_calls,
        "policy_first_call_seconds": report.first_call_seconds,
        "policy_call_seconds": report.policy_seconds / later_calls if later_calls else None,
        "policy_rows_used": report.policy_rows / report.policy_calls if report.policy_calls else None,
        "waiting_for_simulators_seconds": report.waiting_seconds,
    }
