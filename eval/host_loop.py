"""Closed-loop evaluation: many simulator processes, one batched policy.

Workers step physics; whenever a full batch of them waits for actions (or no other worker is busy) the policy is called once, always
with the same batch shape: unused rows repeat the first one and their actions are dropped, so a jitted policy compiles once. A worker
renders an observation only after a chunk was executed and the task is not finished. With more workers than batch rows, some simulate
while the policy computes.

Guarantees: an episode's initial state and random numbers are a function of its seed (and the index of the chunk), and it is scored exactly
once. Its result does not depend on the number of workers, their order, or on restarts, as long as a row of the policy's output does not
depend on the other rows. Compiled matrix products may round a row differently at another position of the batch: two runs may differ by
that, not by random numbers.

A worker that dies, hangs or raises is replaced and its episode starts again from its beginning, at most `retries` times; after that it is
listed as unscored, never counted as a failure of the policy.
"""

import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from eval.errors import EvaluationError, WorkerFailure
from eval.policies import Observations, Policy, chunk_seed
from eval.results import Journal
from eval.worker_process import WorkerCommand, WorkerProcess, hello, wait_for
from vpp_jax.common.progress import ProgressBar

SOURCE_STEPS = 120  # of an expert or random actions in one request: a slow simulator does not time out in a task that is not solved


@dataclass(frozen=True)
class Episode:
    """A chain of tasks from one initial state; it ends at the first task not solved. Single-task episodes have a chain of one."""

    index: int  # position in the protocol's list; identifies the episode in the journal
    tasks: tuple[str, ...]
    scene: str | None
    seed: int
    initial_state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Interface:
    """How a simulator's observations are named, and its control rate.

    Attributes:
      cameras: view of a policy -> camera of the simulator, where the names differ.
      proprio_key: the robot's state; '' if policies get none.
      control_hz: actions per second, of videos.
      instructions: task -> what the policy is told, instead of the simulator's own instruction.
    """

    cameras: Mapping[str, str] = field(default_factory=dict)
    proprio_key: str = ""
    control_hz: float = 30.0
    instructions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LoopOptions:
    workers: int = 2
    batch_size: int = 0  # of the policy; 0: number of workers
    n_action_steps: int = 0  # executed per predicted chunk; 0: the policy's n_action_steps
    max_steps: int = 120  # control steps per task
    retries: int = 2
    max_unscored: int = 3  # stop when so many episodes could not be scored: the cause is probably systematic
    request_timeout: float = 60.0
    start_timeout: float = 300.0
    video_episodes: frozenset[int] = frozenset()  # indices of the episodes to record as videos
    failure_videos: int = 0  # videos of so many unsolved episodes besides; until there are enough, every episode is recorded
    video_stride: int = 2  # control steps per video frame

    def __post_init__(self) -> None:
        if min(self.workers, self.max_steps, self.video_stride) < 1 or min(self.retries, self.n_action_steps) < 0:
            raise EvaluationError("workers, max_steps and video_stride must be at least 1, retries and n_action_steps at least 0")
        if not 0 <= self.batch_size <= self.workers:
            raise EvaluationError(f"batch_size={self.batch_size} must be between 1 and workers={self.workers} (0: number of workers)")


@runtime_checkable
class Recording(Protocol):
    """A video in the making. `name` is its path in the journal."""

    name: str

    def add(self, recording: Mapping[str, Any], last: bool) -> None:
        """The next images {view: uint8 [n h w 3]} and their steps int [n]."""
        ...

    def discard(self) -> None:
        """The rest does not arrive."""
        ...


class Phase(Enum):
    STARTING = "starting"  # the process builds its environment
    IDLE = "idle"  # waits for an episode
    BUSY = "busy"  # resets or simulates
    READY = "ready"  # has an observation, waits for actions
    RECORDING = "recording"  # the finished episode's frames are being sent


@dataclass
class Attempt:
    """An episode that one worker is running."""

    episode: Episode
    started: float
    instruction: str = ""
    initial_state_id: str = ""
    observation: dict[str, Any] = field(default_factory=dict)  # empty while the worker simulates
    steps: int = 0  # of the current task
    chunks: int = 0
    finished_tasks: list[dict[str, Any]] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)  # once the episode has ended and its images are being sent
    recording: Recording | None = None
    received: int = 0  # images of it

    @property
    def task(self) -> str:
        return self.episode.tasks[len(self.finished_tasks)]


