"""SmolVLA, pi0 and pi0.5 as policies: lerobot's folders, sampled by the SDE of Flow-GRPO.

The network denoises a chunk of its own length and of padded actions; the first K actions and their D dimensions are
executed and judged, as pi_RL does (arXiv 2510.25889). Given the whole state before it, a step's values are independent,
so leaving the others out leaves factors of the density out and changes none.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.interfaces import Decision, Seeds
from wmpo_ray.core.observations import Observation
from wmpo_ray.core.seeding import keyed_noise
from wmpo_ray.policies.action_tokens import executed_tokens
from wmpo_ray.policies.flow.denoising import Denoising, noised, path_log_probs, path_rules, times_of
from wmpo_ray.policies.flow.expert_attention import Reading
from wmpo_ray.policies.flow.published import ACTION, PublishedFolder, read_folder
from wmpo_ray.policies.flow.published_inputs import PolicyInputs
from wmpo_ray.policies.flow.vla_weights import PREFIX, Network, load_weights, num_words_of, published_state

TIME_POWER, TIME_SCALE, TIME_OFFSET = 1 / 1.5, 0.999, 0.001  # times of cloning: Beta(1.5, 1), squeezed


class Use(NamedTuple):
    """What of a policy is used, and how; none of it is in the folder."""

    chunk_length: int  # K
    cameras: tuple[str, ...] = ()  # of the environment, one for each image of config.json, "": none; (): the main one
    observes_state: bool = False  # False: the state that normalises to zero, as a learned world imagines none
    denoising: Denoising = Denoising()


class PublishedFlowPolicy(nn.Module):
    """Implements `wmpo_ray.core.interfaces.Policy`; its state dict has the published names.

    The record of a decision is its path [B, S+1, chunk_size, max_action_dim] float32 in normalised actions.
    At temperature 0 the ODE is followed from zero noise, and there are no log-probabilities (zeros).
    """

    supports_gradient_checkpointing = False
    _no_split_modules: ClassVar[list[str]] = ["SmolVLMEncoderLayer", "SiglipEncoderLayer"]

    def __init__(self, network: Network, folder: PublishedFolder, use: Use):
        super().__init__()
        self.model = network
        self.folder, self.use, self.denoising = folder, use, use.denoising
        settings = folder.settings
        if use.chunk_length > settings.chunk_size:
            raise ConfigError(
                f"rollout.chunk_length={use.chunk_length}: the policy decides on {settings.chunk_size} actions at once; "
                "set rollout.chunk_length to at most that"
            )
        self.chunk_length, self.action_dim = use.chunk_length, settings.action_dim
        self.inputs = PolicyInputs(folder, use.cameras, use.observes_state, num_words_of(network))

    @property
    def device(self) -> torch.device:
        return self.model.action_in_proj.weight.device

    # -- files ---------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str | Path, use: Use, vlm: str = "", device: torch.device | str = "cpu") -> Self:
        """A folder that lerobot or `save_pretrained` wrote; `vlm`: the folder of the model that it was built on.

        Raises UserError where it is none, or is damaged, and ConfigError for a use that does not fit.
        """
        folder = read_folder(Path(path), vlm)
        return cls(load_weights(Path(path), folder, device), folder, use).eval()

    def save_pretrained(self, path: str | Path) -> None:
        """The published layout: lerobot loads it, and `load` does without being given `vlm` again."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.folder.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        state = {PREFIX + name: tensor for name, tensor in published_state(self.model)}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    # -- the network ---------------------------------------------------------------------------------------------

    def forward(
        self, states: Tensor, times: Tensor, images: Tensor, words: Tensor, word_mask: Tensor, state: Tensor
    ) -> Tensor:
        """states [B, S, chunk_size, max_action_dim] at times [B, S] or [S] -> their velocities; they do not see each other.

        images [B, cameras, 3, h, w] in [-1, 1], words and their mask [B, n], state [B, max_state_dim].
        """
        return self._velocities(states, times, self._read(images, words, word_mask, state))

    def _read(self, images: Tensor, words: Tensor, word_mask: Tensor, state: Tensor) -> Reading:
        present = torch.ones(len(images), dtype=torch.bool, device=images.device)
        pictures = list(images.unbind(1))
        return self.model.read(pictures, [present] * len(pictures), words, word_mask, state)

    def _velocities(self, states: Tensor, times: Tensor, reading: Reading) -> Tensor:
        batch, count = states.shape[:2]
        flat = times.expand(batch, count).flatten()
        return self.model.velocity(states.flatten(0, 1), flat, reading.repeated(count)).unflatten(0, (batch, count))

    # -- the policy protocol -------------------------------------------------------------------------------------

    @property
    def num_sampling_steps(self) -> int:
        return self.denoising.sde_steps

    @torch.no_grad()
    def act(self, observation: Observation, temperature: float, seeds: list[int]) -> Decision:
        level = temperature * self.denoising.noise
        num_steps = self.denoising.sde_steps if level else self.denoising.ode_steps
        settings = self.folder.settings
        shape = (num_steps + 1, settings.chunk_size, settings.max_action_dim)
        noise = (keyed_noise(seeds, shape) if level else torch.zeros(len(seeds), *shape)).to(self.device)
        reading = self._read(**self.inputs.of(observation, self.device))
        path, velocities = [noise[:, 0]], []
        for step, (time, rule) in enumerate(zip(times_of(num_steps)[:-1], path_rules(num_steps, level), strict=True)):
            now = torch.full((len(seeds),), time, device=self.device)
            velocities.append(self.model.velocity(path[-1], now, reading))
            path.append(rule.keep * path[-1] + rule.push * velocities[-1] + rule.spread * noise[:, step + 1])
        whole = torch.stack(path, 1)
        if level:
            logprobs = path_log_probs(self._executed(whole), self._executed(torch.stack(velocities, 1)), level)
        else:
            logprobs = torch.zeros(len(seeds), self.denoising.sde_steps * self.chunk_length * self.action_dim)
        actions = self._unscaled(self._executed(path[-1]))
        return Decision(actions.clamp(-1, 1).cpu(), {"path": whole.cpu()}, logprobs.cpu())

    @torch.no_grad()
    def decided(self, observation: Observation, noise: Tensor) -> Tensor:
        """The whole chunk [B, chunk_size, D] that the ODE makes of noise [B, chunk_size, max_action_dim], not clipped.

        As lerobot decides, in as many steps as config.json says.
        """
        reading = self._read(**self.inputs.of(observation, self.device))
        return self._unscaled(self.model.sample(noise.to(self.device), reading)[..., : self.action_dim]).cpu()

    def log_prob(self, observation: Observation, record: dict[str, Tensor], temperature: float) -> Tensor:
        path = record["path"].to(self.device)
        times = torch.tensor(times_of(path.shape[1] - 1)[:-1], device=self.device)
        velocity = self(path[:, :-1], times, **self.inputs.of(observation, self.device))
        return path_log_probs(self._executed(path), self._executed(velocity), temperature * self.denoising.noise)

    def executed(self, num_actions: Tensor) -> Tensor:
        """An action is decided in every step."""
        of_a_step = executed_tokens(num_actions, self.chunk_length, self.action_dim)
        return of_a_step.repeat(1, self.denoising.sde_steps)

    def cloning_loss(self, observation: Observation, actions: Tensor, seeds: Seeds = None) -> Tensor:
        """Mean squared distance of the velocities of the K actions, over noises and times of `cloning_draws` each.

        Times are those of lerobot's training, spread evenly in their distribution. The last action stands for those
        behind it, as at the end of lerobot's episodes.
        """
        settings, draws = self.folder.settings, self.denoising.cloning_draws
        size = settings.chunk_size * settings.max_action_dim
        normal = keyed_noise(list(range(len(actions)) if seeds is None else seeds), (draws * size + 1,))
        first = torch.special.ndtr(normal[:, -1:].double()).float()
        share = (first + torch.arange(draws) / draws) % 1
        times = (share**TIME_POWER * TIME_SCALE + TIME_OFFSET).to(self.device)
        noise = normal[:, :-1].view(-1, draws, settings.chunk_size, settings.max_action_dim).to(self.device)
        scaled = self._scaled(actions.to(self.device))
        missing = settings.chunk_size - scaled.shape[1]
        whole = torch.cat([scaled, scaled[:, -1:].expand(-1, missing, -1)], 1)
        whole = F.pad(whole, (0, settings.max_action_dim - self.action_dim))
        states, velocity = noised(whole[:, None], noise, times)
        found = self(states, times, **self.inputs.of(observation, self.device))
        return F.mse_loss(self._executed(found), self._executed(velocity))

    def _executed(self, values: Tensor) -> Tensor:
        """Values [..., chunk_size, max_action_dim] -> those of what is executed [..., K, D]."""
        return values[..., : self.chunk_length, : self.action_dim]

    def _scaled(self, actions: Tensor) -> Tensor:
        scaling = self.folder.after.get(ACTION)
        return actions if scaling is None else scaling.forth(actions)

    def _unscaled(self, values: Tensor) -> Tensor:
        scaling = self.folder.after.get(ACTION)
        return values if scaling is None else scaling.back(values)
