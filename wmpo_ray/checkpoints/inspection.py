"""What a folder or a file of weights is, and whether it can be loaded: names, shapes, sizes, values."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch

from wmpo_ray.checkpoints.checkpoint_kinds import OUR_SETTINGS, Build, CheckpointKind, Names, kind_of
from wmpo_ray.core.errors import UserError, short
from wmpo_ray.core.untrusted import all_finite
from wmpo_ray.model_files.weight_files import Fit, WeightFiles, compare, find_weights, read_tensors


@dataclass
class Inspection:
    """What was found at `path`. `missing`, `foreign` and `not_finite` are names of tensors, `wrong` lines.

    `companions` are the facts in the small files beside the weights, `problems` what is wrong with those.
    """

    path: Path
    kind: str
    files: WeightFiles
    compared: bool  # whether there is a network here to compare the names with
    missing: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    dead: list[str] = field(default_factory=list)  # present, and without effect on any result
    not_finite: list[str] = field(default_factory=list)
    num_fitting: int = 0
    companions: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def loadable(self) -> bool:
        return not (self.missing or self.foreign or self.wrong or self.not_finite or self.problems)

    def facts(self) -> dict[str, str]:
        """Lines for a table."""
        dtypes = Counter(spec.dtype for spec in self.files.specs.values())
        fitting = f"{self.num_fitting}, missing {len(self.missing)}, foreign {len(self.foreign)}"
        return {
            "what": self.kind,
            "layout": self.files.layout,
            "tensors": str(len(self.files.specs)),
            "parameters": f"{self.files.num_parameters:,}",
            "bytes": f"{self.files.num_bytes:,}",
            "dtype": ", ".join(f"{name} ({count})" for name, count in dtypes.most_common()),
            "fitting": f"{fitting}, wrong {len(self.wrong)}" if self.compared else "not compared",
            "without effect": str(len(self.dead)),
            **self.companions,
            "can be loaded": "no" if not self.loadable else "yes" if self.compared else "not known here",
        }


def inspect_path(path: str | Path, read_values: bool = True, read_companions: bool = True) -> Inspection:
    """Inspect a folder of a model or a file of weights; no code in it is run.

    `read_values` reads every tensor, one at a time, and looks for values that are not finite; `read_companions` reads
    the small files beside a policy. Raises UserError for what holds no weights, and for weights that are damaged.
    """
    files = find_weights(path)
    kind = kind_of(files)
    own = next((text for name, text in OUR_SETTINGS.items() if (files.parts[0].parent / name).is_file()), None)
    found = Inspection(Path(path), own or kind.name, files, compared=False)
    if own is None:
        try:
            if network := kind.network(files):
                found.compared = True
                _compare(found, kind, *network)
            found.problems += kind.problems(files)
            if read_companions:
                found.companions, problems = kind.beside(files)
                found.problems += problems
        except UserError as error:
            # The files beside the weights are damaged; the weights themselves are still worth reporting.
            found.compared = False
            found.problems.append(str(error))
    if read_values:
        readable = {name: "" for name, spec in files.specs.items() if spec.is_floating}
        found.not_finite += [name for name, tensor in read_tensors(files, readable) if not all_finite(tensor)]
    return found


def check_loadable(path: str | Path, key: str) -> None:
    """Raises UserError for weights that would not load, by all that can be said without reading them.

    `key` is the setting that names them. What stands beside a policy depends on the run: its robot has the last word
    on the dimensions of actions.
    """
    try:
        found = inspect_path(path, read_values=False, read_companions=False)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error  # which names the path
    wrong = [
        *found.problems,
        *(f"the weights lack {name}" for name in found.missing),
        *(f"the weights do not fit: {line}" for line in found.wrong),
        *(f"the weights hold {name} in addition" for name in found.foreign),
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more: wmpo checkpoints inspect {path})" if len(wrong) > 1 else ""
        where = "" if str(path) in wrong[0] else f" = {path}"
        raise UserError(f"{key}{where}: {wrong[0]}{more}")


def _compare(found: Inspection, kind: CheckpointKind, build: Build, names: Names) -> None:
    fit = fit_of(found.files, build, names)
    passed_over = [name for name in fit.foreign if kind.is_passed_over(name)]
    found.missing, found.wrong, found.num_fitting = fit.missing, fit.wrong, len(fit.in_file) - len(fit.wrong)
    found.foreign = [name for name in fit.foreign if name not in passed_over]
    found.dead = [name for name in found.files.specs if kind.has_no_effect(name) or name in passed_over]


def fit_of(files: WeightFiles, build: Build, names: Names) -> Fit:
    """Names and shapes of a network that takes no memory against those of the files."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return compare(files.specs, build(), names)
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{files.path}: no network can be made of these sizes: {short(error)}") from error