@dataclass
class Slot:
    number: int
    process: WorkerProcess
    phase: Phase = Phase.STARTING
    attempt: Attempt | None = None


@dataclass(frozen=True)
class LoopReport:
    """Counters and timing of the loop; the episodes' results are in the journal."""

    simulator: dict[str, Any]  # the workers' hello
    restarts: int
    retried: dict[int, int]  # episode -> failed attempts, those of earlier processes included
    ended_early: int  # tasks that the simulator itself ended, unsolved and before max_steps
    unscored: dict[int, str]  # episode -> the last failure
    policy_calls: int
    policy_rows: int  # rows that belonged to an episode
    first_call_seconds: float  # contains compilation
    policy_seconds: float  # of all later calls
    waiting_seconds: float  # time that the policy waited for simulators
    start_seconds: float  # until the first simulator was ready; part of `seconds`
    seconds: float


class HostLoop:
    """Runs episodes to their end. `policy` is a policy, or 'expert' / 'random' for the actions of the simulators themselves."""

    def __init__(
        self,
        policy: Policy | str,
        command: WorkerCommand,
        journal: Journal,
        options: LoopOptions,
        log_directory: Path,
        interface: Interface,
        open_recording: Callable[[dict[str, Any]], Recording] | None = None,
        on_simulator: Callable[[dict[str, Any]], None] = lambda hello: None,
        restarts: Journal | None = None,
    ) -> None:
        """
        Args:
          journal: gets a line per finished episode; those it holds are not run.
          interface: how the simulator names what the policy sees.
          open_recording: journal record -> where the images of that episode go.
          on_simulator: called with the first simulator's hello before an episode is run; raises where it is not the right one.
          restarts: gets a line per simulator process that was replaced.
        """
        self.source = policy if isinstance(policy, str) else None
        self.policy = None if isinstance(policy, str) else policy
        if self.source not in (None, "expert", "random"):
            raise EvaluationError(f"unknown policy {policy!r}: a policy, 'expert' or 'random'")
        self.command, self.journal, self.options, self.log_directory = command, journal, options, log_directory
        self.open_recording, self.on_simulator, self.restart_journal = open_recording, on_simulator, restarts
        self.interface = interface
        self.batch_size = options.batch_size or options.workers
        own = self.policy.metadata.n_action_steps if self.policy else min(options.max_steps, SOURCE_STEPS)
        self.n_action_steps = options.n_action_steps or own
        horizon = self.policy.metadata.action_horizon if self.policy else self.n_action_steps
        if self.n_action_steps > horizon:
            raise EvaluationError(f"n_action_steps={self.n_action_steps} is more than the policy predicts (action_horizon={horizon})")
        self.pending: deque[Episode] = deque()
        self.slots: list[Slot] = []
        earlier = restarts.records if restarts else []
        self.failures = Counter(record["index"] for record in earlier if record["index"] is not None)
        self.attempts: Counter[int] = Counter()  # failed ones in this process
        self.failure_videos = sum("video" in record and not _solved(record) for record in journal.records)
        self.unscored: dict[int, str] = {}
        self.simulator: dict[str, Any] = {}
        self.restarts = len(earlier)
        self.failed_starts = self.policy_calls = self.policy_rows = 0
        self.first_call_seconds = self.policy_seconds = self.waiting_seconds = self.started = self.start_seconds = 0.0

    def run(self, episodes: Sequence[Episode]) -> LoopReport:
        """Runs the episodes that the journal does not hold yet."""
        self.started = time.monotonic()
        done = {record["index"] for record in self.journal.records}
        self.pending.extend(episode for episode in episodes if episode.index not in done)
        self.progress = ProgressBar("episodes", len(episodes), len(done), interval_s=15.0)
        try:
            for number in range(min(self.options.workers, len(self.pending))):
                self.slots.append(Slot(number, self._start_process(number)))
            while self.pending or any(slot.attempt for slot in self.slots):
                self._turn()
        finally:
            self.progress.close()
            finished_cleanly = sys.exc_info()[0] is None
            for slot in self.slots:
                slot.process.close() if finished_cleanly and not slot.process.waiting else slot.process.kill()
        return LoopReport(
            simulator=self.simulator,
            restarts=self.restarts,
            retried=dict(self.failures),
            ended_early=sum("ended" in task for record in self.journal.records for task in record["tasks"]),
            unscored=self.unscored,
            policy_calls=self.policy_calls,
            policy_rows=self.policy_rows,
            first_call_seconds=self.first_call_seconds,
            policy_seconds=self.policy_seconds,
            waiting_seconds=self.waiting_seconds,
            start_seconds=self.start_seconds,
            seconds=time.monotonic() - self.started,
        )

    # --- one turn: assign episodes, call the policy if a batch is complete, otherwise wait for a worker -----------------------

    def _turn(self) -> None:
        for slot in self.slots:
            if slot.phase is Phase.IDLE and self.pending:
                self._begin(slot, self.pending.popleft())
        ready = [slot for slot in self.slots if slot.phase is Phase.READY]
        busy = [slot for slot in self.slots if slot.process.waiting]
        # a starting worker is not waited for: its first episode has not been handed out
        arriving = any(slot.attempt for slot in busy)
        if len(ready) >= self.batch_size or (ready and not arriving):
            self._act(ready[: self.batch_size])
            return
        if not busy:
            raise EvaluationError("no worker is left although episodes are unfinished")
        before = time.monotonic()
        wait_for([slot.process for slot in busy], min(slot.process.deadline for slot in busy) - before + 0.01)
        self.waiting_seconds += time.monotonic() - before
        for slot in busy:
            self._collect(slot)

    def _start_process(self, number: int) -> WorkerProcess:
        process = WorkerProcess(self.command, self.log_directory / f"worker_{number}.log")
        options = self.options
        render = self.policy is not None or bool(options.video_episodes or options.failure_videos)
        process.send(hello(render), options.start_timeout)
        return process

    def _begin(self, slot: Slot, episode: Episode) -> None:
        slot.attempt = Attempt(episode, time.monotonic())
        self._send(
            slot,
            {
                "command": "reset",
                "task": episode.tasks[0],
                "scene": episode.scene,
                "seed": episode.seed,
                "initial_state": episode.initial_state,
                "instruction": self.interface.instructions.get(episode.tasks[0], ""),
                "render": self.policy is not None,
                "video_stride": self.options.video_stride if self._recorded(episode) else 0,
            },
        )

    def _send(self, slot: Slot, request: dict[str, Any], phase: Phase = Phase.BUSY) -> None:
        slot.phase = phase
        try:
            slot.process.send(request, self.options.request_timeout)
        except WorkerFailure as failure:
            self._replace(slot, failure)

    def _collect(self, slot: Slot) -> None:
        try:
            reply = slot.process.receive()
        except WorkerFailure as failure:
            self._replace(slot, failure)
            return
        if reply is None:
            return
        if slot.phase is Phase.STARTING:
            if not self.simulator:
                self.simulator, self.start_seconds = reply, time.monotonic() - self.started
                self._check_actions(reply["action_mode"])
                self.on_simulator(reply)
            self.failed_starts = 0
            slot.phase = Phase.IDLE
        elif slot.phase is Phase.RECORDING:
            self._receive_recording(slot, reply)
        else:
            self._progress_episode(slot, reply)

    # --- one episode ---------------------------------------------------------------------------------------------------------

    def _progress_episode(self, slot: Slot, reply: dict[str, Any]) -> None:
        attempt = slot.attempt
        assert attempt is not None
        attempt.instruction = reply.get("instruction", attempt.instruction)
        attempt.initial_state_id = reply.get("initial_state_id", attempt.initial_state_id)
        attempt.observation = reply.get("observation", {})
        attempt.steps += reply.get("executed", 0)
        outcome = reply["outcome"]
        if not (outcome["success"] or outcome["done"] or attempt.steps >= self.options.max_steps):
            self._ask_for_actions(slot)
            return
        early = not (outcome["success"] or outcome.get("failure") or attempt.steps >= self.options.max_steps)
        attempt.finished_tasks.append(
            {
                "task": attempt.task,
                "instruction": attempt.instruction,
                "success": outcome["success"],
                "steps": attempt.steps,
                "chunks": attempt.chunks,
                **({"failure": outcome["failure"]} if outcome.get("failure") else {}),  # how the simulation left its bounds
                **({"ended": "by the simulator"} if early else {}),  # before max_steps
            }
        )
        if outcome["success"] and len(attempt.finished_tasks) < len(attempt.episode.tasks):
            attempt.steps = attempt.chunks = 0
            instruction = self.interface.instructions.get(attempt.task, "")
            following = {"command": "begin_task", "task": attempt.task, "instruction": instruction, "render": self.policy is not None}
            self._send(slot, following)
            return
        record = self._record(attempt)
        if self.open_recording is not None and self._shown(record):
            attempt.record, attempt.recording = record, self.open_recording(record)
            self._send(slot, {"command": "recording", "first": 0}, Phase.RECORDING)
        else:
            self._finish(slot, record)

    def _recorded(self, episode: Episode) -> bool:
        """Whether images of an episode are taken that is about to begin."""
        return episode.index in self.options.video_episodes or self.failure_videos < self.options.failure_videos

    def _shown(self, record: dict[str, Any]) -> bool:
        """Whether a finished episode becomes a video."""
        return record["index"] in self.options.video_episodes or (not _solved(record) and self.failure_videos < self.options.failure_videos)

    def _receive_recording(self, slot: Slot, reply: dict[str, Any]) -> None:
        attempt = slot.attempt
        assert attempt is not None
        assert attempt.recording is not None
        attempt.recording.add(reply, last=not reply["left"])
        attempt.received += len(reply["steps"])
        if reply["left"]:
            self._send(slot, {"command": "recording", "first": attempt.received}, Phase.RECORDING)
            return
        self.failure_videos += not _solved(attempt.record)
        self._finish(slot, attempt.record | {"video": attempt.recording.name})

    def _ask_for_actions(self, slot: Slot) -> None:
        attempt = slot.attempt
        assert attempt is not None
        if self.source is None:
            slot.phase = Phase.READY
            return
        seed = chunk_seed(attempt.episode.seed, len(attempt.finished_tasks), attempt.chunks)
        attempt.chunks += 1
        steps = min(self.n_action_steps, self.options.max_steps - attempt.steps)
        self._send(slot, {"command": "advance", "source": self.source, "steps": steps, "seed": seed, "render": False})

    def _act(self, slots: Sequence[Slot]) -> None:
        attempts = [slot.attempt for slot in slots if slot.attempt is not None]
        assert self.policy is not None
        before = time.monotonic()
        actions = call_policy(self.policy, attempts, self.batch_size, self.interface)
        elapsed = time.monotonic() - before
        if self.policy_calls:
            self.policy_seconds += elapsed
        else:
            self.first_call_seconds = elapsed
        self.policy_calls += 1
        self.policy_rows += len(attempts)
        for slot, attempt, chunk in zip(slots, attempts, actions, strict=True):
            attempt.chunks += 1
            attempt.observation = {}
            steps = min(self.n_action_steps, self.options.max_steps - attempt.steps)
            last = attempt.steps + steps >= self.options.max_steps  # no further observation is needed
            self._send(slot, {"command": "advance", "actions": chunk[:steps], "render": not last})

    def _record(self, attempt: Attempt) -> dict[str, Any]:
        """The journal's line of a finished episode."""
        episode = attempt.episode
        return {
            "index": episode.index,
            "scene": episode.scene,
            "seed": episode.seed,
            "initial_state_id": attempt.initial_state_id,
            "solved": sum(task["success"] for task in attempt.finished_tasks),
            "tasks": attempt.finished_tasks,
            "failed_attempts": self.failures[episode.index],
            "seconds": round(time.monotonic() - attempt.started, 3),
        }

    def _finish(self, slot: Slot, record: dict[str, Any]) -> None:
        self.journal.append(record)
        records = self.journal.records
        tried, solved = sum(len(entry["tasks"]) for entry in records), sum(entry["solved"] for entry in records)
        self.progress.update(len(records), note=f"{solved}/{tried} tasks solved, {solved / len(records):.2f} per episode")
        slot.attempt, slot.phase = None, Phase.IDLE

    def _check_actions(self, mode: str) -> None:
        """Actions of another kind than the simulator takes would move the robot somewhere, and score zero."""
        ours = self.policy.metadata.action_mode if self.policy else "relative" if self.source == "expert" else ""
        if ours and mode and ours != mode:
            who = "policy" if self.policy else "expert"
            raise EvaluationError(f"the {who} gives {ours} actions, but the simulator was made for {mode} ones (action_mode)")

    def _replace(self, slot: Slot, failure: WorkerFailure) -> None:
        """A new process for the slot; its episode is queued again or listed as unscored."""
        slot.process.kill()
        attempt, summary = slot.attempt, str(failure).splitlines()[0]  # below the first line: traceback, last output
        if slot.phase is Phase.STARTING:
            self.failed_starts += 1
            if not self.simulator or self.failed_starts > self.options.retries:
                raise EvaluationError(f"a simulator process does not start: {summary}") from failure
        self.restarts += 1
        if self.restart_journal is not None:
            interrupted = attempt.episode.index if attempt else None
            self.restart_journal.append({"index": interrupted, "worker": slot.number, "reason": summary})
        if attempt is not None:
            index = attempt.episode.index
            if attempt.recording is not None:
                attempt.recording.discard()
            self.failures[index] += 1
            self.attempts[index] += 1
            self.progress.message(f"episode {index}, attempt {self.attempts[index]}: {failure}")
            if self.attempts[index] > self.options.retries:
                self.unscored[index] = summary
                if len(self.unscored) >= self.options.max_unscored:
                    raise EvaluationError(f"{len(self.unscored)} episodes could not be scored, last: {summary}") from failure
            else:
                self.pending.append(attempt.episode)
        slot.attempt, slot.phase, slot.process = None, Phase.STARTING, self._start_process(slot.number)


