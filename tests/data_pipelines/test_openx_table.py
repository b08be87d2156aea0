"""The table of Open-X datasets, cell by cell against the collected facts, and its unverified columns."""

import csv
import re

import pytest

from data_pipelines.openx.conventions import ActionEncoding, Gripper, Proprio
from data_pipelines.openx.registry import CLIP_COLUMNS, POLICY_COLUMNS, REGISTRY, dataset_spec
from data_pipelines.openx.table import OPENX, REACHED, OpenXDataset

COPIES = {"bridge_dataset"}  # rows that TFDS has under another name
GRIPPERS = {
    "rel2abs": Gripper.RELATIVE,
    "none in Octo/OpenVLA; rel2abs would be consistent": Gripper.RELATIVE,
    "clip+invert": Gripper.CLIPPED_CLOSED,
    "clip+invert ?": Gripper.CLIPPED_CLOSED,
    "clip": Gripper.CLIPPED_OPEN,
    "clip (then invert if the catalog text is right)": Gripper.CLIPPED_OPEN,
    "invert": Gripper.CLOSED,
    "invert of state": Gripper.CLOSED,
    "invert (Octo) / none (OpenVLA)": Gripper.CLOSED,
    "none in Octo/OpenVLA; invert needed for 1=open": Gripper.CLOSED,
    "cast": Gripper.OPEN,
    "none (rel; no conversion given)": Gripper.OPEN,
    "none in Octo/OpenVLA; (g+1)/2 needed for 0..1": Gripper.SIGNED_OPEN,
    "none in Octo/OpenVLA; (1-g)/2 needed for 0..1 with 1=open": Gripper.SIGNED_CLOSED,
    "binarize (new) / cast bool (old)": Gripper.CONTINUOUS_OPEN,
    "binarize ?": Gripper.CONTINUOUS_OPEN,
    "binarize+invert": Gripper.THRESHOLD_CLOSED,
    "none (zero pad)": Gripper.ABSENT,
    "none (constant 1)": Gripper.ABSENT_OPEN,
    "?": Gripper.UNKNOWN,
}
NO_GRIPPER = ("no gripper", "none", "no action channel", "end-effector type id", "observation.an_object")
ENCODINGS = {
    "eef pos delta": ActionEncoding.EEF_DELTA,
    "eef velocity": ActionEncoding.EEF_DELTA,
    "xyz goal": ActionEncoding.EEF_DELTA,
    "joint bimanual": ActionEncoding.JOINT_BIMANUAL,
    "joint": ActionEncoding.JOINT,
    "2-D waypoint": ActionEncoding.NAVIGATION,
    "text": ActionEncoding.OTHER,
    "pick/place": ActionEncoding.OTHER,
    "discrete": ActionEncoding.OTHER,
    "?": ActionEncoding.UNKNOWN,
    "undocumented": ActionEncoding.UNKNOWN,
}
STATES = {
    "none": Proprio.NONE,
    "pos euler": Proprio.POS_EULER,
    "pos quat": Proprio.POS_QUAT,
    "joint bimanual": Proprio.JOINT_BIMANUAL,
    "joint": Proprio.JOINT,
    "xy+yaw": Proprio.NAVIGATION,
    "other": Proprio.OTHER,
    "?": Proprio.UNKNOWN,
}
# The text of the cell itself says that its first words are wrong.
CORRECTED = {"cmu_playing_with_food": Proprio.OTHER, "fmb": Proprio.POS_QUAT}
MARKED = {
    "cameras": ("image_keys",),
    "action": ("action_encoding", "action_composition"),
    "gripper": ("gripper_raw", "gripper_transform"),
    "proprio": ("proprio_keys", "proprio_encoding"),
    "instruction": ("language_key",),
}


@pytest.fixture(scope="module")
def facts(reference_data) -> dict[str, dict[str, str]]:
    with open(reference_data / "openx" / "datasets.tsv", newline="") as file:
        return {row["tfds_name"]: row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}


@pytest.fixture(params=sorted(set(OPENX) - COPIES))
def pair(request, facts) -> tuple[OpenXDataset, dict[str, str]]:
    return OPENX[request.param], facts[request.param]


def by_first_words(table: dict, cell: str):
    return next(value for words, value in table.items() if cell.startswith(words))


def indices(start: int, stop: int | None) -> set[int]:
    return set(range(start, stop or 0)) if start < 0 else set(range(start, stop))


def references(text: str) -> dict[str, set[int]]:
    """Column -> indices, from 'name[2:4] + name[-1], other(7), flag[:,0], bare.key' as the facts write them."""
    found: dict[str, set[int]] = {}
    text = re.sub(r'(\w)\["([^"]+)"\]', r"\1.\2", text)
    for name, rest in re.findall(r"([a-zA-Z_][\w./]*)((?:\[[^\]]*\]|\(\d+)?)", text):
        if rest.startswith("("):
            used = set(range(int(rest[1:])))
        elif rest in ("", "[:,0]", "[:,None]"):
            used = {0}
        else:
            start, colon, stop = rest[1:-1].partition(":")
            first = int(start or 0)
            used = indices(first, int(stop) if stop else None) if colon else {first}
        found.setdefault(name, set()).update(used)
    return found


