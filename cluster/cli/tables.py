"""The tables that end a command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from wmpo_ray.config.run import Config
from wmpo_ray.report.recipe_view import left_out_sentence, recipe_name, split_label


def is_rate(value: Any) -> bool:
    return isinstance(value, Mapping) and {"value", "low", "high"} <= value.keys()


def success_text(rate: Mapping[str, float]) -> str:
    return f"{rate['value']:.1%} [{rate['low']:.1%}, {rate['high']:.1%}]"


def earlier_rounds(summary: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """Success after each round but the last, by its name."""
    found = {}
    for label, stage in summary.get("stages", {}).items():
        name, round = split_label(label)
        if name == "evaluate" and is_rate(rate := stage.get("metrics", {}).get("success")):
            found[round] = rate
    return {f"round {round}": found[round] for round in sorted(found)[:-1]}


def print_summary(console: Console, summary: Mapping[str, Any]) -> None:
    result = summary.get("result")
    if result:
        table = Table("policy", "real success [95% interval]", "start states", title="Held-out start states")
        rates = {"base": result["base_success"], **earlier_rounds(summary)}
        rates[escape(recipe_name(summary).short)] = result["final_success"]
        for label, rate in rates.items():
            table.add_row(label, success_text(rate), str(rate["num"]))
        table.add_section()
        table.add_row("gain", f"{result['gain_points']:+.1f} points", "")
        console.print(table)
        if sentence := left_out_sentence(summary):
            console.print(escape(sentence), style="yellow", highlight=False)
    stages = summary.get("stages", {})
    if stages:
        table = Table("stage", "seconds")
        table.columns[1].justify = "right"
        for name, metrics in stages.items():
            table.add_row(name, f"{metrics['seconds']:.1f}")
        table.add_section()
        table.add_row("all", f"{sum(metrics['seconds'] for metrics in stages.values()):.1f}")
        console.print(table)


def print_evaluation(console: Console, config: Config, result: Mapping[str, Any]) -> None:
    """The result of `evaluate_policy`."""
    table = Table("", "value", title=f"disruption: {config.environment.disruption}")
    table.add_row("real success [95% interval]", success_text(result["success"]))
    table.add_row("start states", str(result["success"]["num"]))
    table.add_row("temperature", f"{config.evaluation.temperature:g}")
    for name, share in result["failures"].items():
        table.add_row(f"failure: {name.replace('_', ' ')}", f"{share:.1%}")
    console.print(table)
