"""The stage `world-model`: policy behaviour alignment of the world model and its verifier."""

from __future__ import annotations

from typing import Any

from cluster.recipes.checks import check_pretrained, check_workers
from cluster.recipes.context import RunContext
from cluster.recipes.pretraining.pretrain import MODEL
from cluster.recipes.stage import Stage
from cluster.recipes.trainings import run_trainings
from learners.supervised.jobs import AlignmentJob, EpisodeSource, Training
from wmpo_ray.config.run import Config
from wmpo_ray.core.files import atomic_directory
from wmpo_ray.core.seeding import seed_for
from wmpo_ray.data.episodes import concatenate_episodes
from wmpo_ray.environments.augmentation import augmentation_of
from wmpo_ray.registry import begin_world_model, load_world_model
from wmpo_ray.rollout.fidelity import replay_error


def world_model(context: RunContext) -> dict[str, Any]:
    """Align all models, each from its newest checkpoint; saves them in `models`."""
    config = context.config
    if not config.world_model.is_learned:
        return {"kind": config.world_model.kind}
    names = {"world-model": pretrained_of(context)}
    if config.reward.verify.enabled:
        names["verifier"] = config.reward.verify.pretrained
    if config.world_model.alignment.steps:
        metrics = align(context, names)
    else:
        metrics = {name: adopt_pretrained(context, name, pretrained) for name, pretrained in names.items()}
    return {**metrics.pop("world-model"), **metrics}


def pretrained_of(context: RunContext) -> str:
    """What alignment begins with: the world model of this run's stage `pretrain`, if it has one."""
    if context.round == 1 and context.config.pretrain.steps:
        return str(context.model(MODEL).absolute())
    return context.config.world_model.pretrained


def adopt_pretrained(context: RunContext, name: str, pretrained: str) -> dict[str, Any]:
    """Save an unchanged pretrained world model in `models`, and measure its error."""
    config, seed = context.config, seed_for(context.config.seed, "align", name)
    with atomic_directory(context.model(name)) as folder:
        begin_world_model(config, pretrained, seed).save(folder)
    _, held_out = context.collected()
    world = load_world_model(config, str(context.model(name)))
    errors = replay_error(world, held_out, seed).tolist()
    mean = sum(errors) / len(errors)
    # Nothing was trained, so before and after are equal.
    return {
        "pretrained": pretrained,
        "psnr_per_frame_db": {"before": errors, "after": errors},
        "psnr_db_before": mean,
        "psnr_db_after": mean,
    }


def align(context: RunContext, names: dict[str, str]) -> dict[str, dict[str, Any]]:
    """names: model name -> source of its weights."""
    config, settings = context.config, context.config.world_model.alignment

    def describe(source: EpisodeSource) -> list[Training]:
        demos = source.read("demos", context.trajectory_file("demos"))
        *earlier, path = context.files_so_far("collect")
        collected = source.read("collect", path)
        num_held_out = context.num_validation(len(collected))
        rollouts = collected.rows(slice(len(collected) - num_held_out))
        if earlier:
            before = [source.read(f"collect-{round}", file) for round, file in enumerate(earlier, start=1)]
            rollouts = concatenate_episodes([*before, rollouts])
        trainings = []
        for name, pretrained in names.items():
            out = context.model(name).absolute()
            job = AlignmentJob(config, name, pretrained, rollouts, demos, path, num_held_out, out)
            section = "world_model.alignment"
            trainings.append(Training(name, f"aligning the {name}", section, settings, "imagination", job))
        return trainings

    return run_trainings(context, describe)


def check(config: Config, serial: bool) -> None:
    world, verify = config.world_model, config.reward.verify
    if not world.is_learned:
        return
    check_pretrained("world_model.pretrained", world.pretrained)
    if verify.enabled:
        check_pretrained("reward.verify.pretrained", verify.pretrained)
    augmentation_of(config)
    check_workers(config, "world_model.alignment", world.alignment, serial)


WORLD_MODEL = Stage(
    "world-model",
    world_model,
    needs=("pretrain", "demos", "collect"),
    builds_on=("world-model",),
    makes=("models/world-model", "models/verifier", "curves/world-model.jsonl", "curves/verifier.jsonl"),
    settings=(
        "world_model",
        "augmentation",
        "reward.verify.enabled",
        "reward.verify.pretrained",
        "collect.validation_share",
        "rollout.chunk_length",
    ),
    state=("checkpoints/world-model", "checkpoints/verifier"),
    check=check,
)
