"""`vpp predict --checkpoint=DIR --image=FILE --text="..." --out=video.mp4`: samples how a scene goes on when told so."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from vpp_jax.common.errors import VppError


class PredictError(VppError):
    """An input that no video can be predicted from."""


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="vpp predict", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="work directory of stage video")
    parser.add_argument("--image", type=Path, required=True, help="first frame: any picture file; squeezed to the model's square size")
    parser.add_argument("--text", required=True, help="what is to happen")
    parser.add_argument("--out", type=Path, required=True, help="FILE.mp4; FILE.png beside it gets a strip of the frames")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=8.0, help="frames per second of the video")
    options = parser.parse_args(argv)
    if options.out.suffix != ".mp4":
        raise PredictError(f"--out={options.out}: expected a name that ends in .mp4")
    if not options.text.strip():
        raise PredictError("--text is empty; the model needs a sentence")
    from eval.recording import write_video
    from vpp_jax.training.previews import write_strips

    video = predict(options.checkpoint, options.image, options.text, options.seed)
    strip = options.out.with_suffix(".png")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_video(options.out, video, options.rate)
    write_strips(strip, [[(options.text, video)]])
    print(json.dumps({"out": str(options.out), "strip": str(strip), "frames": len(video), "size": video.shape[1], "seed": options.seed}))
    return 0


def predict(checkpoint: Path, image: Path, text: str, seed: int = 0):
    """uint8 [t s s 3], the given frame's reconstruction first."""
    import jax
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    from data_pipelines.transforms import resize
    from vpp_jax.config import from_config_dict
    from vpp_jax.models.tokenizer import CLIPTokenizer
    from vpp_jax.parallel.mesh import compiler_options
    from vpp_jax.training.checkpoints import load_params, read_metadata
    from vpp_jax.training.stages.video import VideoStage

    metadata = read_metadata(checkpoint)
    if metadata["stage"] != "video":
        raise PredictError(f"{checkpoint} holds stage {metadata['stage']}; videos are predicted from a checkpoint of stage video")
    stage = VideoStage(from_config_dict(metadata["config"]))
    model = stage.config.model
    try:
        with Image.open(image) as picture:
            first = resize(np.asarray(picture.convert("RGB")), model.image_size)
    except UnidentifiedImageError:
        raise PredictError(f"{image} is not a picture") from None
    params = load_params(checkpoint, stage.abstract_trainable() | stage.abstract_frozen(), stage="video")
    ids, mask = CLIPTokenizer(model.text_length)([text])
    generate = jax.jit(stage.predictor.generate, compiler_options=compiler_options())
    return np.asarray(generate(params, first[None], ids, mask, jax.random.key(seed)))[0]
