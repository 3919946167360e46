"""What the small files beside a policy's weights say, before any of the weights is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.untrusted import parse_json
from wmpo_ray.policies.openvla.actions import ActionStatistics
from wmpo_ray.policies.openvla.prompt import TOKENIZER, TOKENIZER_MODEL, PromptTokenizer
from wmpo_ray.policies.openvla.published_files import PREPROCESSOR, STATISTICS, image_processor, read_companions
from wmpo_ray.policies.openvla.settings import OpenVLAConfig, read_config

MAX_NAMED = 4  # data sets named in a fact
Describe = Callable[[Mapping[str, bytes], OpenVLAConfig], str]


def companion_facts(folder: Path) -> tuple[dict[str, str], list[str]]:
    """A line on each of tokenizer, action statistics, image processor and code, and what is wrong with them.

    Raises UserError where config.json is damaged.
    """
    config = read_config(folder)
    try:
        companions = read_companions(folder)
    except UserError as error:
        return {}, [str(error)]
    released = "as pretrained" if STATISTICS not in companions else "fine-tuned (OFT): it brings its own statistics"
    facts = {
        "release": f"OpenVLA, {released}",
        "actions": f"chunks of {config.num_actions_chunk} x {config.action_dim}, {config.n_action_bins} bins below id "
        f"{config.vocab_size}",
    }
    problems = []
    for name, describe in (("tokenizer", _tokenizer), ("action statistics", _statistics), ("images", _images)):
        try:
            facts[name] = describe(companions, config)
        except UserError as error:
            facts[name] = "damaged"
            problems.append(str(error))
    if code := sorted(path.name for path in folder.glob("*.py")):
        facts["code"] = f"{', '.join(code[:MAX_NAMED])}: never run"
    return facts, problems


def _tokenizer(companions: Mapping[str, bytes], config: OpenVLAConfig) -> str:
    prompts = PromptTokenizer.of(companions, config.vocab_size, config.empty_token_id)
    if prompts is None:
        return f"missing: no instruction can be read without {TOKENIZER} or {TOKENIZER_MODEL}"
    prompts.ids("")
    return TOKENIZER if TOKENIZER in companions else f"{TOKENIZER_MODEL} (sentencepiece)"


def _statistics(companions: Mapping[str, bytes], config: OpenVLAConfig) -> str:
    if STATISTICS in companions:
        content, where = parse_json(companions[STATISTICS], STATISTICS), STATISTICS
    elif config.norm_stats:
        content, where = config.norm_stats, "norm_stats in config.json"
    else:
        return "none: actions stay in [-1, 1]"
    names = sorted(content) if isinstance(content, dict) else []
    # The robot of a run has the last word on the dimensions of actions: here they are only reported.
    sizes = {len(ActionStatistics.find(content, name, None, where).q01) for name in names or [None]}
    dims = "" if sizes == {config.action_dim} else f"; of {', '.join(map(str, sorted(sizes)))} dimensions"
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"{where}: {', '.join(names[:MAX_NAMED])}{more}{dims}"


def _images(companions: Mapping[str, bytes], config: OpenVLAConfig) -> str:
    image_processor(companions, config)
    height, width = config.image_sizes
    source = PREPROCESSOR if PREPROCESSOR in companions else f"no {PREPROCESSOR}: the towers' own constants"
    return f"{height}x{width}, {source}"
