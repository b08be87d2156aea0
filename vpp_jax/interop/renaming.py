"""Names that other programs gave to published tensors: wrappers that PyTorch puts around modules, and names of older versions."""

import re
from collections import Counter

import jax
import numpy as np

from vpp_jax.interop.report import ConversionError
from vpp_jax.interop.safetensors_file import TensorSource

WRAPPERS = r"(?<![^.])(?:_orig_mod|module)\."  # of torch.compile and DistributedDataParallel, in front of or inside a name
# diffusers before 0.17, in the attention blocks of its autoencoders and U-Nets
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD = re.compile(rf"(.*\.attentions\.\d+)\.({'|'.join(OLD_ATTENTION)})\.(weight|bias)")


class Renamed:
    """A source whose tensors have their published names. `notes` say what was renamed; it is empty where nothing was."""

    def __init__(self, source: TensorSource, kind: str):
        self._source, self.where = source, source.where
        self._names, counts = {}, Counter()
        for name in source.tensors:
            plain = re.sub(WRAPPERS, "", name)
            counts["the wrappers' prefixes '_orig_mod.' and 'module.' were removed"] += plain != name
            if kind in ("unet", "vae") and (old := _OLD.fullmatch(plain)):
                plain = f"{old[1]}.{OLD_ATTENTION[old[2]]}.{old[3]}"
                counts["attention names of older versions of diffusers were mapped"] += 1
            if plain in self._names:
                raise ConversionError(f"{source.where}: {name} and {self._names[plain]} are both {plain}; keep one of them")
            self._names[plain] = name
        self.notes = [f"{count} tensors: {text}" for text, count in counts.items() if count]
        self.tensors: dict[str, jax.ShapeDtypeStruct] = {plain: source.tensors[name] for plain, name in self._names.items()}

    def read(self, name: str) -> np.ndarray:
        return self._source.read(self._names[name])