def of_parts(row_parts, strip: str = "") -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for part in row_parts:
        if part is not None and part.key:
            found.setdefault(part.key.removeprefix(strip), set()).update(indices(part.start, part.stop))
    return found


def test_all_of_them(facts):
    assert len(facts) == 69
    assert set(facts) == set(OPENX) - COPIES


def test_place_rate_and_cameras(pair):
    row, cell = pair
    folder, version = cell["location"].split(" ")[0].split("/")
    assert (row.folder or row.name, row.versions[0]) == (folder, version)
    assert row.control_hz == (None if cell["control_hz"] == "?" else float(cell["control_hz"]))
    cameras = cell["image_keys"].split(" / ")[0]
    roles = {"P": "primary", "S": "secondary", "T": "tertiary", "W": "wrist"}
    expected = {roles[role]: key.replace(".", "/") for role, key in re.findall(r"\b([PSTW])=([\w.]+)", cameras)}
    if not expected and not cameras.startswith("none"):
        expected = {key: key for key in cameras.split(", ")}
    assert dict(row.cameras) == expected
    assert bool(row.bgr_cameras) == ("BGR" in cell["notes"])
    assert (row.episode_filter is not None) == ("FILTER" in cell["notes"] or "must be dropped" in cell["notes"])


def test_action(pair):
    row, cell = pair
    assert row.action == by_first_words(ENCODINGS, cell["action_encoding"])
    transform = cell["gripper_transform"]
    if transform == "none":
        none = cell["gripper_raw"].startswith(NO_GRIPPER)
        expected = {Gripper.ABSENT} if none else {Gripper.UNKNOWN} if row.action is ActionEncoding.JOINT_BIMANUAL else {Gripper.OPEN}
    else:
        expected = {GRIPPERS[transform]}
    assert row.gripper_convention in expected
    if row.composition is None:
        return
    text = cell["action_composition"]
    if "reached-state relabelling" in text or text.startswith("as bridge"):
        assert str(row.composition) == f"{REACHED} + continuous_open(action[6:7])"
        return
    text = text.split("Consistent form: ")[-1].split(" (also")[0]
    alias = re.match(r"a=([\w.]+); ", text)
    found = references(re.sub(r"\(a \d.*\)|a \(15\).*->|\(\w+ proposal.*\)", "", text.removeprefix(alias[0] if alias else "")))
    names = {"a": alias[1].replace(".", "/") if alias else "action", "state": "observation/state"}
    ours = of_parts(row.composition.parts)
    theirs = {names.get(name, name.replace(".", "/")): used for name, used in found.items()}
    assert ours == {name: used for name, used in theirs.items() if name.startswith(("action", "observation/"))}
    assert ("euler(" in text) == any(part.kind == "euler" for part in row.composition.parts)


def test_state_and_instruction(pair):
    row, cell = pair
    assert row.proprio == CORRECTED.get(row.name, by_first_words(STATES, cell["proprio_encoding"]))
    assert row.instruction == re.match(r"[\w.]+", cell["language_key"])[0].replace(".", "/")
    ours = {name.replace("/", "."): used for name, used in of_parts(row.proprio_composition.parts, "observation/").items()}
    text = re.sub(
        r"end_effector_cartesian_pos\(7\) \((.*) in OpenVLA\)",
        lambda found: "; ".join(f"end_effector_cartesian_pos{slice_}" for slice_ in found[1].split("+")),
        cell["proprio_keys"],
    )
    text = re.sub(r"\([^)]*state \d+[^)]*\)", "", text)  # how wide the column is
    theirs = {name.replace("/", "."): used for name, used in references(text).items()}
    if row.name == "taco_play":  # documented gripper width instead of the slice as coded
        theirs["robot_obs"] = theirs["robot_obs"] - {7} | {6}
    if row.name == "eth_agent_affordances":  # its eighth number is a door's angle
        theirs["state"] -= {7}
    assert ours == {name: theirs.get(name) for name in ours}
    assert bool(ours) == (row.proprio not in (Proprio.NONE, Proprio.OTHER, Proprio.UNKNOWN, Proprio.JOINT_BIMANUAL))


def test_question_marks_stay(pair):
    row, cell = pair
    marked = {name for name, columns in MARKED.items() if any("?" in cell[column] or "(conflict)" in cell[column] for column in columns)}
    assert set(row.unverified) == marked


def test_unverified_columns_are_errors():
    taco = dataset_spec("taco_play")
    assert taco.why_unusable(CLIP_COLUMNS) == ""
    assert re.match(r"gripper: not verified: the catalog says", taco.why_unusable(POLICY_COLUMNS))
    assert taco.why_unusable(POLICY_COLUMNS, allow_unverified=True) == ""
    unknown = dataset_spec("io_ai_tech").why_unusable(POLICY_COLUMNS, allow_unverified=True)
    assert "action: not an end-effector delta: not documented" in unknown
    assert "gripper: not documented" in unknown
    assert "control_hz: not documented" in dataset_spec("stanford_mask_vit_converted_externally_to_rlds").why_unusable(POLICY_COLUMNS)
    assert dataset_spec("eth_agent_affordances").why_unusable(CLIP_COLUMNS).startswith("cameras: images are black")
    assert not any(
        spec.why_unusable(POLICY_COLUMNS) for spec in REGISTRY.values() if spec.name in ("calvin", "calvin_mujoco", "bridge_dataset")
    )
