"""Stage `policy`: Video Former and diffusion transformer on top of the frozen video model (paper section 3.2-3.3)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from data_pipelines.loader import policy_source
from data_pipelines.sources import Mixture, Padding, PolicySource, Source
from vpp_jax.config import ConfigError, DataConfig, ExperimentConfig, config_hash
from vpp_jax.diffusion.per_example import example_keys, split_example_keys
from vpp_jax.functional import AbstractParams, Params, with_prefix
from vpp_jax.models.action_transformer import ActionTransformerConfig
from vpp_jax.models.tokenizer import CLIPTokenizer
from vpp_jax.models.video_former import VideoFormerConfig
from vpp_jax.parallel.first_examples import map_first_examples
from vpp_jax.parallel.mesh import batch_sharding, compiler_options, put_batch
from vpp_jax.policy import Embodiment, VideoPredictionPolicy
from vpp_jax.training.checkpoints import list_tensors, load_params, read_metadata
from vpp_jax.training.compatibility import check_model_agrees
from vpp_jax.training.distributed import local_rows, on_host, process_shard
from vpp_jax.training.feature_cache import CachedFeatures, FeatureFiles, build_feature_cache
from vpp_jax.training.previews import PREVIEW_EXAMPLES, write_action_traces, write_observations
from vpp_jax.training.random_streams import random_streams
from vpp_jax.training.robots import trained_robots
from vpp_jax.training.stages.specs import as_frozen, feature_shape
from vpp_jax.video_predictor import SCALING_FACTOR

# Fields of the model that determine what the frozen video model computes.
FROM_VIDEO = ("image_size", "frames", "vae", "unet", "text", "text_length", "position_encode", "fps_id_train", "motion_bucket")

# Fields of a policy that may differ from those of the policy it starts from: they change no parameter that is loaded.
MAY_DIFFER = ("attention_dropout", "residual_dropout", "mlp_dropout", "init_std", "prompt_tokens", "robot_projections")


@dataclass(frozen=True)
class PolicyStage:
    config: ExperimentConfig

    @cached_property
    def policy(self) -> VideoPredictionPolicy:
        return VideoPredictionPolicy(self.config.model, self.config.policy_diffusion, self.config.video_diffusion)

    def abstract_trainable(self) -> AbstractParams:
        goal = self._goal if self.config.model.text_trainable else {}
        return (
            with_prefix("video_former", self.policy.video_former.abstract)
            | with_prefix("action_transformer", self.policy.action_transformer.abstract)
            | with_prefix("robots", self.policy.robots.abstract)
            | goal
        )

    def abstract_frozen(self) -> AbstractParams:
        predictor = self.policy.predictor
        video = {
            prefix: with_prefix(prefix, module.abstract)
            for prefix, module in (("vae", predictor.vae), ("unet", predictor.unet), ("text", predictor.text))
        }
        goal = {} if self.config.model.text_trainable else self._goal
        scaling = {SCALING_FACTOR: jax.ShapeDtypeStruct((), jnp.float32)}
        return as_frozen(video["vae"] | video["unet"] | video["text"] | scaling | goal, self.config.model)

    @property
    def _goal(self) -> AbstractParams:
        return with_prefix("goal_text_encoder", self.policy.goal_text_encoder.abstract)

    def init_trainable(self, key: jax.Array) -> Params:
        former_key, action_key, goal_key = jax.random.split(key, 3)
        params = with_prefix("video_former", self.policy.video_former.init(former_key))
        params |= with_prefix("action_transformer", self.policy.action_transformer.init(action_key))
        params |= with_prefix("robots", self.policy.robots.init(jax.random.fold_in(key, 3)))
        if self.config.model.text_trainable:
            params |= with_prefix("goal_text_encoder", self.policy.goal_text_encoder.init(goal_key))
        return params

    def load_trainable(self, shardings: Mapping[str, jax.sharding.Sharding]) -> Params | None:
        """The policy of `init.policy`, its EMA if it has one; None for random initialisation.

        Robots that it knows by name keep what was learnt of them; the rows of others are fresh.
        """
        directory = self.config.init.policy
        if not directory:
            return None
        shared = {name: spec for name, spec in self.abstract_trainable().items() if not name.startswith("robots/")}
        params = load_params(directory, shared, {name: shardings[name] for name in shared}, stage="policy")
        check_model_agrees(self.config, directory, ("former", "action", "text"), MAY_DIFFER)
        return params | {name: jax.device_put(rows, shardings[name]) for name, rows in self._robot_rows(directory).items()}

    def _robot_rows(self, directory: str) -> dict[str, np.ndarray]:
        """The parameters `robots/...`, whose first axis is the robot."""
        fresh = with_prefix("robots", self.policy.robots.init(random_streams(self.config.seed).init))
        rows = {name: np.array(value) for name, value in fresh.items()}
        known, stored = list(trained_robots(read_metadata(directory), directory)), list_tensors(directory)
        abstract = {name: stored[name] for name in rows if name in stored}
        learnt = load_params(directory, abstract, stage="policy") if abstract else {}
        for number, entry in enumerate(self.config.data.datasets):
            for name in learnt:
                if entry.name in known:
                    rows[name][number] = learnt[name][known.index(entry.name)]
        return rows

    def load_frozen(self, shardings: Mapping[str, jax.sharding.Sharding]) -> Params:
        """The video model from checkpoint `init.video`, else that of the policy `init.policy`; blocks beyond the last tap are not read.

        A goal encoder that is not trained here is the video model's text encoder: both are the published CLIP.
        """
        if not self.config.init.video:
            params = load_params(self.config.init.policy, self.abstract_frozen(), shardings, stage="policy")
            check_model_agrees(self.config, self.config.init.policy, FROM_VIDEO)
            return params
        directory, goal = self.config.init.video, {} if self.config.model.text_trainable else self._goal
        if goal and read_metadata(directory)["config"]["model"]["text_trainable"]:
            raise ConfigError(
                f"model.text_trainable is off, but {directory} trained its text encoder, and for the U-Net only: its pooled output is no "
                "goal embedding. Turn model.text_trainable on, so that stage policy trains a goal encoder"
            )
        video = {name: spec for name, spec in self.abstract_frozen().items() if name not in goal}
        params = load_params(directory, video, {name: shardings[name] for name in video}, stage="video")
        check_model_agrees(self.config, directory, FROM_VIDEO)
        return params | {name: params[name.replace("goal_text_encoder/", "text/", 1)] for name in goal}

    def source(self, split: str, frozen: Params, workdir: Path, dataset: str = "") -> Source:
        """Observations with their action chunks; with `feature_draws` > 0 the images are replaced by cached features."""
        data = self.config.data.only(dataset)
        if not self.config.policy_diffusion.feature_draws:
            return self._observations(data, split)
        return CachedFeatures(self._observations(data, split, with_images=False), self._cache(data, split, frozen, workdir, dataset))

    def _observations(self, data: DataConfig, split: str, with_images: bool = True) -> Mixture:
        model = self.config.model
        observations = policy_source(
            data,
            model.image_size,
            CLIPTokenizer(model.goal_length),
            model.goal_length,
            split,
            views=model.views,
            action_dim=model.action.action_dim,
            padding=Padding(model.action.action_dim, model.action.proprio_dim) if self.config.several_robots else None,
            robots=tuple(entry.name for entry in self.config.data.datasets),
            with_images=with_images,
        )
        self._check_views(observations, split)
        return observations

    def _check_views(self, observations: Mixture[PolicySource], split: str) -> None:
        """Prints what views cost that a robot lacks; ConfigError where the model cannot leave them out."""
        views = self.config.model.views
        weights = np.array(observations.weights) / np.sum(observations.weights)
        lacking = float(weights @ [1 - len(source.views) / len(views) for source in observations.sources])
        if lacking and self.config.model.former.variant == "linear":
            raise ConfigError("model.former.variant is linear, which cannot leave out views that a robot lacks: take 3d or 2d")
        if lacking and split == "train" and jax.process_index() == 0:
            print(f"{lacking:.0%} of the images are of views that a robot lacks: no attention, but the U-Net's full cost", flush=True)

    def _cache(self, data: DataConfig, split: str, frozen: Params, workdir: Path, dataset: str) -> FeatureFiles:
        diffusion = self.config.policy_diffusion
        images = {name: getattr(data, name) for name in ("datasets", "observation_stride", "antialias", "jpeg_dct_scaling")}
        seen = config_hash(replace(DataConfig(), **images))
        # features do not depend on the policy's part of the model
        upstream = replace(self.config.model, former=VideoFormerConfig(), action=ActionTransformerConfig(), n_action_steps=1)
        observations, origin = self._observations(data, split), read_metadata(self.config.init.video or self.config.init.policy)
        return build_feature_cache(
            observations,
            self.compute_features(frozen),
            workdir / "features" / "_".join(filter(None, (split, dataset))),
            shape=feature_shape(self.config.model),
            draws=diffusion.feature_draws,
            batch_size=diffusion.feature_batch,
            seed=self.config.seed,
            identity=f"video {origin['config_hash']}@{origin['step']}, model {config_hash(upstream)}, observations {seen}",
            limit_gb=diffusion.feature_cache_gb,
            part=process_shard(_mesh_of(frozen)),
        )

    def compute_features(self, frozen: Params) -> Callable[[dict[str, np.ndarray], jax.Array], np.ndarray]:
        """(batch, keys) of this process -> float16 features of its rows; all processes together run one program on the mesh of `frozen`."""
        mesh = _mesh_of(frozen)
        _, shards = process_shard(mesh)
        multiple = mesh.shape["data"] * mesh.shape["fsdp"] // shards

        def compute(frozen: Params, batch: dict[str, jax.Array]) -> jax.Array:
            return self._features(frozen, batch, jax.random.wrap_key_data(batch["keys"])).astype(jnp.float16)

        compiled = jax.jit(compute, out_shardings=batch_sharding(mesh), compiler_options=compiler_options())

        def of_process(batch: dict[str, np.ndarray], keys: jax.Array) -> np.ndarray:
            padded = np.minimum(np.arange(len(keys) + -len(keys) % multiple), len(keys) - 1)
            rows = {name: value[padded] for name, value in (batch | {"keys": np.asarray(jax.random.key_data(keys))}).items()}
            placed = put_batch(rows, mesh, shards * len(padded))
            return local_rows(compiled(frozen, placed))[: len(keys)]

        return of_process

    def _features(self, frozen: Params, batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
        images = {view: batch[f"images/{view}"] for view in self.config.model.views}
        states = self.policy.video_states(frozen, batch["text_ids"], batch["text_mask"])
        return self.policy.features(frozen, images, states, key)

    def loss(self, trainable: Params, frozen: Params, batch: dict[str, jax.Array], key: jax.Array, training: bool = True):
        feature_keys, loss_keys = split_example_keys(example_keys(key, batch["action"].shape[0]), 2)
        features = batch["features"] if "features" in batch else self._features(frozen, batch, feature_keys)
        return self.policy.loss(
            trainable | frozen,
            jax.lax.stop_gradient(features).astype(jnp.float32),
            batch["text_ids"],
            batch["text_mask"],
            batch["proprio"],
            batch["action"],
            batch["action_mask"],
            loss_keys,
            training,
            self.embodiment(batch),
        )

    def loss_weight(self, batch: dict[str, jax.Array]) -> jax.Array:
        """Actions that are not padding; of several robots, numbers in them that are not."""
        return jnp.sum(self._counted(batch))

    def _counted(self, batch: dict[str, jax.Array]) -> jax.Array:
        """1 where a number of an action counts: [b k 1], or of several robots [b k a]."""
        mask = batch["action_mask"][..., None]
        return (mask & batch["action_dims"][:, None] if self.config.several_robots else mask).astype(jnp.float32)

    def embodiment(self, batch: dict[str, jax.Array]) -> Embodiment | None:
        """Whose observations those of a batch are; None where the policy has one robot."""
        return Embodiment(*(batch[name] for name in Embodiment._fields)) if self.config.several_robots else None

    def _context(self, trainable: Params, frozen: Params, batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
        features = batch["features"] if "features" in batch else self._features(frozen, batch, key)
        params = trainable | frozen
        goal = self.policy.goal_vector(params, batch["text_ids"], batch["text_mask"])
        return self.policy.context(params, features.astype(jnp.float32), goal, batch["proprio"], embodiment=self.embodiment(batch))

    def sampling_errors(
        self, trainable: Params, frozen: Params, batch: dict[str, jax.Array], key: jax.Array
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        """`action_mse` on the noise schedule that the policy acts with, `action_mse_validation` on that of VPP's validation."""
        feature_keys, keys = split_example_keys(example_keys(key, len(batch["text_ids"])), 2)
        context = self._context(trainable, frozen, batch, feature_keys)
        mask = self._counted(batch)
        diffusion, sums = self.config.policy_diffusion, {}
        for name, schedule in (("action_mse", diffusion.noise_schedule), ("action_mse_validation", diffusion.validation_noise_schedule)):
            sampled = self.policy.sample_actions(trainable | frozen, context, keys, schedule, self.embodiment(batch))
            sums[name] = jnp.sum(mask * (sampled - batch["action"]) ** 2)
        return sums, jnp.sum(mask) * (1 if self.config.several_robots else batch["action"].shape[-1])

    def plot_batch(self, batch: dict[str, np.ndarray], path: Path) -> None:
        """Views, instruction and action chunk of the first observations; for cached features, the images they were computed from."""
        rows = range(min(PREVIEW_EXAMPLES, len(batch["action"])))
        if "observation" in batch:
            observations = self._observations(self.config.data, "train")
            seen = [observations[int(batch["observation"][row])] for row in rows]
        else:
            seen = [{name: value[row] for name, value in batch.items()} for row in rows]
        images = [np.stack([example[f"images/{view}"] for view in self.config.model.views]) for example in seen]
        write_observations(path, images, batch["action"][: len(images)], self._instructions(batch, len(images)))

    def _instructions(self, batch: dict[str, np.ndarray], count: int) -> list[str]:
        return CLIPTokenizer(self.config.model.goal_length).decode(batch["text_ids"][:count], batch["text_mask"][:count])

    def plot_predictions(
        self, trainable: Params, frozen: Params, batch: dict[str, jax.Array], key: jax.Array, path: Path | None
    ) -> dict[str, float]:
        """True action chunks as lines, sampled ones dashed."""
        shown = on_host(self._preview(trainable, frozen, batch, key))
        if path is not None:
            write_action_traces(path, shown["action"], shown["sampled"], self._instructions(shown, PREVIEW_EXAMPLES))
        return {}

    @cached_property
    def _preview(self):
        return jax.jit(self.preview, compiler_options=compiler_options())

    def preview(self, trainable: Params, frozen: Params, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        """True and sampled action chunks, normalised [b k a], with their tokens."""
        keys = example_keys(key, len(batch["text_ids"]))

        def true_and_sampled(rows: dict[str, jax.Array]) -> dict[str, jax.Array]:
            feature_keys, keys = split_example_keys(rows["keys"], 2)
            context = self._context(trainable, frozen, rows, feature_keys)
            shown = {name: rows[name] for name in ("text_ids", "text_mask", "action")}
            return shown | {"sampled": self.policy.sample_actions(trainable | frozen, context, keys, embodiment=self.embodiment(rows))}

        return map_first_examples(true_and_sampled, batch | {"keys": keys}, PREVIEW_EXAMPLES)

    def final_metadata(self, trainable: Params, frozen: Params, batches: Iterable[dict[str, jax.Array]]) -> dict[str, float]:
        return {}


def _mesh_of(params: Params) -> Mesh:
    sharding = next(iter(params.values())).sharding
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    assert isinstance(mesh, Mesh), "the loop places parameters on a mesh"
    return mesh
