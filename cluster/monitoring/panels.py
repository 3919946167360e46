"""What the board shows: rows of panels, each a question about a run. How Grafana writes them down is in `board.py`."""

from __future__ import annotations

from typing import NamedTuple

from cluster.monitoring.queries import (
    ANY_WORKER,
    RARE_WINDOW,
    Query,
    buckets,
    events,
    gauge,
    increase,
    p50_p95,
    query,
    rate,
)

OK, WARN, BAD = "green", "orange", "red"
SHARE = "percentunit"
NO_LIMIT: tuple[tuple[float | None, str], ...] = ((None, OK),)


class Panel(NamedTuple):
    """Width in 24ths of the page. `thresholds` are (from value, colour), the first from None."""

    title: str
    text: str
    unit: str
    queries: tuple[Query, ...]
    width: int = 8
    kind: str = "timeseries"  # stat, bargauge
    thresholds: tuple[tuple[float | None, str], ...] = NO_LIMIT
    is_stacked: bool = False
    minimum: float | None = 0
    maximum: float | None = None
    shows_name: bool = False  # a stat: the legend, not the value
    band: tuple[str, str] | None = None  # legends of the lower and the upper end of an interval


class Row(NamedTuple):
    title: str
    height: int
    panels: tuple[Panel, ...]


def or_zero(expr: str) -> str:
    """A zero where nothing has a GPU; `on ()` keeps it away where something has."""
    return f"{expr} or on () vector(0)"


NO_GPU = (
    "Where no worker has a GPU there is no such series: the query then answers one line at zero, "
    "so that an empty panel always means a fault."
)

NOW = Row(
    "Now",
    4,
    (
        Panel(
            "Stage",
            "What the run is doing.",
            "short",
            (query(gauge("wmpo_stage", "stage") + " == 1", "{{stage}}"),),
            4,
            "stat",
            shows_name=True,
        ),
        Panel(
            "Update",
            "Updates done, and how many there will be.",
            "short",
            (query(gauge("wmpo_update"), "done"), query(gauge("wmpo_updates_planned"), "planned")),
            4,
            "stat",
        ),
        Panel(
            "Time left",
            "At the pace of the last quarter of an hour; infinite while no update ends in it.",
            "s",
            (
                query(
                    f"({gauge('wmpo_updates_planned')} - {gauge('wmpo_update')}) / {events('wmpo_update_seconds')}",
                    "left",
                ),
            ),
            4,
            "stat",
        ),
        Panel(
            "Success",
            "Imagined, of the last update; real, of the last evaluation.",
            SHARE,
            (query(gauge("wmpo_imagined_success_rate"), "imagined"), query(gauge("wmpo_real_success_rate"), "real")),
            4,
            "stat",
            maximum=1,
        ),
        Panel(
            "Frames a second",
            "All imagination workers together.",
            "suffix: frames/s",
            (query(rate("wmpo_imagined_frames_total"), "frames"),),
            4,
            "stat",
        ),
        Panel(
            "Faults",
            "Workers lost in the time that the board shows. A few are mended by themselves; many cost time.",
            "short",
            (query(increase("wmpo_worker_losses_total"), "lost"),),
            4,
            "stat",
            ((None, OK), (1, WARN), (10, BAD)),
        ),
    ),
)

THROUGHPUT = Row(
    "Throughput",
    8,
    (
        Panel(
            "Imagined frames a second",
            "By worker, on top of each other. A worker that lies below the others is slow, or was replaced.",
            "suffix: frames/s",
            (query(rate("wmpo_imagined_frames_total", "worker", **ANY_WORKER), "{{worker}}"),),
            is_stacked=True,
        ),
        Panel(
            "Imagined trajectories and chunks a second",
            "A trajectory is a whole imagined episode, a chunk the frames of one decision of the policy.",
            "suffix: /s",
            (
                query(rate("wmpo_imagined_trajectories_total", **ANY_WORKER), "trajectories"),
                query(rate("wmpo_imagined_chunks_total", **ANY_WORKER), "chunks"),
            ),
        ),
        Panel(
            "Updates an hour",
            "Over the last quarter of an hour.",
            "suffix: updates/h",
            (query(f"3600 * {events('wmpo_update_seconds')}", "updates"),),
        ),
        Panel("Seconds of an update", "From one update's end to the next one's.", "s", p50_p95("wmpo_update_seconds")),
        Panel(
            "Seconds of an optimizer step",
            "Forward, backward and step of one mini-batch.",
            "s",
            p50_p95("wmpo_learner_step_seconds"),
        ),
        Panel(
            "Batch sizes",
            "Trajectories imagined together and videos scored together. Small ones use a GPU badly.",
            "short",
            (
                *p50_p95("wmpo_imagined_batch_trajectories", label="imagined"),
                *p50_p95("wmpo_scored_batch_videos", label="scored"),
            ),
        ),
    ),
)

