"""Makes tests/golden/smolvla: names, shapes, a forward pass and a sampled chunk of lerobot's own class.

    LEROBOT_PYTHON -m benchmarks.lerobot_fixtures tests/golden/smolvla

Run by another Python (3.12), with lerobot 0.6.1 and transformers 5.5: `pip install "lerobot[smolvla]==0.6.1"`. The weights
are random and small; nothing is downloaded. Imports nothing of this program. The versions stand in config.json.

Not with transformers 4.57, which lerobot 0.4.4 asks for: it gives every patch of an image but the first the position of
the patch before it, by a rounding that later versions mended.
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file

VLM: dict[str, Any] = {
    "model_type": "smolvlm",
    "image_token_id": 60,
    "scale_factor": 2,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "text_config": {
        "model_type": "llama",
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "vocab_size": 64,
        "rms_norm_eps": 1e-5,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    },
    "vision_config": {
        "model_type": "smolvlm_vision",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    },
}
POLICY: dict[str, Any] = {
    "max_state_dim": 6,
    "max_action_dim": 7,
    "chunk_size": 5,
    "num_steps": 4,
    "num_vlm_layers": 4,
    "num_expert_layers": -1,
    "self_attn_every_n_layers": 2,
    "expert_width_multiplier": 0.75,
    "min_period": 4e-3,
    "max_period": 4.0,
}


def smolvla(vlm: dict[str, Any], policy: dict[str, Any]) -> Any:
    """lerobot's network; of the processor, which has the tokenizer, only two unused token ids are asked for."""
    from lerobot.policies.smolvla import modeling_smolvla, smolvlm_with_expert
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

    tokenizer = SimpleNamespace(fake_image_token_id=1, global_image_token_id=2)
    processor = SimpleNamespace(from_pretrained=lambda *_: SimpleNamespace(tokenizer=tokenizer))
    smolvlm_with_expert.AutoProcessor = processor
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(vlm))
        config = SmolVLAConfig(
            vlm_model_name=folder, load_vlm_weights=False, n_action_steps=policy["chunk_size"], device="cpu", **policy
        )
        return modeling_smolvla.VLAFlowMatching(config)


def randomised(network: torch.nn.Module, generator: torch.Generator) -> None:
    """Weights of a size at which every part shows in the result."""
    for parameter in network.parameters():
        scale = 0.3 if parameter.dim() > 1 else 0.1
        offset = 1.0 if parameter.dim() == 1 and parameter.mean() > 0.5 else 0.0
        parameter.data = offset + scale * torch.randn(parameter.shape, generator=generator)


def inputs_of(policy: dict[str, Any], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Two cameras, the second one absent in a row; an instruction padded in a row."""
    chunk = (2, policy["chunk_size"], policy["max_action_dim"])
    return {
        "image_a": torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1,
        "image_b": torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1,
        "image_mask_a": torch.tensor([True, True]),
        "image_mask_b": torch.tensor([True, False]),
        "words": torch.randint(3, 60, (2, 6), generator=generator),
        "word_mask": torch.tensor([[True] * 6, [True] * 4 + [False] * 2]),
        "state": torch.randn(2, policy["max_state_dim"], generator=generator),
        "actions": torch.randn(chunk, generator=generator),
        "noise": torch.randn(chunk, generator=generator),
        "time": torch.tensor([0.3, 0.85]),
    }


def main() -> None:
    folder = Path(sys.argv[1])
    generator = torch.Generator().manual_seed(0)
    network = smolvla(VLM, POLICY).float().eval()
    randomised(network, generator)
    given = inputs_of(POLICY, generator)
    seen = (
        [given["image_a"], given["image_b"]],
        [given["image_mask_a"], given["image_mask_b"]],
        given["words"],
        given["word_mask"],
        given["state"],
    )
    with torch.no_grad():
        losses = network(*seen, given["actions"], given["noise"], given["time"])
        chunk = network.sample_actions(*seen, noise=given["noise"])
    folder.mkdir(parents=True, exist_ok=True)
    weights = {f"model.{name}": tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    save_file({**given, "losses": losses, "chunk": chunk}, folder / "forward.safetensors")
    made_by = {name: version(name) for name in ("lerobot", "transformers", "torch")}
    (folder / "config.json").write_text(json.dumps({"policy": POLICY, "vlm": VLM, "made_by": made_by}, indent=1) + "\n")


if __name__ == "__main__":
    main()
