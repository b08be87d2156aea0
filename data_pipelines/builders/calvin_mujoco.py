"""Demonstrations of the CALVIN table in MuJoCo: a scripted expert under action noise, written as RLDS.

The executed xyz action has Ornstein-Uhlenbeck noise; the label is the expert's action in the state that was reached. The states thus cover
a neighbourhood of the expert's path, and every label leads back to it. Only solved episodes are stored. An episode depends on (seed, split,
scene, task, number) only.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.builders import writer
from data_pipelines.builders.sharded import Recorded
from data_pipelines.errors import DataError
from data_pipelines.rlds import images
from data_pipelines.rlds import schema as rlds
from data_pipelines.rlds.dataset import RECORDED_IN
from data_pipelines.rlds.schema import Feature, Schema
from eval.calvin.task_names import EVALUATION_INSTRUCTIONS, FIXTURE_TASKS
from eval.envs.calvin_mujoco.limits import MAX_IMAGE, MIN_IMAGE, QUALITIES, SCENES, VERSION
from vpp_jax.common.config_fields import check_ranges, setting
from vpp_jax.common.errors import nearest

MAX_EPISODES = 1_000_000  # all are listed before the first one is recorded
ROBOT_OBS, SCENE_OBS, ACTION_WIDTH = 15, 24, 7
TEXTS = ("scene", "task", "episode_id", "renderer", "environment_version")


class Job(NamedTuple):
    """One episode to record."""

    split: str
    scene: str
    task: str
    number: int


@dataclass(frozen=True)
class Settings:
    """What to record; the bytes written depend on these settings only."""

    scenes: tuple[str, ...] = setting(("A", "B", "C"), "scenes, comma-separated", choices=SCENES)
    tasks: tuple[str, ...] = setting(FIXTURE_TASKS, "tasks, comma-separated")
    episodes: int = setting(10, "train episodes per scene and task", at_least=1, at_most=MAX_EPISODES)
    val_episodes: int = setting(0, "val episodes per scene and task (play: val runs per scene)", at_least=0, at_most=MAX_EPISODES)
    seed: int = setting(0, "seed of initial states, noise and instructions", at_least=0)
    action_noise: float = setting(
        0.3, "standard deviation of the noise on the executed xyz action (1 = 2 cm per step)", at_least=0, at_most=10
    )
    noise_memory: float = setting(0.8, "autocorrelation of the noise from one step to the next", at_least=0, less_than=1)
    hold_steps: int = setting(
        3, "steps recorded after success with the arm held still, so that action chunks end at rest", at_least=0, at_most=1000
    )
    max_attempts: int = setting(5, "attempts per episode, each with its own seed, before it is given up", at_least=1, at_most=1000)
    max_steps: int = setting(360, "steps per attempt", at_least=1, at_most=100_000)
    static_size: int = setting(200, "image size of the static camera in pixels", at_least=MIN_IMAGE, at_most=MAX_IMAGE)
    gripper_size: int = setting(84, "image size of the gripper camera in pixels", at_least=MIN_IMAGE, at_most=MAX_IMAGE)
    jpeg_quality: int = setting(95, "JPEG quality", at_least=1, at_most=100)
    quality: str = setting("no_shadows", "rendering preset of the environment", choices=QUALITIES)
    blocks: bool = setting(False, "put the blocks on the table (play always does); without them, only tasks without blocks are possible")
    hours: float = setting(
        0.0,
        "if positive: record this many simulated hours of play over all scenes instead of single episodes",
        at_least=0,
        at_most=10_000,
    )
    episodes_per_shard: int = setting(16, "episodes per file", at_least=1)

    def __post_init__(self):
        check_ranges(self)
        if not self.scenes or not self.tasks:
            raise DataError("a build needs at least one scene and one task")
        for name in ("scenes", "tasks"):
            given = getattr(self, name)
            if len(set(given)) < len(given):
                raise DataError(f"--{name}={','.join(given)} names one twice")


def check_tasks(settings: Settings) -> None:
    """DataError for tasks that the simulator does not have, before it is started."""
    known = tuple(EVALUATION_INSTRUCTIONS) if settings.blocks or settings.hours else FIXTURE_TASKS
    for task in settings.tasks:
        if task not in known:
            hint = "; tasks with blocks need --blocks" if task in EVALUATION_INSTRUCTIONS else nearest(task, known)
            raise DataError(f"--tasks names '{task}'{hint}; expected tasks among {', '.join(known)}")


def real_environment(settings: Settings):
    """The simulator with the cameras of `settings`."""
    from eval.envs.registry import make_environment  # needed to record, not to read

    environment: Any = make_environment(
        "calvin_mujoco",
        static_size=settings.static_size,
        gripper_size=settings.gripper_size,
        quality=settings.quality,
        blocks=settings.blocks,
    )
    unknown = [task for task in settings.tasks if task not in environment.tasks]
    if unknown:
        hint = "" if settings.blocks else "; tasks with blocks need --blocks"
        raise DataError(f"--tasks names {', '.join(unknown)}, expected tasks among {', '.join(environment.tasks)}{hint}")
    return environment


def scripted_expert(environment: Any, rng: np.random.Generator) -> np.ndarray | None:
    """The simulator's scripted expert: its action for the environment's current task and state."""
    from eval.experts.registry import get_expert

    return get_expert("calvin_mujoco")(environment, rng)


def training_instructions_for(task: str) -> Sequence[str]:
    """The instructions `task` is trained with; never the one it is evaluated with."""
    from eval.envs.calvin_mujoco.instructions import training_instructions

    return training_instructions(task)


def real_origin() -> dict[str, str]:
    """Renderer and version of the environment."""
    from eval.envs.calvin_mujoco.environment import VERSION
    from eval.envs.calvin_mujoco.rendering import renderer_name

    return {"renderer": renderer_name(), "environment_version": VERSION}


def written_settings(settings: Settings) -> dict[str, Any]:
    """What the bytes depend on: a build is never finished by another version of the environment."""
    return {**asdict(settings), "environment_version": VERSION}


def recorded_in(settings: Settings) -> dict[str, Any]:
    """What a policy's evaluation is compared with."""
    names = ("quality", "static_size", "gripper_size")
    return {"simulator": "calvin_mujoco", "version": VERSION, **{name: getattr(settings, name) for name in names}}


