"""What a stage must have in common with the stage it builds on."""

from vpp_jax.common.json_values import flatten_dict
from vpp_jax.config import ConfigError, ExperimentConfig, to_dict
from vpp_jax.training.checkpoints import read_metadata

# How something is computed, not what: these may differ between a stage and the one it builds on.
COMPUTATION = ("dtype", "remat", "last_tap")


def check_model_agrees(config: ExperimentConfig, directory: str, groups: tuple[str, ...]) -> None:
    """The model groups that this stage takes from the checkpoint in `directory` must be configured as they were trained.

    Many such fields (group sizes of normalisations, heads, frame rates) leave every tensor's shape as it is: loading would not notice.
    """
    trained = read_metadata(directory)["config"]["model"]
    select = lambda model: flatten_dict({group: model[group] for group in groups})  # noqa: E731
    before, now = select(trained), select(to_dict(config.model))
    differ = [name for name in now if before.get(name) != now[name] and name.rpartition(".")[2] not in COMPUTATION]
    if differ:
        lines = "; ".join(f"model.{name} is {now[name]}, trained with {before.get(name)}" for name in differ)
        raise ConfigError(
            f"the configuration does not fit the checkpoint {directory}, on which stage {config.stage} builds: {lines}. Use the model it "
            "was trained with, or train that stage again"
        )
