"""Published tensors against ours: comparison of names and shapes, tensors that are dropped, and loading onto devices."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import jax
import ml_dtypes
import numpy as np
from jax.sharding import Sharding

from vpp_jax.functional import Params
from vpp_jax.interop.report import ConversionError, ConversionReport
from vpp_jax.interop.safetensors_file import TensorSource
from vpp_jax.interop.tensor_mapping import TensorMapping

# Of parameters; stored without conversion, but for the last one, which becomes float32.
TYPES = tuple(np.dtype(kind) for kind in (np.float32, np.float16, ml_dtypes.bfloat16, np.float64))
# component -> (pattern of a published name, why it is dropped)
DROPPED: dict[str, tuple[tuple[str, str], ...]] = {
    "unet": (),
    "vae": (),
    "text": (
        (r"vision_model\..*|visual_projection\..*", "CLIP's image encoder: the video model is conditioned on text only"),
        (r"logit_scale", "temperature of CLIP's own training"),
        (r"text_model\.embeddings\.position_ids", "a buffer that counts 0, 1, 2, ..."),
    ),
    "policy": (
        (r"model\.inner_model\.pos_emb", "no forward pass reads it"),
        (r"model\.inner_model\.goal_emb\..*", "twin of lang_emb for image goals, no forward pass reads it"),
        (r"model\.inner_model\.proprio_emb\..*", "this policy has no proprioception (model.action.proprio_dim = 0)"),
        (r"language_goal\.clip_rn50\.visual\..*", "CLIP's image encoder: goals are given as text"),
        (r"language_goal\.clip_rn50\.logit_scale", "temperature of CLIP's own training"),
        (r"TVP_encoder\.text_encoder\.text_model\.embeddings\.position_ids", "a buffer that counts 0, 1, 2, ..."),
    ),
}


def compare_names(
    kind: str,
    source: TensorSource,
    wanted: Mapping[str, TensorMapping],
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
) -> ConversionReport:
    """Compares names and shapes; nothing is read. `check` of the report raises if a tensor is neither expected nor allowed."""
    shapes = {mapping.name: mapping.shape for mapping in wanted.values()}
    report, present = ConversionReport(source.where), source.tensors
    for name, shape in shapes.items():
        if name not in present:
            report.missing.append(name)
        elif present[name].shape != shape:
            report.wrong_shape[name] = f"{list(present[name].shape)}, expected {list(shape)}"
        elif present[name].dtype not in TYPES:
            report.wrong_shape[name] = f"{present[name].dtype}, expected {', '.join(map(str, TYPES))}"
        else:
            report.loaded.append(name)
    for name in present.keys() - shapes.keys():
        reason = next((reason for pattern, reason in DROPPED[kind] if re.fullmatch(pattern, name)), None)
        if reason is None:
            report.unexpected.append(name)
        else:
            report.dropped[name] = reason
    if doubles := sum(present[name].dtype == np.float64 for name in report.loaded):
        report.notes.append(f"{doubles} tensors are float64 and are stored as float32")
    report.unexpected.sort()
    report.dropped = dict(sorted(report.dropped.items()))
    report.allow(allow_missing, allow_unexpected)
    return report


def load_onto(source: TensorSource, wanted: Mapping[str, TensorMapping], shardings: Mapping[str, Sharding]) -> Params:
    """Our parameters in the types of the file. Each tensor is read, transposed and put onto its sharding before the next one is read.

    Names that the source lacks become zeros. ConversionError for a tensor with values that are NaN or infinite.
    If a tensor is sharded over several processes, each stores its own shards.
    """
    present, params, last = source.tensors, {}, ("", np.empty(0))
    usual = Counter(present[mapping.name].dtype for mapping in wanted.values() if mapping.name in present).most_common(1)
    for name, mapping in sorted(wanted.items(), key=lambda item: item[1].name):
        if mapping.name in present:
            last = last if last[0] == mapping.name else (mapping.name, _read_finite(source, mapping.name))
            value = mapping.ours(last[1])
        else:
            dtype = usual[0][0] if usual and usual[0][0] != np.float64 else np.float32
            value = mapping.ours(np.zeros(mapping.shape, dtype))
        params[name] = jax.make_array_from_callback(
            value.shape, shardings[name], lambda part, value=value: np.ascontiguousarray(value[part])
        )
        params[name].block_until_ready()
    return {name: params[name] for name in wanted}


def _read_finite(source: TensorSource, name: str) -> np.ndarray:
    value = source.read(name)
    if value.dtype == np.float64:
        with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is refused
            value = value.astype(np.float32)
    if bad := value.size - int(np.count_nonzero(np.isfinite(value))):
        raise ConversionError(
            f"{source.where}: {bad} of {value.size} values of {name} are NaN or infinite: a damaged file, or a run that diverged"
        )
    return value
