"""Published training mixtures by name, and their expansion to the datasets in a directory: `data.mixture` and `data.data_dir`.

The definition of a weight differs. Octo and OpenVLA multiply it by the number of steps N of the dataset before normalising,
p_i = w_i N_i / sum_j w_j N_j, so that 1 is "in proportion to size" (`per_step`). RT-1-X, iVideoGPT and VPP use plain sampling weights.
Where two lists are merged, the weight of the first one is used. A dataset without a registry row (private data, or a copy that only Octo
has) counts as missing, unless an entry of `data.datasets` says where it is.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from data_pipelines.config import DataConfig, DatasetConfig
from data_pipelines.errors import DataError
from data_pipelines.openx import local_copy
from data_pipelines.openx.registry import CLIP_COLUMNS
from data_pipelines.openx.robots import robot_of
from vpp_jax.common.errors import did_you_mean, nearest

# Names of validation splits, in order of preference.
VALIDATION = ("val", "validation", "test")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MixtureTable:
    """weights: dataset -> weight; per_step: multiply the weight by the number of steps of the dataset."""

    weights: Mapping[str, float]
    per_step: bool
    source: str


OCTO_LISTS = ("rtx", "franka", "magic_soup", "flex_act_soup", "full")
OCTO: Mapping[str, tuple[float, ...]] = {  # 0: not in the list
    "fractal20220817_data": (0.54087122203, 0, 0.54087122203, 0.54087122203, 1),
    "kuka": (0.8341046294, 0, 0.8341046294, 0.8341046294, 1),
    "bridge_dataset": (1, 0, 1, 1, 1),
    "taco_play": (2, 1, 2, 2, 1),
    "jaco_play": (2, 0, 1, 1, 1),
    "berkeley_cable_routing": (3, 1, 1, 1, 1),
    "roboturk": (1, 0, 2, 2, 1),
    "nyu_door_opening_surprising_effectiveness": (5, 0, 1, 1, 1),
    "viola": (2, 1, 2, 2, 1),
    "berkeley_autolab_ur5": (1, 0, 2, 2, 1),
    "toto": (1, 1, 1, 1, 1),
    "stanford_hydra_dataset_converted_externally_to_rlds": (0, 1, 2, 2, 1),
    "austin_buds_dataset_converted_externally_to_rlds": (0, 3, 1, 1, 1),
    "nyu_franka_play_dataset_converted_externally_to_rlds": (0, 3, 3, 3, 1),
    "maniskill_dataset_converted_externally_to_rlds": (0, 0.1, 0, 0, 1),
    "furniture_bench_dataset_converted_externally_to_rlds": (0, 0.1, 0.1, 0.1, 1),
    "cmu_franka_exploration_dataset_converted_externally_to_rlds": (0, 5, 0, 0, 1),
    "austin_sailor_dataset_converted_externally_to_rlds": (0, 1, 1, 1, 1),
    "austin_sirius_dataset_converted_externally_to_rlds": (0, 1, 1, 1, 1),
    "berkeley_rpt_converted_externally_to_rlds": (0, 1, 0, 0, 1),
    "kaist_nonprehensile_converted_externally_to_rlds": (0, 3, 0, 0, 1),
    "stanford_robocook_converted_externally_to_rlds": (0, 1, 0, 0, 1),
    "iamlab_cmu_pickup_insert_converted_externally_to_rlds": (0, 1, 1, 1, 1),
    "utaustin_mutex": (0, 1, 1, 1, 1),
    "cmu_play_fusion": (0, 1, 0, 0, 1),
    "language_table": (0, 0, 0.1, 0.1, 1),
    "ucsd_kitchen_dataset_converted_externally_to_rlds": (0, 0, 2, 2, 1),
    "bc_z": (0, 0, 0.2, 0.2, 1),
    "dlr_edan_shared_control_converted_externally_to_rlds": (0, 0, 1, 1, 1),
    "berkeley_fanuc_manipulation": (0, 0, 2, 2, 1),
    "cmu_stretch": (0, 0, 1, 1, 1),
    "berkeley_mvp_converted_externally_to_rlds": (0, 0, 0, 1, 1),
    "gnm_dataset": (0, 0, 0, 1, 1),
    "aloha_static_dataset": (0, 0, 0, 3, 0),
    "aloha_mobile_dataset": (0, 0, 0, 2, 0),
    "dobbe": (0, 0, 0, 1, 0),
    "roboset": (0, 0, 0, 0.5, 0),
    "rh20t": (0, 0, 0, 0.5, 0),
    "columbia_cairlab_pusht_real": (0, 0, 0, 0, 1),
    "stanford_kuka_multimodal_dataset_converted_externally_to_rlds": (0, 0, 0, 0, 1),
    "nyu_rot_dataset_converted_externally_to_rlds": (0, 0, 0, 0, 1),
    "ucsd_pick_and_place_dataset_converted_externally_to_rlds": (0, 0, 0, 0, 1),
    "utokyo_pr2_opening_fridge_converted_externally_to_rlds": (0, 0, 0, 0, 1),
    "utokyo_pr2_tabletop_manipulation_converted_externally_to_rlds": (0, 0, 0, 0, 1),
    "utokyo_xarm_pick_and_place_converted_externally_to_rlds": (0, 0, 0, 0, 1),
    "utokyo_xarm_bimanual_converted_externally_to_rlds": (0, 0, 0, 0, 1),
    "robo_net": (0, 0, 0, 0, 1),
    "stanford_mask_vit_converted_externally_to_rlds": (0, 0, 0, 0, 1),
    "tokyo_u_lsmo_converted_externally_to_rlds": (0, 0, 0, 0, 1),
    "dlr_sara_pour_converted_externally_to_rlds": (0, 0, 0, 0, 1),
    "dlr_sara_grid_clamp_converted_externally_to_rlds": (0, 0, 0, 0, 1),
    "asu_table_top_converted_externally_to_rlds": (0, 0, 0, 0, 1),
    "imperialcollege_sawyer_wrist_cam": (0, 0, 0, 0, 1),
    "uiuc_d3field": (0, 0, 0, 0, 1),
    "cmu_playing_with_food": (0, 0, 0, 0, 1),
}
OPENVLA_LISTS = ("rtx", "magic_soup", "magic_soup_plus", "magic_soup_plus_minus")
OPENVLA: Mapping[str, tuple[float, ...]] = {
    "fractal20220817_data": (0.54087122203, 0.54087122203, 0.54087122203, 1),
    "kuka": (0.8341046294, 0.8341046294, 0.8341046294, 0.8341046294),
    "bridge_orig": (1, 1, 1, 1),
    "taco_play": (2, 2, 2, 2),
    "jaco_play": (2, 1, 1, 1),
    "berkeley_cable_routing": (3, 1, 1, 1),
    "roboturk": (1, 2, 2, 2),
    "viola": (2, 2, 2, 2),
    "berkeley_autolab_ur5": (1, 2, 2, 2),
    "toto": (1, 1, 1, 1),
    "language_table": (0, 0.1, 0.1, 0),
    "stanford_hydra_dataset_converted_externally_to_rlds": (0, 2, 2, 2),
    "austin_buds_dataset_converted_externally_to_rlds": (0, 1, 1, 1),
    "nyu_franka_play_dataset_converted_externally_to_rlds": (0, 3, 3, 3),
    "furniture_bench_dataset_converted_externally_to_rlds": (0, 0.1, 0.1, 0.1),
    "ucsd_kitchen_dataset_converted_externally_to_rlds": (0, 2, 2, 2),
    "austin_sailor_dataset_converted_externally_to_rlds": (0, 1, 1, 1),
    "austin_sirius_dataset_converted_externally_to_rlds": (0, 1, 1, 1),
    "dlr_edan_shared_control_converted_externally_to_rlds": (0, 1, 1, 1),
    "iamlab_cmu_pickup_insert_converted_externally_to_rlds": (0, 1, 1, 1),
    "utaustin_mutex": (0, 1, 1, 1),
    "berkeley_fanuc_manipulation": (0, 2, 2, 2),
    "cmu_stretch": (0, 1, 1, 1),
    "bc_z": (0, 0, 0.2, 0.2),
    "fmb_dataset": (0, 0, 1, 1),
    "dobbe": (0, 0, 0.2, 0.2),
    "droid": (0, 0, 0.06, 0),
}
RT_1_X = {
    "fractal20220817_data": 150,
    "bridge": 50,
    "taco_play": 5,
    "jaco_play": 20,
    "berkeley_cable_routing": 20,
    "roboturk": 10,
    "nyu_door_opening_surprising_effectiveness": 5,
    "viola": 3,
    "berkeley_autolab_ur5": 5,
    "toto": 5,
}
IVIDEOGPT = {
    "fractal20220817_data": 12.8,
    "bridge": 12.8,
    "bc_z": 12.8,
    "robo_net": 12.8,
    "kuka": 8.5,
    "language_table": 4.2,
    "stanford_mask_vit_converted_externally_to_rlds": 4.2,
    "uiuc_d3field": 2.2,
    "something_something_v2": 15.0,
    **dict.fromkeys(
        (
            "taco_play",
            "jaco_play",
            "roboturk",
            "viola",
            "toto",
            "columbia_cairlab_pusht_real",
            "stanford_kuka_multimodal_dataset_converted_externally_to_rlds",
            "stanford_hydra_dataset_converted_externally_to_rlds",
            "austin_buds_dataset_converted_externally_to_rlds",
            "nyu_franka_play_dataset_converted_externally_to_rlds",
            "furniture_bench_dataset_converted_externally_to_rlds",
            "ucsd_kitchen_dataset_converted_externally_to_rlds",
            "ucsd_pick_and_place_dataset_converted_externally_to_rlds",
            "austin_sailor_dataset_converted_externally_to_rlds",
            "utokyo_pr2_tabletop_manipulation_converted_externally_to_rlds",
            "utokyo_xarm_pick_and_place_converted_externally_to_rlds",
            "utokyo_xarm_bimanual_converted_externally_to_rlds",
            "kaist_nonprehensile_converted_externally_to_rlds",
            "dlr_sara_pour_converted_externally_to_rlds",
            "dlr_sara_grid_clamp_converted_externally_to_rlds",
            "dlr_edan_shared_control_converted_externally_to_rlds",
            "asu_table_top_converted_externally_to_rlds",
            "utaustin_mutex",
            "berkeley_fanuc_manipulation",
            "cmu_playing_with_food",
            "cmu_play_fusion",
            "cmu_stretch",
        ),
        0.5,
    ),
}
# From the paper's appendix; SSv2, MetaWorld, the Panda arm and the hand are not Open-X datasets.
VPP_PAPER = {
    "something_something_v2": 0.30,
    "fractal20220817_data": 0.15,
    "bridge_dataset": 0.15,
    "bc_z": 0.08,
    "taco_play": 0.01,
    "jaco_play": 0.01,
    "calvin": 0.10,
    "metaworld": 0.05,
    "panda_arm": 0.05,
    "dexterous_hand": 0.10,
}
# From the configuration file released with the code for CALVIN.
VPP_RELEASED = {"something_something_v2": 0.4, "bridge_dataset": 0.2, "fractal20220817_data": 0.2, "calvin": 0.2}


def _column(table: Mapping[str, tuple[float, ...]], lists: tuple[str, ...], name: str) -> dict[str, float]:
    column = lists.index(name)
    return {dataset: row[column] for dataset, row in table.items() if row[column]}


_OCTO = {name: _column(OCTO, OCTO_LISTS, name) for name in OCTO_LISTS}
_OPENVLA = {name: _column(OPENVLA, OPENVLA_LISTS, name) for name in OPENVLA_LISTS}
MIXTURES: Mapping[str, MixtureTable] = {
    "vpp_paper": MixtureTable(VPP_PAPER, False, "Video Prediction Policy, appendix"),
    "vpp_released": MixtureTable(VPP_RELEASED, False, "Video Prediction Policy, released CALVIN configuration"),
    "octo_rtx": MixtureTable(_OCTO["rtx"], True, "Octo: rtx"),
    "octo_rtx_franka": MixtureTable(_OCTO["franka"] | _OCTO["rtx"], True, "Octo: rtx_franka"),
    "octo_magic_soup": MixtureTable(_OCTO["magic_soup"], True, "Octo: oxe_magic_soup"),
    "octo_flex_act_soup": MixtureTable(_OCTO["flex_act_soup"], True, "Octo: oxe_flex_act_soup"),
    "octo_full": MixtureTable(_OCTO["full"], True, "Octo: every dataset once, not registered there"),
    "openvla_rtx": MixtureTable(_OPENVLA["rtx"], True, "OpenVLA: rtx"),
    "openvla_rtx_franka": MixtureTable(_OCTO["franka"] | _OPENVLA["rtx"], True, "OpenVLA: rtx_franka"),
    "openvla_bridge_rt_1": MixtureTable({"bridge_orig": 1, "fractal20220817_data": 1}, True, "OpenVLA: bridge_rt_1"),
    "openvla_magic_soup": MixtureTable(_OPENVLA["magic_soup"], True, "OpenVLA: oxe_magic_soup"),
    "openvla_magic_soup_plus": MixtureTable(_OPENVLA["magic_soup_plus"], True, "OpenVLA: oxe_magic_soup_plus"),
    "openvla_magic_soup_plus_minus": MixtureTable(_OPENVLA["magic_soup_plus_minus"], True, "OpenVLA: oxe_magic_soup_plus_minus"),
    "rt_1_x": MixtureTable(RT_1_X, False, "RT-1-X training example"),
    "ivideogpt": MixtureTable(IVIDEOGPT, False, "iVideoGPT, video pretraining"),
}


def mixture(name: str) -> MixtureTable:
    """The mixture `name`; DataError with similar names otherwise ('oxe_magic_soup' exists in Octo and in OpenVLA)."""
    if name not in MIXTURES:
        part = name.removeprefix("oxe_")
        hint = did_you_mean([known for known in MIXTURES if known.endswith(part)]) or nearest(name, MIXTURES)
        raise DataError(f"mixture '{name}' is unknown (has {', '.join(MIXTURES)}){hint}")
    return MIXTURES[name]


def expand(config: DataConfig, columns: Sequence[str] = CLIP_COLUMNS) -> DataConfig:
    """`config` with the members of its mixture added to `datasets`.

    An entry of `datasets` that has a path is a dataset of its own. One without a path changes the fields of the member with its name: its
    weight, its views, ... DataError where there is no such member, listing every dataset that `data_dir` lacks (unless `missing_datasets`
    is 'skip'), and every one whose description lacks one of `columns` (unless `refused` is 'skip').
    """
    if not config.mixture:
        return _usable(config, columns)
    table = mixture(config.mixture)
    if not config.data_dir:
        raise DataError(f"data.mixture is '{config.mixture}', but data.data_dir is empty; set it to the directory that holds the datasets")
    own = [_own(entry, table) for entry in config.datasets if entry.path]
    changes = {entry.name: _changed(entry) for entry in config.datasets if not entry.path}
    names = {name: local_copy.row_of(name) or name for name in table.weights}
    for name, changed in changes.items():
        if changed and name not in {*names, *names.values()}:
            raise DataError(
                f"data.datasets changes {', '.join(changed)} of '{name}', which is no member of mixture '{config.mixture}'"
                f"{nearest(name, names)}; give it a path to add it as a dataset of its own"
            )
    replaced = {entry.name for entry in own}
    found = {name: local_copy.locate(config.data_dir, name) for name, row in names.items() if not {name, row} & replaced}
    missing = [name for name, entry in found.items() if entry is None]
    if missing and (config.missing_datasets == "fail" or (len(missing) == len(found) and not own)):
        raise DataError(
            f"{config.data_dir} lacks {len(missing)} of the {len(found)} datasets of mixture '{config.mixture}': "
            f"{', '.join(missing)}. Copy them, or set data.missing_datasets=skip; "
            f"`vpp data inspect {config.data_dir} --mixture {config.mixture}` shows all"
        )
    if missing:
        log.warning(
            "mixture %s: %d of %d datasets are missing from %s and skipped: %s",
            config.mixture,
            len(missing),
            len(found),
            config.data_dir,
            ", ".join(missing),
        )
    datasets = []
    for name, entry in found.items():
        if entry is not None:
            row, info = entry
            splits = info.splits
            complete = [split for split in VALIDATION if split in splits and splits[split].files and not splits[split].absent]
            member = DatasetConfig(
                path=str(info.directory),
                name=row,
                weight=table.weights[name],
                per_step=table.per_step,
                val_split=complete[0] if complete else "train",
            )
            datasets.append(replace(member, **(changes.get(row, {}) | changes.get(name, {}))))
    return _usable(replace(config, datasets=(*datasets, *own), mixture="", data_dir=""), columns)


def _own(entry: DatasetConfig, table: MixtureTable) -> DatasetConfig:
    """An entry with a path; in place of a member, it has that member's weight if it says none."""
    if entry.name not in table.weights:
        return entry
    return replace(DatasetConfig(weight=table.weights[entry.name], per_step=table.per_step), name=entry.name, **_changed(entry))


def _changed(entry: DatasetConfig) -> dict[str, Any]:
    """The fields of an entry that are not at their defaults."""
    defaults = DatasetConfig(name=entry.name)
    return {field.name: value for field in fields(entry) if (value := getattr(entry, field.name)) != getattr(defaults, field.name)}


def _usable(config: DataConfig, columns: Sequence[str]) -> DataConfig:
    """With `refused` 'skip', without the datasets that lack one of `columns`, which are logged."""
    if config.refused == "fail":
        return config
    specs = {entry: robot_of(entry) for entry in config.datasets}
    refused = {entry: spec.why_unusable(columns, entry.name in config.allow_unverified) for entry, spec in specs.items()}
    kept = tuple(entry for entry, why in refused.items() if not why)
    if skipped := [f"{entry.name} ({why})" for entry, why in refused.items() if why]:
        if not kept:
            raise DataError(f"data.refused=skip leaves no dataset: {', '.join(skipped)}")
        log.warning("%d of %d datasets cannot be used here and are skipped: %s", len(skipped), len(refused), ", ".join(skipped))
    return replace(config, datasets=kept)
