"""Makes tests/golden/{smolvla,pi0,pi05}: folders that lerobot's own classes saved, and what these compute from them.

    LEROBOT_PYTHON -m benchmarks.lerobot_fixtures smolvla|pi0|pi05 FOLDER            make a fixture
    LEROBOT_PYTHON -m benchmarks.lerobot_fixtures smolvla|pi0|pi05 FOLDER --saved X  load folder X as lerobot does and
                                                                                     compare it with the fixture

Run by another Python (3.12), with lerobot 0.6.1 and transformers 5.5: `pip install "lerobot[smolvla,pi]==0.6.1"`. The
weights are random and small; nothing is downloaded. Imports nothing of this program. The versions stand in made_by.json.

A fixture is a published folder: config.json, model.safetensors, processors with their statistics; in vlm/ what such a
folder takes from the model that it was built on. forward.safetensors holds a call of the network, decision.safetensors
one of the whole policy, from pictures, state and instruction (case.json) to actions.

Not with transformers 4.57, which lerobot 0.4.4 asks for: it gives every patch of an image but the first the position of
the patch before it, by a rounding that later versions mended.
"""

from __future__ import annotations

import argparse
import json
import string
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file, save_file

VOCABULARY, IMAGE = 64, 16
SMOLVLM: dict[str, Any] = {
    "model_type": "smolvlm",
    "image_token_id": 60,
    "scale_factor": 2,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "text_config": {
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 28,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-5,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    },
    "vision_config": {
        "model_type": "smolvlm_vision",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": IMAGE,
        "patch_size": 4,
    },
}
SIGLIP = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 1, "projection_dim": 24}
SIGLIP |= {"image_size": IMAGE, "patch_size": 4}
GEMMA = {  # width, depth, mlp_dim, num_heads, num_kv_heads, head_dim; eight heads are written into lerobot's forward
    "gemma_2b": (24, 2, 28, 8, 1, 4),
    "gemma_300m": (16, 2, 20, 8, 1, 4),
}
COMMON: dict[str, Any] = {"max_state_dim": 6, "max_action_dim": 7, "chunk_size": 5, "n_action_steps": 5}
COMMON |= {"device": "cpu", "tokenizer_max_length": 24}
SMALL_PI = {**COMMON, "num_inference_steps": 4, "image_resolution": (IMAGE, IMAGE)}
POLICIES: dict[str, dict[str, Any]] = {
    "smolvla": {**COMMON, "num_steps": 4, "num_vlm_layers": 2, "resize_imgs_with_padding": (IMAGE, IMAGE)},
    "pi0": SMALL_PI,
    "pi05": {**SMALL_PI, "tokenizer_max_length": 56},
}
CAMERAS = {"front": (20, 28), "wrist": (24, 16)}
STATE, ACTION = 5, 3
TASKS = ["push the block", "Lift it_up, and put it down\nagain in the pocket"]


@contextmanager
def small(kind: str, vlm: Path) -> Iterator[None]:
    """lerobot with small networks, and with what it would fetch by name read from `vlm`."""
    import lerobot.processor.tokenizer_processor as tokenizers
    from transformers import AutoConfig, AutoTokenizer

    def local(loader: Any) -> Any:
        return SimpleNamespace(from_pretrained=lambda *_, **__: loader(vlm))

    changes: list[tuple[Any, str, Any]] = [(tokenizers, "AutoTokenizer", local(AutoTokenizer.from_pretrained))]
    if kind == "smolvla":
        stacks = import_module("lerobot.policies.smolvla.smolvlm_with_expert")
        unused = SimpleNamespace(tokenizer=SimpleNamespace(fake_image_token_id=1, global_image_token_id=2))
        changes += [
            (stacks, "AutoConfig", local(AutoConfig.from_pretrained)),
            (stacks, "AutoProcessor", local(lambda _: unused)),
        ]
    else:
        module = import_module(f"lerobot.policies.{kind}.modeling_{kind}")
        sizes = {name: module.GemmaConfig(*values) for name, values in GEMMA.items()}
        paligemma, gemma = module.PaliGemmaForConditionalGenerationWithPiGemma, module.PiGemmaForCausalLM

        def small_paligemma(config: Any) -> Any:
            config.text_config.vocab_size = VOCABULARY
            for name, value in SIGLIP.items():
                setattr(config.vision_config, name, value)
            return paligemma(config=config)

        def small_gemma(config: Any) -> Any:
            config.vocab_size = VOCABULARY
            return gemma(config=config)

        changes += [
            (module, "get_gemma_config", sizes.__getitem__),
            (module, "PaliGemmaForConditionalGenerationWithPiGemma", small_paligemma),
            (module, "PiGemmaForCausalLM", small_gemma),
        ]
    with ExitStack() as stack:
        for change in changes:
            stack.enter_context(patch.object(*change))
        yield


