"""Conversion of files that PyTorch, diffusers, transformers and OmegaConf themselves have written."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed: `make parity` compares with it")
pytest.importorskip("diffusers", reason="diffusers is not installed: `make parity` compares with it")

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModelWithProjection

from vpp_jax.cli.main import main
from vpp_jax.config import from_config_dict
from vpp_jax.interop.torch_file import TorchFile
from vpp_jax.training.checkpoints import list_tensors, load_params, read_metadata

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 20,
    "projection_dim": 24,
    "vocab_size": 49408,
    "eos_token_id": 49407,
}
SMALL = ("--config.model.image_size=32", "--config.model.text_length=12")


def save_pipeline(folder: Path, dtype: torch.dtype, **options) -> None:
    """unet and vae as `save_pretrained` writes them, with weights that are not the initial ones."""
    torch.manual_seed(0)
    unet = UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        num_attention_heads=(1, 2),
        cross_attention_dim=64,
        layers_per_block=1,
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=96,
    )
    vae = AutoencoderKLTemporalDecoder(block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, layers_per_block=1)
    for name, module in (("unet", unet), ("vae", vae)):
        for value in module.parameters():
            torch.nn.init.normal_(value, std=0.1)
        module.to(dtype).save_pretrained(folder / name, safe_serialization=True, **options)


def save_text(folder: Path, whole: bool) -> None:
    torch.manual_seed(1)
    if whole:
        vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32}
        CLIPModel(CLIPConfig(text_config=TEXT, vision_config=vision, projection_dim=24)).save_pretrained(folder)
    else:
        CLIPTextModelWithProjection(CLIPTextConfig(**TEXT)).save_pretrained(folder)


@pytest.mark.parametrize(
    ("dtype", "options", "whole"),
    [
        (torch.float32, {}, False),
        (torch.float32, {"max_shard_size": "200KB"}, False),
        (torch.float16, {"variant": "fp16"}, True),
        (torch.bfloat16, {"variant": "bf16", "max_shard_size": "200KB"}, True),
    ],
    ids=["single", "sharded", "fp16", "bf16 sharded"],
)
def test_folders_of_diffusers_come_back_byte_by_byte(tmp_path, dtype, options, whole):
    save_pipeline(tmp_path / "pipeline", dtype, **options)
    save_text(tmp_path / "clip", whole)
    published = (f"--unet={tmp_path / 'pipeline'}", f"--text={tmp_path / 'clip'}")
    assert main(["convert", "import", *published, f"--out={tmp_path / 'in'}", *SMALL]) == 0
    assert main(["convert", "export", f"--checkpoint={tmp_path / 'in' / 'video'}", f"--out={tmp_path / 'out'}"]) == 0
    for folder in ("unet", "vae"):
        theirs = {path.name: path.read_bytes() for path in (tmp_path / "pipeline" / folder).iterdir()}
        assert {path.name: path.read_bytes() for path in (tmp_path / "out" / folder).iterdir()} == theirs
        assert len(theirs) >= (4 if "max_shard_size" in options and folder == "unet" else 2)
    exported, theirs = load_file(tmp_path / "out/text_encoder/model.safetensors"), load_file(tmp_path / "clip/model.safetensors")
    assert all(torch.equal(value, theirs[name]) for name, value in exported.items())
    if not whole:
        assert (tmp_path / "out/text_encoder/model.safetensors").read_bytes() == (tmp_path / "clip/model.safetensors").read_bytes()


def test_diffusers_opens_an_export_without_the_original_layout(tmp_path):
    save_pipeline(tmp_path / "pipeline", torch.float32)
    save_text(tmp_path / "clip", False)
    published = (f"--unet={tmp_path / 'pipeline'}", f"--text={tmp_path / 'clip'}")
    assert main(["convert", "import", *published, f"--out={tmp_path / 'in'}", *SMALL]) == 0
    (tmp_path / "in/video/published.json").unlink()
    assert main(["convert", "export", f"--checkpoint={tmp_path / 'in' / 'video'}", f"--out={tmp_path / 'out'}"]) == 0
    for kind, folder in ((UNetSpatioTemporalConditionModel, "unet"), (AutoencoderKLTemporalDecoder, "vae")):
        ours, theirs = (kind.from_pretrained(tmp_path / place / folder) for place in ("out", "pipeline"))
        wanted = theirs.state_dict()
        assert ours.state_dict().keys() == wanted.keys()
        assert all(torch.equal(value, wanted[name]) for name, value in ours.state_dict().items())
        name = "diffusion_pytorch_model.safetensors"
        assert (tmp_path / "out" / folder / name).read_bytes() == (tmp_path / "pipeline" / folder / name).read_bytes()
    text = CLIPTextModelWithProjection.from_pretrained(tmp_path / "out" / "text_encoder")
    assert all(torch.equal(value, text.state_dict()[name]) for name, value in load_file(tmp_path / "clip/model.safetensors").items())


def test_files_of_torch_save(tmp_path):
    """Modules' state dicts, parameters, views of one storage, all float types."""
    storage = torch.arange(24.0)
    model = torch.nn.Linear(3, 2).state_dict()
    model |= {
        "half": torch.randn(5).half(),
        "brain": torch.randn(5).bfloat16(),
        "count": torch.arange(3),
        "scalar": torch.tensor(-0.0),
        "turned": storage.view(4, 6).T,
        "part": storage[5:17:3],
        "expanded": storage[3:5].expand(4, 2),
        "none": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    }
    torch.save({"model": model, "step": 3, "size": torch.Size([1]), "type": torch.float32}, tmp_path / "a.pt")
    source = TorchFile(tmp_path / "a.pt")
    assert source.tensors.keys() == model.keys()
    for name, value in model.items():
        read = torch.from_numpy(source.read(name).astype(np.float32) if name == "brain" else source.read(name).copy())
        assert torch.equal(read, value.detach().float() if name == "brain" else value.detach()), name


