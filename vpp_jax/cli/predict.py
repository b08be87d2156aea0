"""`vpp predict --checkpoint=DIR --image=FILE --instruction="..." --out=video.mp4`: sample a text-conditioned video from one image."""

import json
from collections.abc import Sequence
from pathlib import Path

from data_pipelines.storage import location
from vpp_jax.cli.parser import Parser
from vpp_jax.common.errors import VppError
from vpp_jax.common.files import require_writable


class PredictError(VppError):
    """An input that no video can be predicted from."""


def main(argv: Sequence[str]) -> int:
    parser = Parser(prog="vpp predict", description=__doc__)
    parser.add_argument("--checkpoint", type=location, required=True, help="work directory of stage video; a path or a bucket URL")
    parser.add_argument("--image", type=Path, required=True, help="first frame: JPEG, PNG, WebP, BMP or TIFF; resized to the model's size")
    parser.add_argument("--instruction", required=True, help='language instruction, e.g. "open the drawer"')
    parser.add_output("--out", required=True, metavar="FILE", help="FILE.mp4; a strip of the frames is written to FILE.png")
    parser.add_number("--seed", int, 0, "seed of the sampler's noise", at_least=0)
    parser.add_number("--fps", float, 8.0, "frames per second of the video file", at_least=0.1, at_most=240)
    options = parser.parse_args(argv)
    if options.out.suffix != ".mp4":
        raise PredictError(f"--out={options.out}: expected a name that ends in .mp4")
    if not options.instruction.strip():
        raise PredictError('--instruction is empty; the video model needs a text such as "open the drawer"')
    from eval.recording import write_video
    from vpp_jax.serving.video_generator import load_video_generator
    from vpp_jax.training.previews import write_strips

    strip = options.out.with_suffix(".png")
    for path in (options.out, strip):
        require_writable(path)
    image = read_image(options.image)
    video = load_video_generator(options.checkpoint).generate(image, options.instruction, options.seed)
    write_video(options.out, video, options.fps)
    write_strips(strip, [[(options.instruction, video)]])
    print(json.dumps({"out": str(options.out), "strip": str(strip), "frames": len(video), "size": video.shape[1], "seed": options.seed}))
    return 0


def read_image(path: Path):
    """uint8 [h w 3], RGB. PredictError where the file is not an image that can be shown; OSError where it cannot be read."""
    from data_pipelines.rlds.images import STILL_FORMATS, decode

    if path.exists() and not path.is_file():  # a device or a pipe may never end
        raise PredictError(f"--image={path} is not a file")
    try:
        return decode(path.read_bytes(), STILL_FORMATS)
    except ValueError as error:
        raise PredictError(f"--image={path}: {error}") from None
