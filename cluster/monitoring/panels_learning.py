"""The board's rows about learning, weights, faults and memory."""

from __future__ import annotations

from cluster.monitoring.panels import BAD, NO_GPU, NOW, OK, QUEUE, SHARE, THROUGHPUT, TIME, WARN, Panel, Row, or_zero
from cluster.monitoring.queries import ANY_WORKER, RARE_WINDOW, SINCE_START, gauge, increase, p50_p95, query, rate

ONE_TASK = "Empty for a run of one task."

LEARNING = Row(
    "Learning",
    9,
    (
        Panel(
            "Success: imagined, verified, real",
            "Real success with its 95% interval, as of the last evaluation. Imagined success that rises while the real "
            "one falls means that the policy has learned to exploit the world model: stop, and align it again.",
            SHARE,
            (
                query(gauge("wmpo_imagined_success_rate"), "imagined"),
                query(gauge("wmpo_verified_success_rate"), "verified"),
                query(gauge("wmpo_real_success_rate"), "real"),
                query(gauge("wmpo_real_success_low"), "real, low"),
                query(gauge("wmpo_real_success_high"), "real, high"),
            ),
            12,
            maximum=1,
            band=("real, low", "real, high"),
        ),
        Panel(
            "Rollout success",
            "Share of the training rollouts in the real environment that succeeded, last update. Empty for recipes that "
            "train on imagined rollouts or on recorded episodes.",
            SHARE,
            (query(gauge("wmpo_rollout_success_rate"), "rollouts"),),
            6,
            maximum=1,
        ),
        Panel(
            "Label agreement",
            "Share of imagined outcomes that execution of the same actions confirmed. Below 80% the reward is noise.",
            SHARE,
            (query(gauge("wmpo_label_agreement_rate"), "agreement"),),
            6,
            thresholds=((None, BAD), (0.8, WARN), (0.9, OK)),
            maximum=1,
        ),
        Panel(
            "Clip fraction",
            "Share of the ratios that were clipped in the last update. Above 30%: smaller steps "
            "(`grpo.learning_rate`).",
            SHARE,
            (query(gauge("wmpo_clip_fraction"), "clipped"),),
            6,
            thresholds=((None, OK), (0.3, WARN), (0.5, BAD)),
        ),
        Panel(
            "Probability ratio",
            "New to behaviour policy in the last update. The mean stays near 1 if the log-probabilities of imagination "
            "and learner agree.",
            "short",
            (query(gauge("wmpo_ratio", "statistic"), "{{statistic}}"),),
            6,
            minimum=None,
        ),
        Panel(
            "Advantage spread",
            "Standard deviation of the advantages. Near zero there is nothing to learn from.",
            "short",
            (query(gauge("wmpo_advantage_spread"), "spread"),),
            6,
            thresholds=((None, BAD), (0.1, OK)),
        ),
        Panel(
            "Gradient norm",
            "Before clipping, mean over the steps of the last update. A jump by tens comes before a collapse.",
            "short",
            (query(gauge("wmpo_gradient_norm"), "norm"),),
            6,
        ),
    ),
)

TASKS = Row(
    "Tasks",
    8,
    (
        Panel(
            "Success of each task",
            f"Real, with the ends of its 95% interval, as of the last evaluation; in training, of the last update. {ONE_TASK}",
            SHARE,
            (
                query(gauge("wmpo_task_real_success_rate", "task"), "{{task}}"),
                query(gauge("wmpo_task_real_success_low", "task"), "{{task}}, low"),
                query(gauge("wmpo_task_real_success_high", "task"), "{{task}}, high"),
                query(gauge("wmpo_task_training_success_rate", "task"), "{{task}}, training"),
            ),
            maximum=1,
        ),
        Panel(
            "Keep rate of each task",
            "Groups admitted of all that were judged, last update. A task near zero is too easy or too hard for the policy: "
            f'with `rollout.task_draw = "signal"` it is asked less often. {ONE_TASK}',
            SHARE,
            (query(gauge("wmpo_task_keep_rate", "task"), "{{task}}"),),
            maximum=1,
        ),
        Panel(
            "Label agreement of each task",
            f"Share of imagined outcomes that execution of the same actions confirmed. {ONE_TASK}",
            SHARE,
            (query(gauge("wmpo_task_label_agreement_rate", "task"), "{{task}}"),),
            maximum=1,
        ),
        Panel(
            "Groups of each task a minute",
            f"Admitted to a batch, or refused. {ONE_TASK}",
            "suffix: /min",
            (
                query(
                    f"60 * {rate('wmpo_task_groups_total', 'task', 'outcome', window=RARE_WINDOW)}",
                    "{{task}} {{outcome}}",
                ),
            ),
            is_stacked=True,
        ),
    ),
)

