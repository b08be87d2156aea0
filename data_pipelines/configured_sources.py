"""The datasets that a configuration names, opened and mixed: one source each, with sampling weights."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from data_pipelines.config import DataConfig, DatasetConfig
from data_pipelines.errors import DataError
from data_pipelines.openx.registry import CLIP_COLUMNS, POLICY_COLUMNS
from data_pipelines.openx.robot_spec import RobotSpec
from data_pipelines.openx.robots import robot_of
from data_pipelines.rlds.dataset import RLDSDataset
from data_pipelines.rlds.filters import without_text
from data_pipelines.sources import ClipSource, Mixture, Padding, PolicySource, Tokenizer
from data_pipelines.storage import Retry

SourceT = TypeVar("SourceT", ClipSource, PolicySource)


def clip_source(
    config: DataConfig,
    image_size: int,
    tokenizer: Tokenizer,
    text_length: int,
    split: str = "train",
    *,
    accept_latents: bool = False,
    seed: int = 0,
) -> Mixture[ClipSource]:
    """Video clips of every dataset of `config`.

    Args:
      split: 'train' or 'val' (mapped by each DatasetConfig), or a TFDS split name.
      accept_latents: whether clips may be latents; either all datasets are read as latents or none.
    """

    def make(entry: DatasetConfig, spec: RobotSpec) -> ClipSource:
        return ClipSource(
            open_dataset(config, entry, spec, split),
            spec,
            config,
            image_size,
            tokenizer,
            text_length,
            views=entry.views,
            sampling=entry.clip_sampling,
            latents=entry.latents,
            seed=seed,
        )

    packed = [entry.name for entry in config.datasets if entry.latents]
    if packed and not accept_latents:
        raise DataError(
            f"data.datasets: {', '.join(packed)} are to be read as latents, but only stage video trains on latents; this stage "
            "needs images: set latents=False and name a dataset with images"
        )
    if 0 < len(packed) < len(config.datasets):
        raise DataError(
            f"data.datasets: {', '.join(packed)} are to be read as latents, the others as images; a batch cannot contain "
            "both. Encode the others, too (`vpp data latents`)"
        )
    return _mixture(config, make, CLIP_COLUMNS)


def policy_source(
    config: DataConfig,
    image_size: int,
    tokenizer: Tokenizer,
    text_length: int,
    split: str = "train",
    *,
    views: Sequence[str] = (),
    action_dim: int | None = None,
    padding: Padding | None = None,
    robots: Sequence[str] = (),
    with_images: bool = True,
) -> Mixture[PolicySource]:
    """Observations with action chunks of every dataset of `config`.

    Args:
      with_images: False omits the images and decodes nothing, for training from cached features.
      views: views of every example; default: those of the DatasetConfig, else of the registry row.
      action_dim: action width of the model; a different width in the data is an error here, not in a jitted function.
      padding: the robots may differ; their examples are padded to these widths, and to all `views`.
      robots: names of all robots of the policy, which number them.
    """

    def make(entry: DatasetConfig, spec: RobotSpec) -> PolicySource:
        if entry.latents:
            raise DataError(f"data.datasets: {entry.name} is to be read as latents, but a policy needs images: set latents=False")
        dataset = open_dataset(config, entry, spec, split)
        training = dataset if dataset.split == entry.split else open_dataset(config, entry, spec, "train")
        return PolicySource(
            dataset,
            spec,
            config,
            image_size,
            tokenizer,
            text_length,
            views=tuple(views) or entry.views,
            action_dim=action_dim,
            padding=padding,
            number=robots.index(entry.name) if robots else 0,
            training_split=training,
            with_images=with_images,
        )

    mixture = _mixture(config, make, POLICY_COLUMNS)
    if padding:
        unseen = [view for view in views if not any(view in source.views for source in mixture.sources)]
        if unseen and len(mixture.sources) == len(robots):
            known = "; ".join(f"{source.spec.name}: {', '.join(source.spec.cameras)}" for source in mixture.sources)
            raise DataError(f"no dataset has the views {', '.join(unseen)} of the policy (views of {known}): correct model.views")
        return mixture
    widths = {(source.action_normalizer.width, source.proprio_normalizer.width, source.views) for source in mixture.sources}
    if len(widths) > 1:
        found = "; ".join(
            f"{source.dataset.name}: action {source.action_normalizer.width}, proprio {source.proprio_normalizer.width}, "
            f"views {','.join(source.views)}"
            for source in mixture.sources
        )
        raise DataError(f"datasets of one policy must agree in action width, proprio width and views, but: {found}")
    return mixture


def open_dataset(config: DataConfig, entry: DatasetConfig, spec: RobotSpec, split: str = "train") -> RLDSDataset:
    """The split of a dataset; 'train' and 'val' are mapped to the names in its configuration."""
    name, filtered = {"train": entry.split, "val": entry.val_split}.get(split, split), config.empty_instructions == "filter"
    return RLDSDataset(
        entry.path,
        name,
        index_dir=config.index_dir or None,
        on_bad_record=config.on_bad_record,
        episode_filter=without_text(spec.episode_filter, spec.instruction_keys) if filtered else spec.episode_filter,
        cache_bytes=config.bytes_per_dataset(config.cache_mb),
        retry=Retry(config.read_attempts),
    )


def _mixture(config: DataConfig, make: Callable[[DatasetConfig, RobotSpec], SourceT], columns: Sequence[str]) -> Mixture[SourceT]:
    """One source per dataset, if `columns` of every description are usable; the error names all datasets where they are not."""
    if not config.datasets:
        advice = (
            "expand data.mixture with data_pipelines.openx.mixtures.expand" if config.mixture else "name at least one dataset directory"
        )
        raise DataError(f"data.datasets is empty; {advice}")
    specs = [robot_of(entry) for entry in config.datasets]
    unusable = {spec.name: spec.why_unusable(columns, spec.name in config.allow_unverified) for spec in specs}
    unusable = [f"{name} ({why})" for name, why in unusable.items() if why]
    if unusable:
        raise DataError(
            f"{len(unusable)} of {len(specs)} datasets cannot be used here: {', '.join(unusable)}. Remove them; if a "
            "column is only not verified, check it on the data and add the dataset to data.allow_unverified"
        )
    sources = [make(entry, spec) for entry, spec in zip(config.datasets, specs, strict=True)]
    return Mixture(sources, _weights(config.datasets, [source.dataset.num_steps for source in sources]))


def _weights(members: Sequence[DatasetConfig], steps: Sequence[int]) -> list[float]:
    """Sampling weights. `per_step` members divide, by their steps, what their weights add up to: next to them a plain weight means the same
    as next to plain ones."""
    per_step = [entry.weight * count for entry, count in zip(members, steps, strict=True) if entry.per_step]
    if len(per_step) in (0, len(members)):
        return per_step or [entry.weight for entry in members]
    scale = sum(entry.weight for entry in members if entry.per_step) / sum(per_step)
    return [entry.weight * (count * scale if entry.per_step else 1) for entry, count in zip(members, steps, strict=True)]