@dataclass(frozen=True)
class CalvinMujocoRecipe:
    """The recipe `data_pipelines.builders.sharded.build` follows.

    Attributes:
      make_environment: settings -> LanguageEnvironment; importable, as all of these, since it is sent to worker processes.
      expert: (environment, random numbers) -> action for the current task and state, or None to give up.
      instructions: task -> instructions to choose from.
      origin: () -> renderer and environment_version, noted with every episode.
    """

    plan: Settings
    make_environment: Callable[[Settings], Any] = real_environment
    expert: Callable[[Any, np.random.Generator], np.ndarray | None] = scripted_expert
    instructions: Callable[[str], Sequence[str]] = training_instructions_for
    origin: Callable[[], dict[str, str]] = real_origin
    name: str = "calvin_mujoco"
    version: str = "1.0.0"
    description: str = "Scripted demonstrations on the CALVIN table simulated in MuJoCo.\nOnly solved episodes; noise on the executed xyz."

    @property
    def episodes_per_shard(self) -> int:
        return self.plan.episodes_per_shard

    def settings(self) -> dict[str, Any]:
        return written_settings(self.plan)

    def metadata(self) -> dict[str, Any]:
        return {RECORDED_IN: recorded_in(self.plan)}

    def schema(self) -> Schema:
        return episode_schema(self.plan)

    def jobs(self) -> dict[str, list[Job]]:
        plan = self.plan
        return {
            split: [Job(split, scene, task, number) for scene in plan.scenes for task in plan.tasks for number in range(count)]
            for split, count in (("train", plan.episodes), ("val", plan.val_episodes))
            if count
        }

    def group(self, job: Job) -> str:
        return f"{job.scene}/{job.task}"

    def open(self) -> Any:
        return self.make_environment(self.plan)

    def record(self, resource: Any, job: Job) -> Recorded:
        """Attempts with new seeds until one is solved."""
        schema = self.schema()
        for attempt in range(self.plan.max_attempts):
            seed = episode_seed(self.plan.seed, job, attempt)
            steps = record_attempt(resource, self.expert, self.plan, job, self.instructions(job.task), seed)
            if steps is None:
                continue
            metadata = {"scene": job.scene, "task": job.task, "seed": seed, "episode_id": "/".join(map(str, job))} | self.origin()
            return Recorded((encode(schema, steps, metadata),), attempt + 1)
        return Recorded((), self.plan.max_attempts)


def episode_schema(plan: Settings) -> Schema:
    """The columns of the dataset."""

    def image(size: int, text: str) -> Feature:
        return Feature("image", "uint8", (size, size, 3), "jpeg", text)

    def vector(width: int, text: str) -> Feature:
        return Feature("tensor", "float32", (width,), "none", text)

    scalar, flag = Feature("tensor", "float32"), Feature("tensor", "bool")
    return Schema(
        steps={
            "observation/rgb_static": image(plan.static_size, "Static camera."),
            "observation/rgb_gripper": image(plan.gripper_size, "Camera on the gripper."),
            "observation/robot_obs": vector(ROBOT_OBS, "TCP xyz, TCP euler xyz, gripper width, 7 joint angles, last gripper command."),
            "observation/scene_obs": vector(SCENE_OBS, "Slider, drawer, button, switch, bulb, LED, three block poses."),
            rlds.ACTION: vector(ACTION_WIDTH, "The expert's action: relative xyz / 0.02 m, euler / 0.05 rad, gripper -1 closed, 1 open."),
            "action_executed": vector(ACTION_WIDTH, "The action with noise on xyz, clipped to [-1, 1]."),
            rlds.REWARD: scalar,
            rlds.DISCOUNT: scalar,
            rlds.IS_FIRST: flag,
            rlds.IS_LAST: flag,
            rlds.IS_TERMINAL: flag,
            rlds.LANGUAGE_INSTRUCTION: Feature("text"),
        },
        episode={**{f"episode_metadata/{name}": Feature("text") for name in TEXTS}, "episode_metadata/seed": Feature("tensor", "int64")},
    )