WEIGHTS = Row(
    "Weights",
    8,
    (
        Panel(
            "Seconds of a broadcast",
            "From offering weights until the last replica held them. On-policy, imagination waits for it.",
            "s",
            p50_p95("wmpo_broadcast_seconds"),
        ),
        Panel(
            "Bytes sent",
            'Once for each replica. `weights.payload = "delta"` or `"adapter"` sends less.',
            "Bps",
            (query(rate("wmpo_broadcast_bytes_total"), "sent"),),
        ),
        Panel(
            "Weight versions",
            "Updates behind the weights of the learner, of what was offered last, and of the replica that lags most.",
            "short",
            (query(gauge("wmpo_weight_version", "holder"), "{{holder}}"),),
        ),
    ),
)

FAULTS = Row(
    "Faults",
    8,
    (
        Panel(
            "Workers lost",
            "Killed, hung, or on a node that went; in the last quarter of an hour. `events.jsonl` names each.",
            "short",
            (query(increase("wmpo_worker_losses_total", "role", window="15m"), "{{role}}"),),
            is_stacked=True,
            thresholds=((None, OK), (1, WARN), (10, BAD)),
        ),
        Panel(
            "Processes started in their place",
            "In the last quarter of an hour. Restarts without end: the first error in `events.jsonl` says why.",
            "short",
            (query(increase("wmpo_worker_restarts_total", "role", window="15m"), "{{role}}"),),
            is_stacked=True,
            thresholds=((None, OK), (1, WARN), (10, BAD)),
        ),
        Panel(
            "Seconds until a successor served",
            "From the loss of a worker, over the run so far; loading libraries and models is most of it.",
            "s",
            p50_p95("wmpo_recovery_seconds", "role", window=SINCE_START),
            thresholds=((None, OK), (60, WARN), (300, BAD)),
        ),
        Panel(
            "Quarantined and late",
            "In the time that the board shows. A quarantined group crashed every worker that tried it and is kept in "
            "`quarantine/`; late answers came from replaced workers and were dropped.",
            "short",
            (
                query(increase("wmpo_quarantined_groups_total"), "quarantined"),
                query(increase("wmpo_late_answers_total"), "late"),
            ),
            kind="bargauge",
            thresholds=((None, OK), (1, WARN)),
        ),
        Panel(
            "Workers by phase",
            "Placing waits for resources, building loads libraries and models, down waits for its next start.",
            "short",
            (query(gauge("wmpo_workers", "role", "phase", operator="sum"), "{{role}} {{phase}}"),),
            16,
            is_stacked=True,
        ),
    ),
)

MEMORY = Row(
    "Memory and GPUs",
    8,
    (
        Panel(
            "Memory of a worker",
            "Resident memory of its process. What grows without end is killed by Ray at 95% of the node's memory.",
            "bytes",
            (query(gauge("wmpo_actor_memory_bytes", "worker", **ANY_WORKER), "{{worker}}"),),
        ),
        Panel(
            "GPU memory of a worker",
            f"What its process has reserved. {NO_GPU}",
            "bytes",
            (query(or_zero(gauge("wmpo_gpu_memory_bytes", "worker", **ANY_WORKER)), "{{worker}}"),),
        ),
        Panel(
            "GPU utilisation",
            f"Share of the time in which a worker's GPU was busy. {NO_GPU}",
            SHARE,
            (query(or_zero(gauge("wmpo_gpu_utilisation_ratio", "worker", **ANY_WORKER)), "{{worker}}"),),
            maximum=1,
        ),
    ),
)

ROWS = (NOW, THROUGHPUT, TIME, QUEUE, LEARNING, TASKS, WEIGHTS, FAULTS, MEMORY)
