"""The output of `wmpo plan`: placement, costs, and which node of a live cluster could hold which bundle."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.host.connection import connect
from cluster.workers.placement import Bundle, bundle_of, largest_bundles, placement_warnings, smallest_bundles
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.planning.packing import first_fit
from wmpo_ray.planning.plan import GPU_TFLOPS, ActorPlan, Plan
from wmpo_ray.planning.update_time import expected_update

MIB, GIB = 2**20, 2**30


def print_plan(
    console: Console,
    plan: Plan,
    config: Config,
    available: Mapping[str, float],
    tflops: float | None = None,
    keep_rate: float = 0.5,
) -> None:
    """The placement beside what is `available` (`{"CPU": ..., "GPU": ...}`), the models, their memory and the work.

    `tflops` is the throughput of a GPU; without it, times are shown only for runs on GPUs, at `GPU_TFLOPS`. `keep_rate` is
    the share of groups that are admitted.
    """
    if tflops is None and any(actor.gpus for actor in plan.actors):
        tflops = GPU_TFLOPS
    placement = _placement_table(plan, config, available)
    for table in (placement, _models_table(plan), _memory_table(plan), _work_table(plan, tflops)):
        console.print(table)
    if tflops is not None:
        console.print(_time_text(plan, tflops))
        is_race = config.training.source == "online" and config.rollout.world == "imagination"
        if is_race and not plan.collocated and not plan.overlapping:
            console.print(_kept_text(plan, config, tflops, keep_rate))
    console.print(
        f"real trajectories: {plan.real_budget} collected, {plan.real_demos} demonstrations\n"
        f"slots: {plan.num_slots} groups; video of one request: {bytes_text(plan.video_bytes)}; "
        f"batch of one update: {bytes_text(plan.batch_bytes)}"
    )


def bytes_text(amount: float) -> str:
    return f"{amount / GIB:.1f} GiB" if amount >= GIB else f"{amount / MIB:.1f} MiB"


def flop_text(tflop: float) -> str:
    """Three digits, with the prefix that fits."""
    for prefix, size in (("E", 1e-6), ("P", 1e-3), ("T", 1.0), ("G", 1e3)):
        if tflop * size >= 0.9995:
            return f"{tflop * size:.3g} {prefix}FLOP"
    return f"{tflop * 1e6:.3g} MFLOP"


def seconds_text(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 120 else f"{seconds:.3g} s"


def _placement_table(plan: Plan, config: Config, available: Mapping[str, float]) -> Table:
    table = Table("actor", "count", "CPUs each", "GPUs each", "node", "stands with", title="Who runs where")
    for actor in plan.actors:
        count = str(actor.count) if actor.min_count == actor.count else f"{actor.min_count} to {actor.count}"
        place = (_node_wish(actor), _company(config, actor.name))
        table.add_row(actor.name, count, f"{actor.cpus:g}", f"{actor.gpus:g}", *place)
    bundles = largest_bundles(config)
    table.add_section()
    cpus, gpus = sum(bundle.num_cpus for bundle in bundles), sum(bundle.num_gpus for bundle in bundles)
    totals = (f"{cpus:g} of {available.get('CPU', 0):g}", f"{gpus:g} of {available.get('GPU', 0):g}")
    table.add_row("all", "", *totals, "", "")
    return table


def _models_table(plan: Plan) -> Table:
    table = _right(Table("model", "parameters", "work", "of one", "sizes from", title="Models"), 1, 2)
    for model in plan.models:
        lines = ("\n".join(flop_text(tflop) for tflop, _ in model.costs), "\n".join(unit for _, unit in model.costs))
        table.add_row(model.name, f"{model.num_parameters:,}", *lines, _short(model.source), end_section=True)
    return table


def _memory_table(plan: Plan) -> Table:
    table = _right(Table("actor", "holds", "memory", title="Memory of each process, at most (estimate)"), 2)
    for actor in plan.actors:
        for i, part in enumerate(actor.memory.parts):
            table.add_row(actor.name if not i else "", part.name, bytes_text(part.bytes))
        table.add_row("", Text("all", "bold"), Text(bytes_text(actor.memory.bytes), "bold"), end_section=True)
    if plan.collocated:
        together = bytes_text(sum(actor.memory.bytes for actor in plan.actors))
        table.add_row("together", "on each GPU, nobody giving anything back", Text(together, "bold"))
    return table


def _work_table(plan: Plan, tflops: float | None) -> Table:
    timed = ("seconds",) if tflops else ()
    title = "One update, at most (full length, no group rejected)"
    table = _right(Table("work", "by", "amount", "work in all", "share", *timed, title=title), 3, 4, 5)
    workers = {actor.name: actor.workers for actor in plan.actors}
    for item in plan.work:
        share = f"{item.tflop / plan.tflop:.1%}"
        time = (f"{item.tflop / (tflops * workers[item.role]):,.1f}",) if tflops else ()
        table.add_row(item.name, item.role, f"{item.amount:,} {item.unit}", flop_text(item.tflop), share, *time)
    table.add_section()
    table.add_row("all", "", "", flop_text(plan.tflop), "", *("" for _ in timed))
    return table


def _time_text(plan: Plan, tflops: float) -> Text:
    """Role -> GPUs and time, and what an update takes."""
    seconds = plan.role_seconds(tflops)
    parts = []
    for actor in plan.actors:
        what = f"{actor.workers:g} GPUs" if actor.gpus else f"{actor.count} processes"
        parts.append(f"{actor.name} {seconds_text(seconds[actor.name])} on {what}")
    update = plan.update_seconds(tflops)
    first, last = ("then", "then") if plan.collocated else ("beside", "beside" if plan.overlapping else "then")
    return Text.assemble(
        (f"expected time of an update at {tflops:g} TFLOP/s each: {seconds_text(update)}", "bold"),
        f", {plan.num_frames / update:,.0f} imagined frames/s\n({parts[0]}, {first} {parts[1]}, {last} {parts[2]})",
    )


def _kept_text(plan: Plan, config: Config, tflops: float, keep_rate: float) -> Text:
    """The same if not every group is admitted."""
    (actors,) = [actor for actor in plan.actors if actor.name == "imagination"]
    found = expected_update(config, plan.step_times(tflops), max(1, round(actors.workers)), keep_rate)
    return Text(
        f"with {keep_rate:.0%} of the groups admitted {seconds_text(found.seconds)}: {found.groups:.0f} groups are begun, and "
        f"{found.exposed:.0%} of the learner's time comes after its batch is full"
    )


def _right(table: Table, *columns: int) -> Table:
    for i in columns:
        if i < len(table.columns):
            table.columns[i].justify = "right"
    return table


def _short(source: str, limit: int = 36) -> str:
    return source if len(source) <= limit else f"...{source[3 - limit :]}"


def _node_wish(actor: ActorPlan) -> str:
    return "\n".join(filter(None, (actor.accelerator_type, *actor.labels))) or "any"


def _company(config: Config, role: str) -> str:
    """The roles that the first actor of a role shares its bundle with."""
    others = [name for name, _ in bundle_of(config, role).members if name != role]
    return ", ".join(others) or "alone"


# -- a live cluster ----------------------------------------------------------------------------------------------


def read_nodes(address: str) -> list[dict[str, Any]]:
    """`ray.nodes()` of the cluster at `address`; connects and disconnects. Raises UserError where there is none."""
    connect(address, logging_level=logging.ERROR)
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
    for bundle in dict.fromkeys([*smallest, *largest_bundles(config)]):
        missing = Text("none", "bold red") if bundle in smallest else "none now: needs a new node"
        node = found.get(bundle.name) or missing
        table.add_row(bundle.name, f"{bundle.num_cpus:g}", f"{bundle.num_gpus:g}", node)
    console.print(table)
    for warning in placement_warnings(config, nodes):
        console.print(Text(warning, "yellow"))
    homeless = [bundle for bundle in smallest if not found[bundle.name]]
    if homeless:
        raise UserError(_how_to_mend(config, homeless))


def _further_fitting(config: Config, taken: list[Bundle], nodes: Sequence[Mapping[str, Any]]) -> list[Bundle]:
    """Bundles of elastic workers above the smallest number that fit beside `taken`."""
    further: list[Bundle] = []
    too_large = set()
    for bundle in largest_bundles(config):
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
