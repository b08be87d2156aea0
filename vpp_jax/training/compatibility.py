"""Checks that a stage is configured like the earlier stage whose parameters it loads."""

from vpp_jax.common.json_values import flatten_dict
from vpp_jax.config import ConfigError, ExperimentConfig, to_dict
from vpp_jax.training.checkpoints import read_metadata

# These change how something is computed, not what: they may differ between a stage and the earlier one.
COMPUTATION = ("dtype", "remat", "last_tap")


def check_model_agrees(config: ExperimentConfig, directory: str, groups: tuple[str, ...], may_differ: tuple[str, ...] = ()) -> None:
    """ConfigError unless the model groups loaded from the checkpoint in `directory` are configured as they were trained.

    Many fields (group sizes of normalisations, heads, frame rates) do not change any tensor's shape, so loading would not fail.
    `may_differ`: fields that may.
    """
    trained = read_metadata(directory)["config"]["model"]
    configured = to_dict(config.model)
    before, now = (flatten_dict({group: model[group] for group in groups}) for model in (trained, configured))
    differ = [name for name in now if before.get(name) != now[name] and name.rpartition(".")[2] not in (*COMPUTATION, *may_differ)]
    if differ:
        lines = "; ".join(f"model.{name} is {now[name]}, trained with {before.get(name)}" for name in differ)
        raise ConfigError(
            f"the configuration does not fit the checkpoint {directory}, on which stage {config.stage} builds: {lines}. Use the model it "
            "was trained with, or train that stage again"
        )
