"""The section `[environment]`: what every kind of environment has, and several of a kind's tasks at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from wmpo_ray.core.section import Positive, Section, shown

# Left out of what is written where there is one task, as in the files of earlier versions.
OF_SEVERAL_TASKS = ("task_names", "task_weights")
TaskName = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[\w.-]+$")]
# Where a kind looks at its settings beforehand, an array of JSON is a list, which is no tuple if one is strict.
_ARRAY = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)


class EnvironmentConfig(Section):
    """What every kind of environment has."""

    places: ClassVar[frozenset[str]] = frozenset()  # settings that say where something lies: no result depends on them

    kind: str = "pocket"
    task: str = ""  # such as "Coffee_D0", of a kind that has several
    # Several tasks of the kind instead of `task`, for one policy, one world model and one reward model. They are told
    # apart by their instructions.
    task_names: Annotated[tuple[TaskName, ...], Field(max_length=100), _ARRAY] = ()
    # The share of start states of each of `task_names`, in proportion; (): equal ones.
    task_weights: Annotated[tuple[Positive, ...], _ARRAY] = ()
    horizon: Annotated[int, Field(ge=1, le=10**5)] = 32  # frames per episode, a multiple of rollout.chunk_length
    disruption: Literal["none", "position", "background", "texture"] = "none"

    @property
    def variants(self) -> dict[str, Self]:
        """The section of each of `task_names` alone; empty where there is one task."""
        own = self.model_dump(exclude={"task", *OF_SEVERAL_TASKS})
        return {task: type(self).model_validate({**own, "task": task}) for task in self.task_names}

    @model_validator(mode="after")
    def _check_tasks(self) -> Self:
        if self.task_weights and len(self.task_weights) != len(self.task_names):
            raise ValueError(
                f"environment.task_weights = {shown(self.task_weights)}: there are {len(self.task_names)} environment.task_names, and "
                "each needs one weight; change one of the two, or remove environment.task_weights"
            )
        if not self.task_names:
            return self
        if len(self.task_names) < 2 or len(set(self.task_names)) < len(self.task_names):
            raise ValueError(
                f"environment.task_names = {shown(self.task_names)}: it must name at least two tasks, each once; of one "
                "task, set environment.task"
            )
        if self.task not in ("", type(self).model_fields["task"].default, *self.task_names):
            raise ValueError(
                f"environment.task = {shown(self.task)} is none of environment.task_names = {shown(self.task_names)}; remove "
                "environment.task"
            )
        try:
            self.variants  # noqa: B018  each must be a task of the kind
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"environment.task_names: {first.get('ctx', {}).get('error', first['msg'])}") from None
        return self

    @model_serializer(mode="wrap")
    def _without_absent_tasks(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found = handler(self)
        return {key: value for key, value in found.items() if self.task_names or key not in OF_SEVERAL_TASKS}


def named_tasks(data: Mapping[str, Any], default: str) -> list[str]:
    """The tasks that settings name before they are checked: those of `task_names`, else `task`, else the default."""
    tasks = data.get("task_names")
    several = [str(task) for task in tasks] if isinstance(tasks, list | tuple) else []
    return several or [str(data.get("task", default))]
