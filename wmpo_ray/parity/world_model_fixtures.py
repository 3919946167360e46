"""The video transformer, its sampler and its training loss against the published numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from wmpo_ray.parity.case import ParityCase
from wmpo_ray.parity.fixture_files import compared, differing, fixture_tensors
from wmpo_ray.world_models.attention import Backend
from wmpo_ray.world_models.denoiser import TIME_SCALE, Conditioning, Denoiser
from wmpo_ray.world_models.diffusion_settings import DenoiserConfig, SamplerConfig
from wmpo_ray.world_models.published_stdit import load_published_network
from wmpo_ray.world_models.sampler import RectifiedFlowSampler, resolution_shift
from wmpo_ray.world_models.stdit import STDiT

# The fixtures' own arithmetic: a fused kernel sums in another order, which can cost more than the tolerance.
ATTENTION: Backend = "plain"
FORWARD, SAMPLES, HALF_PRECISION = 5e-6, 5e-5, 0.3
TIMES = 1e-3  # of 0..1000 in float32, whose steps there are 6e-5
ROLLOUT_STEPS = 10
TRAINING_SIZE = (256.0, 256.0)  # pixels, of the training loss's fixture


def check(folder: Path) -> list[ParityCase]:
    """Every fixture of `folder`: forward passes, samples, an imagined rollout, the training loss and its gradients."""
    network = load_published_network(folder, drop_dead=False, attention=ATTENTION)
    half = load_published_network(folder, dtype=torch.bfloat16, attention=ATTENTION)
    cases = [case for path in sorted(folder.glob("forward_*.safetensors")) for case in _forward(path, network, half)]
    if (folder / "sampler.safetensors").is_file():
        data = fixture_tensors(folder / "sampler.safetensors", "noise", "y", "cond_latents")
        names = sorted(name.removesuffix(".samples") for name in data if name.count(".") == 1 and ".samples" in name)
        cases += [case for name in names for case in _samples(name, data, network, half)]
        cases += _rollout(data, network)
    if (folder / "train_loss.safetensors").is_file():
        cases += _training(folder / "train_loss.safetensors", network)
    return cases


@torch.no_grad()
def _forward(path: Path, network: STDiT, half: STDiT) -> Iterator[ParityCase]:
    data = fixture_tensors(path, "x", "timestep", "y", "x_mask", "input.height", "input.width", "output")
    size = float(data["input.height"][0]), float(data["input.width"][0])
    inputs = (data["x"], data["timestep"], data["y"], data["x_mask"], *size)
    yield compared(path.stem, "output", network(*inputs), data["output"], FORWARD)
    context = int((~data["x_mask"][0]).sum())
    if context and bool((data["x_mask"] == (torch.arange(data["x_mask"].shape[1]) >= context)).all()):
        cache = network.encode_conditioning(data["x"][:, :, :context], *size)
        cached = network.forward_cached(data["x"][:, :, context:], data["timestep"], data["y"], cache, *size)
        expected = data["output"][:, :, context:]
        yield compared(path.stem, "output, from the conditioning cache", cached, expected, FORWARD)
    if "output_bf16_model" in data:
        yield compared(path.stem, "output_bf16_model", half(*inputs), data["output_bf16_model"], HALF_PRECISION)


class _Recording(Denoiser):
    """Remembers what the sampler showed it."""

    def __init__(self, network: STDiT, config: DenoiserConfig, frame_size: tuple[int, int]):
        super().__init__(network, config, frame_size)
        self.shown: list[Tensor] = []

    def velocity(self, noisy: Tensor, t: Tensor, actions: Tensor, conditioning: Conditioning) -> Tensor:
        self.shown.append(noisy)
        return super().velocity(noisy, t, actions, conditioning)


def _sampler(num_steps: int, size: tuple[int, int]) -> RectifiedFlowSampler:
    return RectifiedFlowSampler(SamplerConfig(num_steps=num_steps, shift=resolution_shift(*size)))


def _samples(name: str, data: dict[str, Tensor], network: STDiT, half: STDiT) -> Iterator[ParityCase]:
    size = int(data[f"{name}.height"][0]), int(data[f"{name}.width"][0])
    context = data["cond_latents"]
    sampler = _sampler(len(data[f"{name}.timesteps"]), size)
    denoiser = _Recording(network, DenoiserConfig(), size)
    latents = sampler.sample(denoiser, data["noise"], data["y"], denoiser.condition(context))
    times = sampler.scheduler.timesteps
    yield compared(f"sampler {name}", "samples", torch.cat([context, latents], 2), data[f"{name}.samples"], SAMPLES)
    if f"{name}.after_step1" in data:
        first = torch.cat([context, denoiser.shown[1]], 2)
        yield compared(f"sampler {name}", "after_step1", first, data[f"{name}.after_step1"], SAMPLES)
    yield compared(f"sampler {name}", "timesteps", times, data[f"{name}.timesteps"][:, 0], TIMES)
    if f"{name}.bf16.samples" not in data:
        return
    seen: list[Tensor] = []
    hook = half.t_embedder.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    denoiser = _Recording(half, DenoiserConfig(), size)
    conditioning = denoiser.condition(context)
    seen.clear()
    latents = torch.cat([context, sampler.sample(denoiser, data["noise"], data["y"], conditioning)], 2)
    hook.remove()
    # Each call embeds the diffusion time and the constant of the conditioning frames.
    times = torch.stack(seen[::2]).float()
    expected = data[f"{name}.bf16.timesteps_seen_by_model"]
    yield differing(f"sampler {name}", "bf16.timesteps_seen_by_model", times, expected)
    # The reference shows even conditioning frames in bf16; both ends of the tolerance are informative.
    yield compared(f"sampler {name}", "bf16.samples", latents, data[f"{name}.bf16.samples"], HALF_PRECISION)


def _rollout(data: dict[str, Tensor], network: STDiT) -> Iterator[ParityCase]:
    """Chunk after chunk, conditioned on the newest predicted latents."""
    if "rollout.init_latent" not in data:
        return
    size = int(TRAINING_SIZE[0]), int(TRAINING_SIZE[1])
    denoiser, sampler = Denoiser(network, DenoiserConfig(), size), _sampler(ROLLOUT_STEPS, size)
    length = data["cond_latents"].shape[2]
    context = data["rollout.init_latent"].expand(-1, -1, length, -1, -1)
    for chunk in range(sum(name.startswith("rollout.noise") for name in data)):
        noise, actions = data[f"rollout.noise{chunk}"], data[f"rollout.y{chunk}"]
        latents = sampler.sample(denoiser, noise, actions, denoiser.condition(context))
        yield compared(f"rollout, chunk {chunk}", f"pred{chunk}", latents, data[f"rollout.pred{chunk}"], SAMPLES)
        context = torch.cat([context, latents], 2)[:, :, -length:]


def _training(path: Path, network: STDiT) -> Iterator[ParityCase]:
    data = fixture_tensors(path, "x_start", "noise", "t", "y", "mask", "loss_per_sample", "loss_mean")
    for name in ("r256", "r512", "other"):
        yield _transform(data, name)
    denoiser = Denoiser(network, DenoiserConfig(), (int(TRAINING_SIZE[0]), int(TRAINING_SIZE[1])))
    with torch.no_grad():
        output = network(data["x_t"], data["t"], data["y"], data["mask"].bool(), *TRAINING_SIZE)
    yield compared("train_loss", "model_output", output, data["model_output"], FORWARD)
    network.zero_grad()
    losses = _losses(denoiser, data)
    losses.mean().backward()
    yield compared("train_loss", "loss_per_sample", losses, data["loss_per_sample"], FORWARD)
    yield compared("train_loss", "loss_mean", losses.mean()[None], data["loss_mean"], FORWARD)
    gradients = {name: tensor.grad for name, tensor in network.named_parameters() if tensor.grad is not None}
    for name in sorted(name for name in data if name.startswith("grad.")):
        yield compared("train_loss", name, gradients[name.removeprefix("grad.")], data[name], _relative(data[name]))
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()[None]
    yield compared(
        "train_loss", "grad_global_norm", norm, data["grad_global_norm"], _relative(data["grad_global_norm"])
    )


def _losses(denoiser: Denoiser, data: dict[str, Tensor]) -> Tensor:
    """Sample by sample: each may have its own number of conditioning frames."""
    inputs = [data[name] for name in ("x_start", "y", "t", "noise")]
    rows = (tuple(x[i : i + 1] for x in inputs) for i in range(len(data["t"])))
    contexts = (~data["mask"].bool()).sum(1).tolist()
    return torch.cat(
        [
            denoiser.loss(clip, context, actions, t / TIME_SCALE, noise)
            for context, (clip, actions, t, noise) in zip(contexts, rows, strict=True)
        ]
    )


def _relative(published: Tensor) -> float:
    """The forward tolerance, in units of the largest value where that is above 1."""
    return FORWARD * max(1.0, float(published.abs().max()))


def _transform(data: dict[str, Tensor], name: str) -> ParityCase:
    sizes = {"r256": [256, 256], "r512": [512, 512], "other": data["timestep_transform.other_hw"].tolist()}
    height, width = (int(side) for side in sizes[name])
    scheduler = _sampler(1, (height, width)).scheduler
    scheduler.set_timesteps(sigmas=(data["timestep_transform.input"].double() / TIME_SCALE).tolist())
    published = data[f"timestep_transform.{name}"]
    return compared("train_loss", f"timestep_transform.{name}", scheduler.timesteps, published, TIMES)