def call_policy(policy: Policy, attempts: Sequence[Attempt], batch_size: int, interface: Interface) -> np.ndarray:
    """Actions [n k a] for n <= batch_size attempts; the policy always gets `batch_size` rows; unused ones repeat the first."""
    metadata = policy.metadata
    rows = [*attempts, *[attempts[0]] * (batch_size - len(attempts))]
    observations = [attempt.observation for attempt in rows]
    keys = {view: interface.cameras.get(view, view) for view in metadata.views}
    state = {"proprio": interface.proprio_key} if interface.proprio_key else {}
    missing = [f"{view} ({key})" for view, key in (keys | state).items() if key not in observations[0]]
    if metadata.proprio_dim and not state:
        missing.append("proprio (the benchmark's interface has no proprio_key)")
    if missing:
        offered = ", ".join(sorted(observations[0]))
        raise EvaluationError(f"the policy needs {', '.join(missing)}, the simulator's observation has {offered}")
    batch = Observations(
        images={view: np.stack([observation[key] for observation in observations]) for view, key in keys.items()},
        proprio=np.stack([np.asarray(observation.get(interface.proprio_key, ()), np.float32) for observation in observations]),
        text=[attempt.instruction for attempt in rows],
    )
    seeds = [chunk_seed(attempt.episode.seed, len(attempt.finished_tasks), attempt.chunks) for attempt in rows]
    actions = np.asarray(policy.act(batch, np.asarray(seeds, np.uint32)))
    expected = (batch_size, metadata.action_horizon, metadata.action_dim)
    if actions.shape != expected:
        raise EvaluationError(f"the policy returned actions of shape {actions.shape}, expected {expected}")
    actions = actions[: len(attempts)]
    for attempt, chunk in zip(attempts, actions, strict=True):
        if not np.isfinite(chunk).all():
            where = f"episode {attempt.episode.index}, '{attempt.instruction}', step {attempt.steps}"
            raise EvaluationError(f"the policy returned NaN or infinite actions in {where}")
    return actions


def _solved(record: Mapping[str, Any]) -> bool:
    """Whether every task of an episode was solved: a chain ends at the first one that is not."""
    return bool(record["tasks"][-1]["success"])
