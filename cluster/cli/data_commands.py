"""Commands for trajectory files: what is in them, whether they are whole, and their exchange with other formats."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from cluster.cli.options import user_path
from wmpo_ray.core.console import make_console
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import atomic_write
from wmpo_ray.core.wording import counted

if TYPE_CHECKING:
    from wmpo_ray.data.about import Provenance
    from wmpo_ray.data.exchange.rerun_export import Shown
    from wmpo_ray.data.file_facts import FileFacts
    from wmpo_ray.report.run_data import VideoPairs

SHOWN_INSTRUCTIONS = 8
Files = Annotated[
    list[Path],
    typer.Argument(metavar="FILE...", parser=user_path, help="Trajectory files (Parquet), or folders of them."),
]
Beside = Annotated[
    Path | None,
    typer.Option(metavar="FILE", parser=user_path, help="Other episodes beside these, row by row; layout rerun."),
]
OneFile = Annotated[
    Path, typer.Argument(metavar="FILE", parser=user_path, help="A trajectory file (Parquet), or a folder of them.")
]


def add_data(app: typer.Typer) -> None:
    data = typer.Typer(no_args_is_help=True, help="Look at trajectory files, check them, import and export them.")
    for command in (info, show, check):
        data.command()(command)
    data.command(name="import")(import_file)
    data.command(name="export")(export_file)
    app.add_typer(data, name="data")


def info(files: Files) -> None:
    """Show what trajectory files hold: episodes, sizes, success, instructions, origin, statistics of the actions."""
    from wmpo_ray.data.file_facts import facts_of

    console = make_console()
    for path in files:
        facts = facts_of(path)
        table = Table("", "value")
        for name, text in _rows(facts).items():
            table.add_row(name, text)
        console.print(str(path), soft_wrap=True)
        console.print(table)
        how = "stored in the file" if facts.statistics_stored else "computed now: the file stores none"
        if facts.statistics.num_actions:
            console.print(_statistics_table(facts, f"{counted(facts.statistics.num_actions, 'action')}, {how}"))


def _rows(facts: FileFacts) -> dict[str, str]:
    shortest, longest = facts.lengths
    height, width = facts.frame_size
    rows = {
        "episodes": f"{facts.num_episodes:,}" + (f" in {facts.num_files:,} files" if facts.num_files > 1 else ""),
        "steps": f"{facts.num_steps:,}, {shortest} to {longest} in an episode; room for {facts.horizon}",
        "frames": f"{height} x {width} pixels (height x width), RGB",
        "action dimensions": str(facts.action_dims),
        "success": "-" if facts.success_share is None else f"{facts.success_share:.1%}",
        "instructions": _list_of(facts.instructions),
    }
    if facts.failures:
        rows["failure modes"] = _list_of(facts.failures)
    if facts.num_unknown_starts:
        rows["start states"] = f"{facts.num_unknown_starts:,} of them unknown: no environment can rebuild these scenes"
    rows["schema version"] = str(facts.format)
    return rows | _provenance_rows(facts.provenance)


def _provenance_rows(provenance: Provenance | None) -> dict[str, str]:
    if provenance is None:
        return {"provenance": "not stored"}
    rows = {"origin": provenance.origin, "made by": provenance.made_by, "policy (SHA-256)": provenance.policy_sha256}
    rows["policy version"] = "" if provenance.policy_version is None else str(provenance.policy_version)
    rows["environment"] = ", ".join(f"{key} = {value!r}" for key, value in provenance.environment.items())
    rows["versions"] = ", ".join(f"{name} {version}" for name, version in provenance.versions.items())
    rows["notes"] = "\n".join(provenance.notes)
    return {name: text for name, text in rows.items() if text}


def _list_of(counts: dict[str, int]) -> str:
    lines = [f"{name}: {number:,}" for name, number in list(counts.items())[:SHOWN_INSTRUCTIONS]]
    more = len(counts) - SHOWN_INSTRUCTIONS
    return "\n".join(lines + ([f"and {more:,} more"] if more > 0 else []))


def _statistics_table(facts: FileFacts, title: str) -> Table:
    names = ("mean", "std", "q01", "q99", "min", "max")
    table = Table("dimension", *names, title=title)
    for dimension in range(facts.action_dims):
        values = (getattr(facts.statistics, name)[dimension] for name in names)
        table.add_row(str(dimension), *(f"{value:.4g}" for value in values))
    return table


def show(
    file: OneFile,
    out: Annotated[Path, typer.Option(metavar="PICTURE", parser=user_path, help="The picture to write.")],
    video: Annotated[bool, typer.Option("--video", help="An animated WebP instead of a PNG.")] = False,
    num_episodes: Annotated[int, typer.Option("--episodes", min=1, max=60, help="Spread evenly over the file.")] = 6,
    num_frames: Annotated[int, typer.Option("--frames", min=2, max=60, help="Of each episode, without --video.")] = 8,
) -> None:
    """Write a picture of some episodes: a row of frames for each, or all of them playing side by side."""
    suffix = ".webp" if video else ".png"
    if out.suffix.lower() != suffix:
        raise UserError(f"--out {out}: the picture is a {suffix} file; name it so, or {_other_way(video)}")
    _check_out(file, out)
    from wmpo_ray.data.data_set import load_data
    from wmpo_ray.watch.contact_sheet import chosen_rows, contact_sheet, playing_sheet

    episodes = load_data(file)
    if not len(episodes):
        raise UserError(f"{file} holds no episodes")
    rows = chosen_rows(len(episodes), num_episodes)
    atomic_write(out, playing_sheet(episodes, rows) if video else contact_sheet(episodes, rows, num_frames))
    make_console().print(f"{counted(len(rows), 'episode')} of {file} in {out}", soft_wrap=True)


def _other_way(video: bool) -> str:
    return "leave out --video for a .png" if video else "add --video for a .webp"


def check(files: Files) -> None:
    """Read trajectory files as a whole and name what is wrong with them, by file and row; exit code 1 if anything is."""
    from wmpo_ray.data.file_facts import problems_of

    console, num_wrong = make_console(), 0
    for path in files:
        problems = problems_of(path)
        num_wrong += bool(problems)
        for line in problems or [f"{path}: ok"]:
            console.print(line, soft_wrap=True, markup=False, highlight=False)
    if num_wrong:
        raise typer.Exit(1)


def import_file(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            parser=user_path,
            help="HDF5 of robomimic or MimicGen, a tar file of WMPO's rollouts, or LeRobot's folder.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE", parser=user_path, help="The trajectory file to write (Parquet).")
    ],
    append: Annotated[
        bool, typer.Option("--append", help="Add a file to the folder --out instead; several may do so at once.")
    ] = False,
    image_key: Annotated[
        str, typer.Option(metavar="NAME", help="The camera, where a file has several; the only or usual one if absent.")
    ] = "",
    instruction: Annotated[
        str, typer.Option(metavar="TEXT", help="Of every episode; as the file has it if absent.")
    ] = "",
) -> None:
    """Write the episodes of another format as a trajectory file; nothing is written unless all of them are sound."""
    if append and out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; --append adds a file to a folder: name one, or leave --append out")
    if not append:
        _check_out(file, out)
    from wmpo_ray.data.exchange.importing import ImportOptions, import_episodes

    done = import_episodes(file, out, ImportOptions(instruction, image_key), append=append)
    lines = [f"{counted(done.num_episodes, 'episode')}, {done.num_successes:,} of them successful, written to {out}"]
    make_console().print("\n".join([*lines, *done.notes]), soft_wrap=True, markup=False, highlight=False)


def export_file(
    file: OneFile,
    out: Annotated[
        Path,
        typer.Option(
            metavar="PATH", parser=user_path, help="The HDF5 file, LeRobot's folder, or the .rrd file to write."
        ),
    ],
    layout: Annotated[
        str, typer.Option(help="robomimic (HDF5), lerobot (a folder, version 3, with images), or rerun (.rrd).")
    ] = "robomimic",
    image_key: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the camera; the layout's usual one if absent.")
    ] = "",
    fps: Annotated[int, typer.Option(min=1, max=1000, help="Actions a second; layout lerobot has times.")] = 10,
    beside: Beside = None,
) -> None:
    """Write a trajectory file in the layout of robomimic and MimicGen, of LeRobot, or as a recording of Rerun.

    For rerun, FILE may be a run: its real episodes are shown beside their replays in the world model.
    """
    _check_out(file, out)
    if beside is not None and layout != "rerun":
        raise UserError(f"--beside {beside}: only --layout rerun shows episodes side by side; leave it out")
    if layout == "robomimic":
        from wmpo_ray.data.exchange import robomimic_export

        num_episodes, missing = robomimic_export.export_robomimic(file, out, image_key), robomimic_export.NOT_EXPORTED
    elif layout == "lerobot":
        from wmpo_ray.data.exchange import lerobot_export

        num_episodes, missing = lerobot_export.export_lerobot(file, out, image_key, fps), lerobot_export.NOT_EXPORTED
    elif layout == "rerun":
        num_episodes, missing = _export_rerun(file, out, beside)
    else:
        raise UserError(f"--layout {layout}: known are robomimic, lerobot and rerun")
    lines = [f"{counted(num_episodes, 'episode')} written to {out}", f"not in it: {missing}"]
    make_console().print("\n".join(lines), soft_wrap=True, markup=False, highlight=False)


def _export_rerun(file: Path, out: Path, beside: Path | None) -> tuple[int, str]:
    """(number of episodes, what is left out) of a file or of the replays of a run."""
    from wmpo_ray.data.exchange.rerun_export import NOT_EXPORTED, export_rerun, rerun_library, write_recording

    if not (file / "videos").is_dir():
        return export_rerun(file, out, beside), NOT_EXPORTED
    if beside is not None:
        raise UserError(f"--beside {beside}: {file} is a run, whose replays stand beside its episodes; leave it out")
    rerun_library()
    from wmpo_ray.report.run_data import read_run

    run = read_run(file)
    if run.pairs is None:
        raise UserError(f"{file} has no videos/side_by_side.npz yet: the stage gate makes it")
    return write_recording(out, run.name, pairs_shown(run.pairs)), "actions, and all episodes but those of the report"


def pairs_shown(pairs: VideoPairs) -> Iterator[Shown]:
    """Each real episode beside the replay of its actions, which goes on to the horizon."""
    from wmpo_ray.data.exchange.rerun_export import Shown, Side

    for row, text in enumerate(pairs.instructions):
        real = Side("real", pairs.real[row, : pairs.lengths[row] + 1], bool(pairs.real_success[row]))
        imagined = Side("imagined", pairs.imagined[row], bool(pairs.imagined_success[row]))
        yield Shown(f"episode_{row:04d}", text, (real, imagined))


def _check_out(file: Path, out: Path) -> None:
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}; create it first")
    if out.exists() and (out.is_dir() or (file.exists() and out.samefile(file))):
        raise UserError(f"--out {out} is {'a folder' if out.is_dir() else 'the file to read'}; name another file")