def save_tokenizer(folder: Path, kind: str) -> None:
    """A token for each character; PaliGemma's has a first token before the text, as the real one."""
    from tokenizers import Tokenizer, decoders, models, processors
    from transformers import PreTrainedTokenizerFast

    letters = string.ascii_lowercase + "TSALI" + string.digits + " \n:;,._-"
    ids = {"<pad>": 0, "<bos>": 1, "<unk>": 2, **{letter: 3 + i for i, letter in enumerate(letters)}}
    assert len(ids) < SMOLVLM["image_token_id"]
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    if kind != "smolvla":
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", unk_token="<unk>"
    ).save_pretrained(folder)


def randomised(network: torch.nn.Module, generator: torch.Generator) -> None:
    """Weights of a size at which every part shows in the result."""
    for name, parameter in sorted(network.named_parameters()):
        scale = 0.3 if parameter.dim() > 1 else 0.1
        if "dense" in name:  # of a norm that is steered by the time
            scale = 0.1
        offset = 1.0 if parameter.dim() == 1 and parameter.mean() > 0.5 else 0.0
        parameter.data = offset + scale * torch.randn(parameter.shape, generator=generator)


def new_policy(kind: str) -> Any:
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.factory import make_policy_config

    config = make_policy_config(kind, **POLICIES[kind])
    config.input_features = {
        **{f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, *CAMERAS[name])) for name in CAMERAS},
        "observation.state": PolicyFeature(FeatureType.STATE, (STATE,)),
    }
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (ACTION,))}
    return policy_class(kind)(config).float().eval()


def policy_class(kind: str) -> Any:
    name = {"smolvla": "SmolVLAPolicy", "pi0": "PI0Policy", "pi05": "PI05Policy"}[kind]
    return getattr(import_module(f"lerobot.policies.{kind}.modeling_{kind}"), name)


def processors_of(kind: str, config: Any) -> Any:
    """With statistics at which a swapped mean or a forgotten scale shows."""
    module = import_module(f"lerobot.policies.{kind}.processor_{kind}")
    generator = torch.Generator().manual_seed(1)
    stats = {}
    for name, size in (("observation.state", STATE), ("action", ACTION)):
        mean, std = torch.randn(size, generator=generator) * 0.2, 0.2 + torch.rand(size, generator=generator) * 0.3
        stats[name] = {"mean": mean, "std": std, "q01": mean - 2.2 * std, "q99": mean + 2.4 * std}
    return getattr(module, f"make_{kind}_pre_post_processors")(config, dataset_stats=stats)


