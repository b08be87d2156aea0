"""Import: published checkpoints -> work directories of the stages.

    OUT/vae/      stage vae     params: vae             frozen: text
    OUT/video/    stage video   params: unet            frozen: vae, text, the scaling factor
    OUT/policy/   stage policy  params: video_former,   frozen: unet, vae, the policy's own text and goal_text_encoder, the scaling factor
                                action_transformer

Modules are read tensor by tensor onto their shardings, written, and freed before the next one. A module that two stages need is written
once, and they share its files. All names are compared before anything is written, and OUT is renamed into place when it is complete.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from data_pipelines.openx.registry import dataset_spec
from data_pipelines.transforms import Normalizer
from vpp_jax.common.config_tree import build
from vpp_jax.common.provenance import device_name, git_revision, library_versions
from vpp_jax.config import ExperimentConfig, InitConfig, ModelConfig, config_hash, from_config_dict, to_dict, to_json
from vpp_jax.functional import AbstractParams, Params, PureModule, with_prefix
from vpp_jax.interop.matching import compare_names, load_onto
from vpp_jax.interop.policy_config import ACTION, FORMER, policy_model
from vpp_jax.interop.published_configs import require_derived, text_config, unet_config, vae_config
from vpp_jax.interop.report import ConversionError, ConversionReport
from vpp_jax.interop.sources import Component, open_component, open_policy
from vpp_jax.interop.tensor_mapping import TensorMapping, tensor_mappings
from vpp_jax.models.tokenizer import VOCABULARY_SIZE
from vpp_jax.parallel.mesh import make_mesh
from vpp_jax.parallel.partition import partition
from vpp_jax.policy import VideoPredictionPolicy
from vpp_jax.training.checkpoint_writing import write_imported
from vpp_jax.training.checkpoints import FROZEN
from vpp_jax.video_predictor import SCALING_FACTOR, VideoPredictor

PUBLISHED = "published.json"  # in a work directory: how the files looked that it was imported from
TEXT, GOAL = "TVP_encoder.text_encoder.", "language_goal.clip_rn50."


@dataclass(frozen=True)
class Request:
    """What to import. `unet` may be a pipeline folder, then `vae` may be None.

    `base`: a configuration as nested dicts, for everything that the files do not specify; its sizes need not be consistent.
    """

    out: Path
    base: Mapping[str, Any] = field(default_factory=dict)
    unet: Path | None = None
    vae: Path | None = None
    text: Path | None = None
    policy: Path | None = None
    variant: str = ""
    allow_missing: tuple[str, ...] = ()
    allow_unexpected: tuple[str, ...] = ()


def import_published(request: Request, log: Callable[[str], None] = lambda line: None) -> list[ConversionReport]:
    """Writes the work directories under `request.out`; `log` gets a line per finished part. ConversionError before anything is written."""
    if request.out.exists() and (not request.out.is_dir() or any(request.out.iterdir())):
        raise ConversionError(f"--out={request.out} exists and is not empty: give a new directory")
    plan = Plan(request)
    for report in plan.reports.values():
        log(str(report))
    for report in plan.reports.values():
        report.check()
    partial = request.out.with_name(request.out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _Writer(plan, partial, log).write()
        document = {"schema_version": 1, "reports": {kind: report.to_json() for kind, report in plan.reports.items()}}
        (partial / "report.json").write_text(json.dumps(document, indent=1) + "\n")
        if request.out.exists():
            request.out.rmdir()
        partial.rename(request.out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return list(plan.reports.values())


class Plan:
    """The opened files, the model they define, and the mapping of all tensors.

    Attributes:
      base: the configuration with the sizes of the files.
      model: its model.
      policy_model: the same with what the policy's own `args` specify about features and instructions.
      configs: stage -> the configuration of its work directory.
      abstract: component -> our parameters as ShapeDtypeStructs, names with their group.
      wanted: component -> group -> the mappings of its parameters.
    """

    def __init__(self, request: Request):
        self.request = request
        self.components = _open(request)
        model, self.scaling_factor = _sizes(build(ModelConfig, request.base.get("model", {}), "model"), self.components)
        notes: list[str] = []
        self.model = self.policy_model = model
        if "policy" in self.components:
            policy = self.components["policy"]
            self.policy_model, notes = policy_model(policy.source.tensors, policy.config, model, policy.where)
            # clips and action chunks have one length in all stages; the inputs of the features are the policy's own
            self.model = replace(
                model,
                former=self.policy_model.former,
                action=self.policy_model.action,
                frames=self.policy_model.frames,
                n_action_steps=self.policy_model.n_action_steps,
            )
        self.base = from_config_dict({**request.base, "stage": "vae", "model": to_dict(self.model)})
        stages = ["vae", *(["video"] if "unet" in self.components else []), *(["policy"] if "policy" in self.components else [])]
        self.configs = {stage: self._config(stage) for stage in stages}
        self.abstract, self.wanted = self._tensors()
        self.reports = {kind: self._report(kind) for kind in self.components}
        if "text" in self.reports and self.model.text.vocab_size != VOCABULARY_SIZE:
            self.reports["text"].notes.append(
                f"{self.model.text.vocab_size} tokens, but the CLIP tokenizer of the instructions has {VOCABULARY_SIZE}"
            )
        if "policy" in self.reports:
            self.reports["policy"].notes += notes

    @cached_property
    def predictor(self) -> VideoPredictor:
        return VideoPredictor(self.model, self.base.video_diffusion)

    @cached_property
    def policy(self) -> VideoPredictionPolicy:
        return VideoPredictionPolicy(self.policy_model, self.base.policy_diffusion, self.base.video_diffusion)

    def _config(self, stage: str) -> ExperimentConfig:
        model = self.policy_model if stage == "policy" else self.model
        base, out = self.base, self.request.out
        return replace(
            base,
            stage=stage,
            model=model,
            init=InitConfig(vae=str(out / "vae") if stage == "video" else "", video=str(out / "video") if stage == "policy" else ""),
        )

    def _tensors(self) -> tuple[dict[str, AbstractParams], dict[str, dict[str, dict[str, TensorMapping]]]]:
        modules: dict[str, list[tuple[str, PureModule, str, bool]]] = {"vae": [("vae", self.predictor.vae, "", False)]}
        if "unet" in self.components:
            modules["unet"] = [("unet", self.predictor.unet, "", False)]
        if "text" in self.components:
            modules["text"] = [("text", self.predictor.text, "", False)]
        if "policy" in self.components:
            has_own_goal = any(name.startswith(GOAL) for name in self.components["policy"].source.tensors)
            goal = (
                ("goal_text_encoder", self.policy.goal_text_encoder, GOAL, True)
                if has_own_goal
                else ("goal_text_encoder", self.policy.goal_text_encoder, TEXT, False)
            )
            text = ("text", self.policy.predictor.text, TEXT, False)
            modules["policy"] = [
                ("video_former", self.policy.video_former, FORMER, False),
                ("action_transformer", self.policy.action_transformer, ACTION, False),
                text,
                goal,
            ]
        abstract: dict[str, AbstractParams] = {kind: {} for kind in modules}
        wanted: dict[str, dict[str, dict[str, TensorMapping]]] = {kind: {} for kind in modules}
        for kind, entries in modules.items():
            for group, module, prefix, openai in entries:
                abstract[kind] |= with_prefix(group, module.abstract)
                wanted[kind][group] = with_prefix(group, tensor_mappings(module.abstract, prefix, openai))
        return abstract, wanted

    def _report(self, kind: str) -> ConversionReport:
        wanted = {name: mapping for group in self.wanted[kind].values() for name, mapping in group.items()}
        request = self.request
        report = compare_names(kind, self.components[kind].source, wanted, request.allow_missing, request.allow_unexpected)
        report.notes += self.components[kind].notes
        return report


def _open(request: Request) -> dict[str, Component]:
    if request.vae is None and request.unet is None:
        raise ConversionError("nothing to import: give --vae, or --unet with --vae and --text, and also --policy for a policy")
    if request.unet is not None and request.text is None:
        raise ConversionError("--unet needs --text: the text encoder that the video model is conditioned on (a CLIP folder)")
    if request.policy is not None and request.unet is None:
        raise ConversionError("--policy needs --unet (with --vae and --text): the video model that its features come from")
    if request.vae is None and request.unet is not None and not (request.unet / "vae").is_dir():
        raise ConversionError(f"--unet={request.unet} is not a pipeline folder with a VAE: give --vae as well")
    paths = {"unet": request.unet, "vae": request.vae or request.unet, "text": request.text}
    opened = {kind: open_component(kind, path, request.variant) for kind, path in paths.items() if path is not None}
    return opened | ({"policy": open_policy(request.policy)} if request.policy is not None else {})


def _sizes(base: ModelConfig, components: Mapping[str, Component]) -> tuple[ModelConfig, float]:
    """`base` with the sizes that the config.json files give; a component without one uses those of `base`. Also the scaling factor."""

    def read(kind: str, reader: Callable, default: Any) -> Any:
        component = components.get(kind)
        if component is None or component.config is None:
            return default
        try:
            return reader(component.config, f"config.json of {component.where}")
        except (TypeError, ValueError, AttributeError) as error:
            raise ConversionError(f"config.json of {component.where} has fields of other types than expected: {error}") from None

    vae, factor = read("vae", vae_config, (base.vae, 0.18215))
    text, unet = read("text", text_config, base.text), read("unet", unet_config, base.unet)
    levels = len(unet.block_out_channels)
    model = replace(
        base,
        vae=replace(vae, dtype=base.vae.dtype),
        unet=replace(unet, dtype=base.unet.dtype, remat=base.unet.remat),
        text=replace(text, dtype=base.text.dtype),
        text_length=min(base.text_length, text.max_positions),
        goal_length=min(base.goal_length, text.max_positions),
        tap_blocks=tuple(block for block in base.tap_blocks if block < levels) or (levels - 1,),
    )
    if (component := components.get("unet")) is not None and component.config is not None:
        require_derived(unet, model.unet, f"config.json of {component.where}")
    return model, factor


class _Writer:
    """Writes the work directories, one module in memory at a time."""

    def __init__(self, plan: Plan, out: Path, log: Callable[[str], None]):
        self._plan, self._out, self._log = plan, out, log
        self._mesh = make_mesh(plan.base.mesh)
        self._versions = {"versions": library_versions(), "git_revision": git_revision(), "device": device_name()}

    def write(self) -> None:
        self._vae()
        if "unet" in self._plan.components:
            self._video()
        if "policy" in self._plan.components:
            self._policy()

    def _vae(self) -> None:
        if "text" in self._plan.components:
            self._frozen("vae", self._load("text", "text"), {})
        self._checkpoint("vae", ("vae",), self._load("vae", "vae"))

    def _video(self) -> None:
        shared = {"vae": self._params("vae"), "text": self._folder("vae") / FROZEN / FROZEN}
        self._frozen("video", self._scaling(), shared)
        self._checkpoint("video", ("unet", "vae", "text"), self._load("unet", "unet"))

    def _policy(self) -> None:
        frozen = self._load("policy", "text", "goal_text_encoder") | self._scaling()
        self._frozen("policy", frozen, {"vae": self._params("vae"), "unet": self._params("video")})
        self._checkpoint("policy", ("policy",), self._load("policy", "video_former", "action_transformer"))

    def _folder(self, stage: str) -> Path:
        return self._out / stage / "checkpoints"

    def _params(self, stage: str) -> Path:
        return self._folder(stage) / "0" / "params"

    def _scaling(self) -> Params:
        return {SCALING_FACTOR: jnp.float32(self._plan.scaling_factor)}

    def _load(self, kind: str, *groups: str) -> Params:
        start, plan = time.monotonic(), self._plan
        wanted = {name: mapping for group in groups for name, mapping in plan.wanted[kind][group].items()}
        abstract = {name: plan.abstract[kind][name] for name in wanted}
        source = plan.components[kind].source
        params = load_onto(source, wanted, partition(abstract, self._mesh, plan.base.mesh.min_size_to_shard))
        size = sum(value.nbytes for value in params.values())
        seconds = time.monotonic() - start
        self._log(f"read {' and '.join(groups)} from {source.where}: {len(params)} tensors, {size / 1e9:.3f} GB, {seconds:.1f} s")
        return params

    def _frozen(self, stage: str, params: Params, shared: Mapping[str, Path]) -> None:
        self._folder(stage).mkdir(parents=True)
        write_imported(self._folder(stage) / FROZEN, {FROZEN: params}, shared, {})

    def _checkpoint(self, stage: str, kinds: tuple[str, ...], params: Params) -> None:
        """The checkpoint and the other files of its work directory."""
        start, plan, workdir = time.monotonic(), self._plan, self._out / stage
        config, data = plan.configs[stage], _data(plan) if stage == "policy" else {}
        arguments = plan.components["policy"].config if stage == "policy" else None
        metadata = {
            "schema_version": 1,
            "step": 0,
            "stage": stage,
            "config": to_dict(config),
            "config_hash": config_hash(config),
            "data": data,
            "statistics_hash": "",
            **self._versions,
            "finished": True,
            "window": [],
            "train_s": 0.0,
            "latent_scaling_factor": plan.scaling_factor,
            "imported": {kind: plan.components[kind].where for kind in kinds},
        } | ({"published_args": arguments} if arguments is not None else {})
        self._folder(stage).mkdir(parents=True, exist_ok=True)
        (workdir / "config.json").write_text(to_json(config) + "\n")
        layouts = {kind: plan.components[kind].layout for kind in kinds if plan.components[kind].layout}
        (workdir / PUBLISHED).write_text(json.dumps(layouts) + "\n")
        write_imported(self._folder(stage) / "0", {"params": params}, {}, {"metadata": metadata, "data": {"state": None}})
        self._log(f"wrote {plan.request.out / stage} in {time.monotonic() - start:.1f} s")


def _data(plan: Plan) -> dict[str, Any]:
    """What serving needs to know about the data: CALVIN's relative actions, which published policies use without normalisation."""
    datasets, action = plan.base.data.datasets, plan.policy_model.action
    row = dataset_spec(datasets[0].name if datasets else "calvin")
    if row.action_width != action.action_dim:
        plan.reports["policy"].notes.append(
            f"the policy has actions of width {action.action_dim}, dataset '{row.name}' {row.action_width}: it cannot act there"
        )
    original = {"simulator": "calvin_pybullet", "static_size": 200, "gripper_size": 84}  # what CALVIN's dataset was recorded in
    return {
        "datasets": [
            {
                "dataset": row.name,
                "recorded_in": original if row.name == "calvin" else {},
                "version": "",
                "robot": row.to_json(),
                "windows": 0,
                "action_steps": action.action_horizon,
                "views": {view: row.cameras.get(view, view) for view in plan.policy_model.views},
                "action": Normalizer.identity(action.action_dim).to_json(),
                "proprio": Normalizer.identity(action.proprio_dim or row.proprio_width).to_json(),
            }
        ]
    }
