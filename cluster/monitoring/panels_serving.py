"""The board of policy servers: what robots ask, how fast they are answered, by whom, and what was refused.

A server is read where it serves its metrics (`wmpo serve --metrics-port`, `wmpo monitor --target`), so it is known by that
address and not by a run.
"""

from __future__ import annotations

from cluster.monitoring.panels import BAD, OK, WARN, Panel, Row
from cluster.monitoring.queries import RATE_WINDOW, Expressions, Query
from wmpo_ray.remote.serving_metrics import SERVING

SERVER = Expressions(SERVING, "", 'instance=~"$server"')
gauge, rate, increase, query = SERVER.gauge, SERVER.rate, SERVER.increase, SERVER.query


def _quantiles(name: str, *shares: float) -> tuple[Query, ...]:
    return tuple(query(SERVER.quantile(share, name, window=RATE_WINDOW), f"p{100 * share:.0f}") for share in shares)


ASKED = Row(
    "Robots",
    7,
    (
        Panel(
            "Robots",
            "Those that have said hello and were not forgotten; one that acted is kept for ten minutes after.",
            "short",
            (query(gauge("wmpo_serve_sessions", operator="sum"), "sessions"),),
            4,
            "stat",
        ),
        Panel(
            "Requests a second",
            "Questions that were answered, all robots together.",
            "reqps",
            (query(SERVER.events("wmpo_serve_act_seconds", window=RATE_WINDOW), "answered"),),
            10,
        ),
        Panel(
            "Refused",
            "Calls that were refused, by reason. `token` is somebody without it, `invalid` a message that does not fit "
            "the policy, `queue` and `late` a server that is too slow for its robots.",
            "short",
            (query(increase("wmpo_serve_refusals_total", "reason", window=RATE_WINDOW), "{{reason}}"),),
            10,
            is_stacked=True,
        ),
    ),
)

SPEED = Row(
    "Latency",
    8,
    (
        Panel(
            "Time to an answer",
            "On the server, from a question to its answer: waiting for the batch and the policy, without the network.",
            "s",
            _quantiles("wmpo_serve_act_seconds", 0.5, 0.95, 0.99),
            8,
            thresholds=((None, OK), (0.1, WARN), (0.5, BAD)),
        ),
        Panel(
            "Time to an answer, distribution",
            "Answers in the time that the board shows, by how long they took.",
            "short",
            (query(SERVER.buckets("wmpo_serve_act_seconds"), "{{le}} s", is_buckets=True),),
            8,
            "bargauge",
        ),
        Panel(
            "Time in the policy",
            "Of a batch. What is left of the time to an answer is waiting for other robots and for a free replica.",
            "s",
            _quantiles("wmpo_serve_policy_seconds", 0.5, 0.95),
            4,
        ),
        Panel(
            "Robots in a batch",
            "As large as the robots that ask at the same time, up to `--max-batch`.",
            "short",
            _quantiles("wmpo_serve_batch_robots", 0.5, 0.95),
            4,
        ),
    ),
)

POLICY = Row(
    "Policy and episodes",
    7,
    (
        Panel(
            "Chunks by version",
            "Which policy acted. After new weights were taken the old version fades out within a chunk.",
            "short",
            (query(rate("wmpo_serve_chunks_total", "updates", "digest"), "update {{updates}} ({{digest}})"),),
            8,
            is_stacked=True,
        ),
        Panel(
            "Update that acts",
            "Of the newest replica; with `--watch` it follows the run.",
            "short",
            (query(gauge("wmpo_serve_policy_updates"), "update"),),
            4,
            "stat",
        ),
        Panel(
            "Weights taken",
            "How often new weights were loaded in the time that the board shows.",
            "short",
            (query(increase("wmpo_serve_weight_swaps_total"), "taken"),),
            4,
            "stat",
        ),
        Panel(
            "Episodes",
            "That robots have sent, by their verdict; `unknown` waits for `wmpo label`, `misfit` was kept as it came.",
            "short",
            (query(increase("wmpo_serve_episodes_total", "verdict"), "{{verdict}}"),),
            4,
            "stat",
        ),
        Panel(
            "Bytes of episodes a second",
            "All robots together. Uploads go on in the background while robots act.",
            "Bps",
            (query(rate("wmpo_serve_upload_bytes_total"), "received"),),
            4,
        ),
    ),
)

SERVING_ROWS = (ASKED, SPEED, POLICY)