def test_configuration_of_omegaconf_itself(tmp_path):
    omegaconf = pytest.importorskip("omegaconf", reason="OmegaConf is not installed: its pickles are checked where it is")
    tree = {"model": {"latent_dim": 384, "flag": True, "none": None, "views": [1, "x", [2.5]]}, "seed": 6}
    torch.save({"model": {"x": torch.ones(1)}, "args": omegaconf.OmegaConf.create(tree)}, tmp_path / "a.pt")
    assert TorchFile(tmp_path / "a.pt").arguments == tree


@pytest.mark.parametrize("legacy", [False, True])
def test_a_whole_module_is_refused(tmp_path, legacy, capsys):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    save_pipeline(tmp_path / "pipeline", torch.float32)
    save_text(tmp_path / "clip", False)
    published = (f"--unet={tmp_path / 'pipeline'}", f"--text={tmp_path / 'clip'}", f"--policy={tmp_path / 'a.pt'}")
    assert main(["convert", "import", *published, f"--out={tmp_path / 'in'}", *SMALL]) == 1
    message = " ".join(capsys.readouterr().err.split())
    assert ("weights_only=True" if legacy else "torch.nn.modules.linear.Linear") in message


def test_text_encoder_saved_with_torch_save(tmp_path):
    """A folder with pytorch_model.bin only."""
    save_text(tmp_path / "clip", False)
    torch.save(load_file(tmp_path / "clip/model.safetensors"), tmp_path / "clip/pytorch_model.bin")
    expected = load_file(tmp_path / "clip/model.safetensors")
    (tmp_path / "clip/model.safetensors").unlink()
    save_pipeline(tmp_path / "pipeline", torch.float32)
    published = (f"--unet={tmp_path / 'pipeline'}", f"--text={tmp_path / 'clip'}")
    assert main(["convert", "import", *published, f"--out={tmp_path / 'in'}", *SMALL]) == 0
    params = load_params(tmp_path / "in/video", list_tensors(tmp_path / "in/video"))
    np.testing.assert_array_equal(params["text/text_projection.kernel"], expected["text_projection.weight"].T)
    config = from_config_dict(read_metadata(tmp_path / "in/video")["config"])
    assert config.model.text.projection_dim == 24
    assert json.loads((tmp_path / "in/report.json").read_text())["reports"]["text"]["missing"] == []