TIME = Row(
    "Where the time goes",
    9,
    (
        Panel(
            "Share of work by role and phase",
            "All seconds of work of all workers, as shares. The widest band is what to make faster first.",
            SHARE,
            (
                query(
                    f"{rate('wmpo_phase_seconds_total', 'role', 'phase', **ANY_WORKER)} / "
                    f"on () group_left () {rate('wmpo_phase_seconds_total', **ANY_WORKER)}",
                    "{{role}} {{phase}}",
                ),
            ),
            12,
            is_stacked=True,
            maximum=1,
        ),
        Panel(
            "Busy share by role",
            "Seconds of work per second and worker. A role near 100% is the bottleneck; one near zero could be "
            "smaller.",
            SHARE,
            (
                query(
                    f"{rate('wmpo_phase_seconds_total', 'role')} / "
                    f"clamp_min({gauge('wmpo_workers', 'role', operator='sum', phase='ready|working')}, 1)",
                    "{{role}}",
                ),
            ),
            12,
            thresholds=((None, OK), (0.95, WARN)),
        ),
        Panel(
            "Learner waiting",
            "Share of the time in which the learner was ready and had nothing to train. High with an idle imagination: "
            "more slots (`filter.max_staleness`, `rollout.speculation`); high with a busy one: more imagination "
            "workers.",
            SHARE,
            (query(rate("wmpo_learner_waiting_seconds_total"), "waiting"),),
            thresholds=((None, OK), (0.5, WARN), (0.8, BAD)),
            maximum=1,
        ),
        Panel(
            "Driver busy",
            "Share of the time in which the main loop itself worked. Near 100% everything waits for it: larger "
            "requests "
            "(`rollout.groups_per_request`).",
            SHARE,
            (query(rate("wmpo_driver_busy_seconds_total"), "busy"),),
            thresholds=((None, OK), (0.2, WARN), (0.5, BAD)),
            maximum=1,
        ),
        Panel(
            "Seconds of a call",
            "By what the worker was asked to do, from its start there.",
            "s",
            p50_p95("wmpo_call_seconds", "role", "call"),
        ),
    ),
)

QUEUE = Row(
    "Queue health",
    8,
    (
        Panel(
            "Groups in the queue",
            "In flight: asked for and not yet decided. Admitted: waiting for their update. Free: could be asked for "
            "now.",
            "short",
            (
                query(gauge("wmpo_queue_groups", "state"), "{{state}}"),
                query(gauge("wmpo_queue_free_slots"), "free slots"),
            ),
        ),
        Panel(
            "Verdicts a minute",
            "What became of the groups. Uniform ones (all successes or all failures) teach nothing.",
            "suffix: /min",
            (query(f"60 * {rate('wmpo_groups_total', 'verdict')}", "{{verdict}}"),),
            is_stacked=True,
        ),
        Panel(
            "Keep rate",
            "Groups admitted of all that were decided. Below 30% most of the imagination is for nothing: the task "
            "is too "
            "easy or too hard for the policy, see `filter`.",
            SHARE,
            (
                query(
                    f"{rate('wmpo_groups_total', window=RARE_WINDOW, verdict='admit')} / "
                    f"{rate('wmpo_groups_total', window=RARE_WINDOW)}",
                    "admitted",
                ),
            ),
            thresholds=((None, BAD), (0.3, WARN), (0.5, OK)),
            maximum=1,
        ),
        Panel(
            "Staleness of trained groups",
            "Groups by the updates between the weights that imagined them and those they improved, in the time that "
            "the "
            "board shows; each bar is up to its number. Nothing should lie beyond `filter.max_staleness`.",
            "short",
            (query(buckets("wmpo_staleness_updates"), "{{le}}", is_buckets=True),),
            12,
            "bargauge",
        ),
        Panel(
            "Slowest replica behind the learner",
            "Updates. On-policy it returns to 0 after every broadcast; `filter.max_staleness` is what may remain.",
            "suffix: updates",
            (
                query(
                    f"{gauge('wmpo_weight_version', holder='learner')} - "
                    f"{gauge('wmpo_weight_version', holder='slowest_replica')}",
                    "behind",
                ),
            ),
            12,
            thresholds=((None, OK), (2, WARN)),
        ),
    ),
)
