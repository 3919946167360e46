"""The learned world model behind its protocol: seeds, batches, context, files."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from tests.support.small_world import EMBEDDED, random_chunk, scene_starts, small_world_model
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.interfaces import World
from wmpo_ray.core.starts import seeded_starts
from wmpo_ray.world_models.autoencoder import AutoencoderCodec
from wmpo_ray.world_models.denoiser import Denoiser
from wmpo_ray.world_models.diffusion import SETTINGS_FILE, DiffusionWorldModel
from wmpo_ray.world_models.diffusion_settings import DenoiserConfig

OPTIONS = {"embedded": EMBEDDED, "published": DenoiserConfig()}
SEEDS = [11, 22, 33, 44, 55]


@pytest.fixture(scope="module", params=OPTIONS)
def world(request) -> DiffusionWorldModel:
    return small_world_model(OPTIONS[request.param], num_steps=3)


def imagine(world, rows: list[int], num_chunks: int = 2):
    starts = scene_starts(5)
    state, _ = world.start([starts[i] for i in rows])
    for chunk in range(num_chunks):
        actions = random_chunk(5, chunk)[rows]
        state, made = world.step_chunk(state, actions, [SEEDS[i] + chunk for i in rows])
    return state.latents, made.frames


def test_implements_the_protocol(world):
    assert isinstance(world, World)


def test_shapes_and_dtype(world):
    latents, frames = imagine(world, [0, 1, 2])
    assert frames.shape == (3, 4, 16, 16, 3) and frames.dtype == np.uint8
    assert latents.shape == (3, 3, 2, 16, 16)


@pytest.mark.parametrize("rows", [[0], [3], [4, 1], [2, 2]])
def test_a_trajectory_does_not_depend_on_its_batch(world, rows):
    together, _ = imagine(world, [0, 1, 2, 3, 4])
    part, _ = imagine(world, rows)
    assert (part - together[rows]).abs().max() <= 1e-5


def test_the_seed_decides_the_noise(world):
    starts, actions = scene_starts(1) * 3, random_chunk(1).expand(3, -1, -1)
    state, _ = world.step_chunk(world.start(starts)[0], actions, [5, 5, 6])
    assert (state.latents[0] - state.latents[1]).abs().max() <= 1e-5
    assert (state.latents[0] - state.latents[2]).abs().max() > 1e-3


def test_a_start_without_frames_is_refused(world):
    with pytest.raises(ValueError, match="start 1 has no frames"):
        world.start([*scene_starts(1), *seeded_starts([3])])


def test_the_state_given_is_left_as_it_was(world):
    state, _ = world.start(scene_starts(2))
    kept = state.latents.clone()
    world.step_chunk(state, random_chunk(2), [1, 2])
    assert torch.equal(state.latents, kept)


def test_a_short_start_repeats_its_first_frame_and_a_long_one_keeps_its_last(world):
    start = scene_starts(1)[0]
    short = world.start([start])[0].latents
    assert torch.equal(short[:, :, 0], short[:, :, 1])
    frames = torch.randint(0, 256, (5, 16, 16, 3), dtype=torch.uint8).numpy()
    long = world.start([type(start)(frames, start.instruction)])[0].latents
    assert torch.equal(long, world.codec.encode(torch.from_numpy(frames[-2:])[None]))


def test_same_seed_same_network_and_the_global_generator_is_left_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    one, two, other = (small_world_model(seed=seed).denoiser.network.state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["x_embedder.proj.weight"], other["x_embedder.proj.weight"])


def test_saved_and_loaded_it_imagines_the_same_frames(world, tmp_path):
    world.save(tmp_path)
    loaded = DiffusionWorldModel.load(tmp_path)
    assert loaded.denoiser.config == world.denoiser.config
    assert loaded.sampler.config == world.sampler.config
    assert torch.equal(imagine(loaded, [0, 1])[0], imagine(world, [0, 1])[0])


def test_position_scale_and_codec_are_saved_too(world, tmp_path):
    """Latents of an autoencoder are smaller than the frame whose size scales the positions."""
    autoencoder = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=3)
    autoencoder.save_pretrained(tmp_path / "autoencoder", safe_serialization=True)
    codec = AutoencoderCodec.load(tmp_path / "autoencoder")
    denoiser = Denoiser(world.denoiser.network, world.denoiser.config, (128, 384))
    DiffusionWorldModel(denoiser, codec, world.sampler, 2, 4).save(tmp_path / "world")
    shutil.rmtree(tmp_path / "autoencoder")  # the world model's folder has its own
    loaded = DiffusionWorldModel.load(tmp_path / "world")
    assert tuple(loaded.denoiser.frame_size) == (128, 384)
    frames = torch.from_numpy(scene_starts(1)[0].frames)[None]
    assert torch.equal(loaded.codec.encode(frames), codec.encode(frames))


def test_where_a_world_model_was_loaded_from_is_not_saved_with_it(world, tmp_path):
    """Nor where its autoencoder was: the same files, whatever folders they went through."""
    AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=3).save_pretrained(tmp_path / "vae")
    codec = AutoencoderCodec.load(tmp_path / "vae")
    DiffusionWorldModel(world.denoiser, codec, world.sampler, 2, 4).save(tmp_path / "one")
    DiffusionWorldModel.load(tmp_path / "one").save(tmp_path / "two")
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert sum(file.name == "config.json" for file in files) == 2
    for file in files:
        content = (tmp_path / "two" / file).read_bytes()
        assert content == (tmp_path / "one" / file).read_bytes() and bytes(tmp_path) not in content, file


def test_saving_in_half_precision_leaves_the_model_alone(world, tmp_path):
    before = {key: value.clone() for key, value in world.denoiser.network.state_dict().items()}
    world.save(tmp_path, dtype=torch.bfloat16)
    after = world.denoiser.network.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    loaded = DiffusionWorldModel.load(tmp_path).denoiser.network.state_dict()
    assert all(torch.equal(loaded[key], before[key].bfloat16().float()) for key in before)


def test_an_unknown_name_says_which_there_are(tmp_path):
    with pytest.raises(UserError, match="world_model.pretrained"):
        DiffusionWorldModel.load(tmp_path / "nothing")


def test_settings_are_plain_json(world, tmp_path):
    world.save(tmp_path)
    settings = json.loads((tmp_path / SETTINGS_FILE).read_text())
    assert settings["context_frames"] == 2 and settings["chunk_length"] == 4
