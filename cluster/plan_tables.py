"""What `wmpo plan` prints: who runs where, what it costs, and which node of a live cluster could take which bundle."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import AuthenticationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.placement import Bundle, bundle_of, bundles_for, placement_warnings, smallest_bundles
from wmpo_ray.config import Config
from wmpo_ray.config_cluster import bounds
from wmpo_ray.errors import UserError
from wmpo_ray.plan import ActorPlan, Plan, first_fit

PROBE_TIMEOUT_S = 5.0


def print_plan(console: Console, plan: Plan, config: Config, available: Mapping[str, float]) -> None:
    """The placement beside what is `available` (`{"CPU": ..., "GPU": ...}`), the models and the work."""
    placement = _placement_table(plan, config, available)
    for table in (placement, _holdings_table(plan), _models_table(plan), _work_table(plan)):
        console.print(table)
    console.print(
        f"real trajectories: {plan.real_budget} collected, {plan.real_demos} demonstrations\n"
        f"slots: {plan.num_slots} groups; video of one request: {plan.video_mib:.1f} MiB; "
        f"batch of one update: {plan.batch_mib:.1f} MiB"
    )


def _placement_table(plan: Plan, config: Config, available: Mapping[str, float]) -> Table:
    table = Table("actor", "count", "CPUs each", "GPUs each", "node", "stands with", title="Who runs where")
    for actor in plan.actors:
        count = str(actor.count) if actor.min_count == actor.count else f"{actor.min_count} to {actor.count}"
        place = (escape(_node_wish(actor)), _company(config, actor.name))
        table.add_row(actor.name, count, f"{actor.cpus:g}", f"{actor.gpus:g}", *place)
    bundles = _largest_bundles(config)
    table.add_section()
    cpus, gpus = sum(bundle.num_cpus for bundle in bundles), sum(bundle.num_gpus for bundle in bundles)
    told = (f"{cpus:g} of {available.get('CPU', 0):g}", f"{gpus:g} of {available.get('GPU', 0):g}")
    table.add_row("all", "", *told, "", "")
    return table


def _holdings_table(plan: Plan) -> Table:
    table = Table("actor", "models", "MiB of models each", title="What each holds")
    for actor in plan.actors:
        table.add_row(actor.name, ", ".join(actor.models), f"{actor.memory_mib:.1f}")
    return table


def _node_wish(actor: ActorPlan) -> str:
    return "\n".join(filter(None, (actor.accelerator_type, *actor.labels))) or "any"


def _company(config: Config, role: str) -> str:
    """The roles that the first actor of a role shares its bundle with."""
    others = [name for name, _ in bundle_of(config, role).members if name != role]
    return ", ".join(others) or "alone"


def _largest_bundles(config: Config) -> list[Bundle]:
    return bundles_for(config, bounds(config.cluster.imagination_actors)[1], bounds(config.cluster.reward_actors)[1])


def _models_table(plan: Plan) -> Table:
    table = Table("model", "parameters", "MiB", "GFLOP", title="Models")
    for model in plan.models:
        cost = f"{model.tflop * 1e3:.3g} per {model.unit}"
        table.add_row(model.name, f"{model.num_parameters:,}", f"{model.memory_mib:.1f}", cost)
    return table


def _work_table(plan: Plan) -> Table:
    table = Table("work", "amount", "TFLOP", title="One update, at most (full length, no group rejected)")
    for item in plan.work:
        table.add_row(item.name, f"{item.amount:,} {item.unit}", f"{item.tflop:.3g}")
    table.add_section()
    table.add_row("all", "", f"{sum(item.tflop for item in plan.work):.3g}")
    return table


# -- a live cluster ----------------------------------------------------------------------------------------------


def read_nodes(address: str) -> list[dict[str, Any]]:
    """`ray.nodes()` of the cluster at `address`; connects and disconnects. Raises UserError where there is none."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        try:  # Ray itself would try for minutes
            socket.create_connection((host.strip("[]"), int(port)), PROBE_TIMEOUT_S).close()
        except OSError as error:
            raise UserError(f"nothing answers at {address} ({error}); set --address or cluster.address") from None
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, AuthenticationError) as error:
        raise UserError(
            f"no Ray cluster can be reached at {address}: {error}; set --address or cluster.address, and "
            "RAY_AUTH_MODE=token with the cluster's token if it asks for one"
        ) from error
    try:
        return ray.nodes()
    finally:
        ray.shutdown()


def totals(nodes: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """CPUs and GPUs of all living nodes together."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    return {kind: sum(resources.get(kind, 0.0) for resources in alive) for kind in ("CPU", "GPU")}


def print_fit(console: Console, config: Config, nodes: Sequence[Mapping[str, Any]]) -> None:
    """Bundle -> node, if nothing else ran there. Raises UserError if the smallest run does not fit."""
    smallest = smallest_bundles(config)
    taken = list(smallest)
    if all(first_fit(smallest, nodes).values()):
        taken += _further_fitting(config, taken, nodes)
    found = first_fit(taken, nodes)
    table = Table("bundle", "CPUs", "GPUs", "node", title="Which node could take which bundle")
    for bundle in dict.fromkeys([*smallest, *_largest_bundles(config)]):
        node = found.get(bundle.name) or ("[bold red]none[/]" if bundle in smallest else "none now: needs a new node")
        table.add_row(bundle.name, f"{bundle.num_cpus:g}", f"{bundle.num_gpus:g}", node)
    console.print(table)
    for warning in placement_warnings(config, nodes):
        console.print(f"[yellow]{escape(warning)}[/]")
    missing = [bundle for bundle in smallest if not found[bundle.name]]
    if missing:
        raise UserError(_how_to_mend(config, missing))


def _further_fitting(config: Config, taken: list[Bundle], nodes: Sequence[Mapping[str, Any]]) -> list[Bundle]:
    """Bundles of elastic workers above the smallest number that fit beside `taken`."""
    further: list[Bundle] = []
    too_large = set()
    for bundle in _largest_bundles(config):
        shape = bundle[2:]
        if bundle in taken or shape in too_large:
            continue
        if all(first_fit([*taken, *further, bundle], nodes).values()):
            further.append(bundle)
        else:
            too_large.add(shape)
    return further


def _how_to_mend(config: Config, missing: Sequence[Bundle]) -> str:
    first = missing[0]
    role = first.members[0][0]
    wishes = ", ".join(f"{amount:g} {kind}" for kind, amount in first.resources.items())
    wishes += "".join(f", {label}" for label in first.labels)
    actors = {f"{name}_actors" for bundle in missing for name, _ in bundle.members} & {
        "imagination_actors",
        "reward_actors",
    }
    knobs = [f"cluster.{name}={getattr(config.cluster, name)}" for name in sorted(actors)]
    return (
        f"no node has room for {', '.join(bundle.name for bundle in missing)} ({first.name}: {wishes}) beside the rest; "
        f"lower {' or '.join([*knobs, f'placement.{role}'])}, or add nodes"
    )
