"""One vocabulary: retired words and identifiers appear nowhere in code, tests, configurations and documentation.

The words are those of the field (openpi, lerobot, diffusers, MaxText). Plain English words that were overused ("kept", "beside", "whole")
are a matter of review, not of this test; neither are identifiers that are ordinary words elsewhere (`place`, `match`, `leaves`).
"""

import re
from pathlib import Path

import pytest

# Retired words, in any case, also inside identifiers: word -> what to write.
WORDS = {
    r"pictures?": "image, frame (of a video)",
    r"sentences?": "instruction; prompt or text for the input of the video model",
    r"(?:goes|go|going|went|gone)[ _]on": "resumes, continues",
    r"(?:put|puts|putting)[ _]aside": "saves partial results",
    r"ladders?": "noise schedule",
    r"actors?": "policy",
    r"on processors": "on CPU",
    r"absent (?:TPU )?slices?": "without the hardware",
}
# Retired identifiers, configuration keys and flags: name -> what to write. A name that starts with a dash is a flag.
IDENTIFIERS = {
    # data
    "take_turns": "interleave",
    "ENDLESS": "MAX_EXAMPLES",
    "_Filling": "_BatchAssembler",
    "PLANNED": "BATCHES_PER_PLAN",
    "Tally": "PartialStats",
    "ColumnSketch": "RunningStats",
    "_take_in": "_flush",
    "LEFT_OUT": "skipped or filtered",
    "_leave_out": "skip",
    "accept_unconfirmed": "allow_unverified",
    "PASSING_REFUSALS": "RETRYABLE_HTTP",
    "LASTING": "NON_RETRYABLE",
    "_lasts": "_is_permanent",
    "scaled_decoding": "jpeg_dct_scaling",
    # configuration
    "LadderConfig": "NoiseScheduleConfig",
    "sigma_ladder": "get_sigmas",
    "shard_above": "min_size_to_shard",
    "MAY_CHANGE": "a field's `on_resume`",
    "model.execute": "model.n_action_steps",
    "train.accumulate": "train.grad_accum_steps",
    "train.keep": "train.max_to_keep",
    "data.root": "data.data_dir",
    "data.absent": "data.missing_datasets",
    # training
    "SharedFlag": "PreemptionFlag",
    "TRY_AGAIN": "EX_TEMPFAIL",
    "batch_part": "process_rows",
    "draw_batch": "plot_batch",
    "motion_figures": "motion_metrics",
    "check_passes": "check_micro_batches",
    # models, diffusion, kernels
    "Placeholder": "Identity",
    "MixingGate": "AlphaBlender",
    "TimestepMLP": "TimestepEmbedding",
    "of_doubled": "upsample_conv",
    "in_blocks": "blockwise",
    "_attend_to_few": "_absorbed_cross_attention",
    "_attend_one_by_one": "_mapped_attention",
    "on_own_rows": "shard_map_over_batch",
    "row_keys": "example_keys",
    "split_rows": "split_example_keys",
    "normal_rows": "normal_per_example",
    "policy.read": "policy.encode_instruction",
    # conversion, compilation
    "next_knob": "suggest_change",
    "vpp_jax.compilation": "vpp_jax.aot",
    "interop.slots": "interop.tensor_mapping",
    # flags
    "--execute": "--n_action_steps",
    "--record": "--num_videos",
    "--record_every": "--video_stride",
    "--rate": "--fps",
    "--longest": "--max_video_frames",
    "--most_frames": "--num_frames",
    "--val_share": "--val_fraction",
    "--fit": "--resize_mode",
    "--process_index": "--shard_index",
    "--process_count": "--num_shards",
    "--allow-missing": "--allow_missing",
    "--allow-unexpected": "--allow_unexpected",
    "--position-encode": "--position_encode",
}
# Where the texts are. The change log speaks of earlier versions; tests/data holds recorded and published files.
FOLDERS = ("vpp_jax", "data_pipelines", "eval", "configs", "benchmarks", "tools", "launch", "docs", "tests", ".github", ".ci")
FILES = ("README.md", "CONTRIBUTING.md", "Makefile", "pyproject.toml", "CITATION.cff")
SUFFIXES = (".py", ".md", ".sh", ".svg", ".yml", ".toml", ".json", ".txt", "")
EXEMPT = ("tests/data/", "tests/test_vocabulary.py")

WORD = re.compile("(?<![a-z])(?:" + "|".join(WORDS) + ")(?![a-z])", re.IGNORECASE)
IDENTIFIER = re.compile(r"(?<![\w-])(?:" + "|".join(map(re.escape, IDENTIFIERS)) + r")(?![\w-])")


def texts(project: Path) -> list[tuple[str, str]]:
    """(path, text) of every file that people read or that computers run."""
    paths = [project / name for name in FILES]
    for folder in FOLDERS:
        paths += [path for path in (project / folder).rglob("*") if path.suffix in SUFFIXES and path.is_file()]
    named = {path.relative_to(project).as_posix(): path for path in paths if path.exists() and "__pycache__" not in path.parts}
    return [(name, path.read_text()) for name, path in sorted(named.items()) if not name.startswith(EXEMPT)]


def retired(name: str, text: str) -> list[str]:
    """'FILE:LINE: 'word', write: replacement' for every retired word and identifier of a text."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        hits = [(match[0], replacement(match[0])) for match in WORD.finditer(line)]
        hits += [(match[0], IDENTIFIERS[match[0]]) for match in IDENTIFIER.finditer(line)]
        found += [f"{name}:{number}: '{word}', write: {better}" for word, better in hits]
    return found


def replacement(word: str) -> str:
    return next(better for pattern, better in WORDS.items() if re.fullmatch(pattern, word, re.IGNORECASE))


def test_no_retired_word_or_identifier(project):
    found = [hit for name, text in texts(Path(project)) for hit in retired(name, text)]
    assert not found, f"{len(found)} retired words, see the lists in {Path(__file__).name}:\n" + "\n".join(found[:50])


def test_every_kind_of_file_is_read(project):
    names = [name for name, _ in texts(Path(project))]
    for expected in (
        "README.md",
        "vpp_jax/policy.py",
        "eval/report/page.py",
        "docs/architecture.md",
        "configs/tiny_calvin_vae.py",
        "launch/tpu.sh",
    ):
        assert expected in names


@pytest.mark.parametrize(
    ("line", "hits"),
    [
        ("a still picture of the scene", 1),
        ("def first_sentence(text):", 1),
        ("SENTENCES = 1024", 1),
        ("training goes on from step 3", 1),
        ("`--record 4` and `--record_every=2`", 2),
        ("--num_videos 4 and --recorded", 0),
        ("from vpp_jax.diffusion.per_example import row_keys", 1),
        ("_example_keys, arrow_keys, depicted, sentenced", 0),
    ],
)
def test_what_counts_as_retired(line, hits):
    assert len(retired("x.py", line)) == hits
