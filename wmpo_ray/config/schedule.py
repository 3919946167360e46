"""Settings that change on the way of a training."""

from __future__ import annotations

from wmpo_ray.core.section import Section


class ScheduleConfig(Section):
    """What the first updates are made with where it differs from the other sections, which hold for the last ones.

    One entry for each stretch of updates, of settings as `--set` takes them. `num_updates` of the algorithm is among
    them: the update that the stretch ends with. `wmpo_ray/config/stretches.py` reads it.
    """

    earlier: tuple[tuple[str, ...], ...] = ()  # such as (("grpo.num_updates=5", "grpo.learning_rate=0.0001"),)