def network_inputs(kind: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Two cameras, the second one absent in a row; an instruction padded in a row."""
    chunk = (2, COMMON["chunk_size"], COMMON["max_action_dim"])
    state = {} if kind == "pi05" else {"state": torch.randn(2, COMMON["max_state_dim"], generator=generator)}
    return {
        "image_a": torch.rand(2, 3, IMAGE, IMAGE, generator=generator) * 2 - 1,
        "image_b": torch.rand(2, 3, IMAGE, IMAGE, generator=generator) * 2 - 1,
        "image_mask_a": torch.tensor([True, True]),
        "image_mask_b": torch.tensor([True, False]),
        "words": torch.randint(3, 60, (2, 6), generator=generator),
        "word_mask": torch.tensor([[True] * 6, [True] * 4 + [False] * 2]),
        **state,
        "actions": torch.randn(chunk, generator=generator),
        "noise": torch.randn(chunk, generator=generator),
        "time": torch.tensor([0.3, 0.85]),
    }


def run_network(network: Any, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    seen = [
        [given["image_a"], given["image_b"]],
        [given["image_mask_a"], given["image_mask_b"]],
        given["words"],
        given["word_mask"],
        *([given["state"]] if "state" in given else []),
    ]
    with torch.no_grad():
        losses = network(*seen, given["actions"], given["noise"], given["time"])
        return {"losses": losses, "chunk": network.sample_actions(*seen, noise=given["noise"])}


def decision_inputs(generator: torch.Generator) -> dict[str, torch.Tensor]:
    pictures = {
        f"frames_{name}": torch.randint(0, 256, (2, *size, 3), generator=generator, dtype=torch.uint8)
        for name, size in CAMERAS.items()
    }
    noise = torch.randn(2, COMMON["chunk_size"], COMMON["max_action_dim"], generator=generator)
    return {**pictures, "state": torch.randn(2, STATE, generator=generator) * 0.5, "noise": noise}


def run_policy(policy: Any, before: Any, after: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """Actions [2, K, D] as they would be sent to the robot."""
    batch: dict[str, Any] = {
        f"observation.images.{name}": given[f"frames_{name}"].permute(0, 3, 1, 2).float() / 255 for name in CAMERAS
    }
    seen = before({**batch, "observation.state": given["state"], "task": TASKS})
    # lerobot draws the noise itself where it is not given, and only one of its policies can be given it.
    with patch.object(policy.model, "sample_noise", lambda *_: given["noise"]), torch.no_grad():
        return after(policy.predict_action_chunk(seen))


def make(kind: str, folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    vlm = folder / "vlm"
    save_tokenizer(vlm, kind)
    if kind == "smolvla":
        (vlm / "config.json").write_text(json.dumps(SMOLVLM, indent=1) + "\n")
    with small(kind, vlm):
        policy = new_policy(kind)
        before, after = processors_of(kind, policy.config)
        randomised(policy, generator)
        policy.save_pretrained(folder)
        before.save_pretrained(folder)
        after.save_pretrained(folder)
        given = network_inputs(kind, generator)
        save_file({**given, **run_network(policy.model, given)}, folder / "forward.safetensors")
        given = decision_inputs(generator)
        save_file({**given, "decision": run_policy(policy, before, after, given)}, folder / "decision.safetensors")
    (folder / "case.json").write_text(json.dumps({"instructions": TASKS, "cameras": list(CAMERAS)}, indent=1) + "\n")
    made_by = {name: version(name) for name in ("lerobot", "transformers", "torch")}
    (folder / "made_by.json").write_text(json.dumps(made_by, indent=1) + "\n")


def check(kind: str, fixture: Path, saved: Path) -> None:
    """Raises SystemExit where lerobot cannot load `saved`, or does not compute with it what the fixture says."""
    from lerobot.processor import PolicyProcessorPipeline
    from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action

    with small(kind, saved / "vlm"):
        policy = policy_class(kind).from_pretrained(saved).eval()
        before = PolicyProcessorPipeline.from_pretrained(saved, config_filename="policy_preprocessor.json")
        after = PolicyProcessorPipeline.from_pretrained(
            saved,
            config_filename="policy_postprocessor.json",
            to_transition=policy_action_to_transition,
            to_output=transition_to_policy_action,
        )
        given = load_file(fixture / "decision.safetensors")
        error = (run_policy(policy, before, after, given) - given["decision"]).abs().max()
    print(f"{kind}: largest difference of an action {float(error):.2e}")
    if not error < 1e-5:
        raise SystemExit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=POLICIES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--saved", type=Path)
    options = parser.parse_args()
    if options.saved:
        check(options.kind, options.folder, options.saved)
    else:
        make(options.kind, options.folder)


if __name__ == "__main__":
    main()