def episode_seed(seed: int, job: Job, attempt: int) -> int:
    """31-bit seed of one attempt at one episode."""
    words = [seed, *(zlib.crc32(text.encode()) for text in (job.split, job.scene, job.task)), job.number, attempt]
    return int(np.random.SeedSequence(words).generate_state(1)[0] >> 1)


def record_attempt(
    environment: Any,
    expert: Callable[[Any, np.random.Generator], np.ndarray | None],
    plan: Settings,
    job: Job,
    instructions: Sequence[str],
    seed: int,
) -> dict[str, list] | None:
    """Step columns of one attempt; None if the expert did not solve the task.

    Args:
      environment, expert: a `CalvinEnvironment`, or anything with its interface, and what acts in it.
      instructions: instructions to choose from.
      seed: of the initial state, the noise and the instruction.
    """
    expert_rng, noise_rng, text_rng = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(3))
    instruction = instructions[int(text_rng.integers(len(instructions)))]
    environment.reset(task=job.task, scene=job.scene, seed=seed, render=False)
    noise = ActionNoise(plan, noise_rng)
    columns: dict[str, list] = {name: [] for name in episode_schema(plan).steps}
    for _ in range(plan.max_steps):
        wanted = expert(environment, expert_rng)
        if wanted is None:
            return None
        action = np.asarray(wanted, np.float32)
        executed = noise.disturb(action)
        append_observation(columns, environment.observation(), plan)
        outcome = environment.advance(executed)
        append_step(columns, action, executed, float(outcome.success))
        if outcome.done or outcome.success:
            break
    else:
        return None
    if not outcome.success:
        return None
    hold = np.append(np.zeros(ACTION_WIDTH - 1), columns[rlds.ACTION][-1][-1]).astype(np.float32)
    for step in range(plan.hold_steps + 1):  # the last step only records the result of the motion before it
        append_observation(columns, environment.observation(), plan)
        append_step(columns, hold, hold, 0.0)
        if step < plan.hold_steps:
            environment.begin_task(job.task)  # the solved episode is over; continue from its state
            environment.advance(hold)
    finish_columns(columns, instruction)
    return columns


def finish_columns(columns: dict[str, list], instruction: str) -> None:
    """Adds the columns that depend on the length and the instruction only."""
    steps = len(columns[rlds.ACTION])
    columns[rlds.DISCOUNT] = [1.0] * steps
    columns[rlds.IS_FIRST] = [step == 0 for step in range(steps)]
    columns[rlds.IS_LAST] = columns[rlds.IS_TERMINAL] = [step == steps - 1 for step in range(steps)]
    columns[rlds.LANGUAGE_INSTRUCTION] = [instruction] * steps


def encode(schema: Schema, steps: dict[str, list], metadata: dict[str, Any]) -> bytes:
    """One record from step columns and episode metadata (names without their prefix)."""
    columns = {
        name: np.asarray(values, feature.dtype) if feature.kind == "tensor" else values
        for name, feature in schema.steps.items()
        for values in [steps[name]]
    }
    return writer.encode_episode(schema, columns, {f"episode_metadata/{name}": value for name, value in metadata.items()})


class ActionNoise:
    """Ornstein-Uhlenbeck noise on the executed xyz action, stationary: its standard deviation is constant over time."""

    def __init__(self, plan: Settings, rng: np.random.Generator):
        self._rng, self._memory = rng, plan.noise_memory
        self._noise = plan.action_noise * rng.standard_normal(3)
        self._fresh = plan.action_noise * np.sqrt(1 - plan.noise_memory**2)

    def disturb(self, action: np.ndarray) -> np.ndarray:
        """`action` with noise; xyz clipped to [-1, 1]."""
        executed = action.copy()
        executed[:3] = np.clip(action[:3] + self._noise, -1, 1)
        self._noise = self._memory * self._noise + self._fresh * self._rng.standard_normal(3)
        return executed


def append_observation(columns: dict[str, list], observation: dict[str, np.ndarray], plan: Settings) -> None:
    for name in ("rgb_static", "rgb_gripper"):
        columns[f"observation/{name}"].append(images.encode_jpeg(observation[name], plan.jpeg_quality))
    for name in ("robot_obs", "scene_obs"):
        columns[f"observation/{name}"].append(np.asarray(observation[name], np.float32))


def append_step(columns: dict[str, list], action: np.ndarray, executed: np.ndarray, reward: float) -> None:
    columns[rlds.ACTION].append(action)
    columns["action_executed"].append(executed)
    columns[rlds.REWARD].append(reward)
