"""python -m wmpo_client drive: a simulated robot that acts with a served policy, and sends what it did.

`upload` sends what is in a spool; `lerobot` stands between LeRobot's robot client and a policy server of ours.
"""

from __future__ import annotations

import argparse
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from wmpo_client import __version__
from wmpo_client.broker import MODES
from wmpo_client.drive import DriveOptions, drive
from wmpo_client.episode_recorder import PURPOSES, EpisodeRecorder
from wmpo_client.episode_spool import Spool, Uploader
from wmpo_client.operator_keys import HELP, terminal_keys
from wmpo_client.refusals import ClientError
from wmpo_client.scenes import Scenes
from wmpo_client.served_policy import ServedPolicy
from wmpo_client.server_connection import Address, Connection
from wmpo_client.simulated_robot import SimulatedRobot, free_limits

VERDICT_S = 30.0  # after an episode's last step, for a person's key


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0, or 2 for what a person can mend, in one line."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except ClientError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what was not sent is in the spool", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="wmpo-client", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    one = commands.add_parser("drive", help="act in a served simulator, record, and send the episodes")
    _add_policy(one)
    one.add_argument("--simulator", required=True, metavar="HOST:PORT", help="the robot: `wmpo simulator`")
    one.add_argument("--episodes", type=int, default=8, help="how many")
    one.add_argument("--first-seed", type=int, default=0, help="of the first episode's scene")
    one.add_argument("--purpose", choices=PURPOSES, default="collect", help="what they are recorded for")
    one.add_argument("--mode", choices=MODES, default="wait", help="what is done while a chunk is on its way")
    one.add_argument("--rate", type=float, default=0.0, help="steps a second; 0: as fast as it goes")
    one.add_argument("--no-verdict", action="store_true", help="leave the outcome to `wmpo label`")
    one.add_argument("--keys", action="store_true", help=f"take it from this keyboard: {HELP}")
    one.set_defaults(run=_drive)
    two = commands.add_parser("upload", help="send what is in a spool, and end")
    _add_policy(two)
    two.add_argument("--patience", type=float, default=600.0, help="seconds")
    two.set_defaults(run=_upload)
    _add_lerobot(commands)
    return parser


def _add_lerobot(commands: Any) -> None:
    parser = commands.add_parser("lerobot", help="answer LeRobot's robot client on this machine; stop with Ctrl-C")
    _add_server(parser)
    parser.add_argument(
        "--listen", default="127.0.0.1:8080", metavar="HOST:PORT", help="for LeRobot's --server_address"
    )
    parser.add_argument("--camera", default="", help="the main one; the first if absent")
    parser.add_argument("--fps", type=float, default=30.0, help="of the robot's actions, as LeRobot's --fps")
    parser.add_argument(
        "--low", type=float, nargs="+", help="the robot's values at -1 of the policy, for each dimension"
    )
    parser.add_argument("--high", type=float, nargs="+", help="and at 1")
    parser.set_defaults(run=_bridge)


def _add_policy(parser: argparse.ArgumentParser) -> None:
    _add_server(parser)
    parser.add_argument("--spool", type=Path, required=True, metavar="DIR", help="episodes until the server has them")


def _add_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--policy", required=True, metavar="HOST:PORT", help="the server: `wmpo serve`")
    parser.add_argument("--ca", type=Path, help="authority of the server's certificate; without: loopback alone")
    parser.add_argument("--certificate", type=Path, help="of this robot, where the server asks for one")
    parser.add_argument("--key", type=Path, help="of that certificate")
    parser.add_argument("--robot", default="robot", help="its name")


def _connection(options: argparse.Namespace, target: str) -> Connection:
    return Connection(Address(target, options.ca, options.certificate, options.key))


def _drive(options: argparse.Namespace) -> int:
    spool, connection = Spool(options.spool), _connection(options, options.policy)
    uploader = Uploader(spool, connection)
    uploader.start()
    policy = ServedPolicy(connection, options.robot)
    knows = not (options.no_verdict or options.keys)
    robot = SimulatedRobot(Scenes(_connection(options, options.simulator)), knows)
    recorder = EpisodeRecorder(spool, options.robot)
    wanted = DriveOptions(
        robot.horizon, options.rate, options.mode, purpose=options.purpose, verdict_s=VERDICT_S if options.keys else 0.0
    )
    limits = free_limits(robot.action_dims)
    outcomes: list[bool | None] = []
    with ExitStack() as stack:
        keys = stack.enter_context(terminal_keys()) if options.keys else None
        for number in range(options.episodes):
            seed = options.first_seed + number
            robot.reset(seed)
            policy.begin_episode(seed)
            made = drive(robot, policy.act, limits, wanted, recorder, keys=keys)
            outcomes.append(made.success)
            shown = {None: "no verdict", True: "success", False: "failure"}[made.success]
            print(
                f"episode {made.id}: {shown} after {made.num_steps} steps, policy {sorted(made.versions)}", flush=True
            )
    return _sent(uploader, spool, 600.0, f"{sum(1 for each in outcomes if each)} of {len(outcomes)} succeeded; ")


def _upload(options: argparse.Namespace) -> int:
    spool = Spool(options.spool)
    uploader = Uploader(spool, _connection(options, options.policy))
    uploader.start()
    return _sent(uploader, spool, options.patience, "")


def _bridge(options: argparse.Namespace) -> int:
    from wmpo_client.lerobot_bridge import BridgeOptions, LeRobotBridge, lerobot_helpers, start_bridge

    helpers = lerobot_helpers()
    policy = ServedPolicy(_connection(options, options.policy), options.robot)
    dims = policy.facts.action_dims
    for knob, values in (("--low", options.low), ("--high", options.high)):
        if (values is None) != (options.low is None) or values is not None and len(values) != dims:
            raise ClientError(f"{knob}: {len(values or ())} numbers; both, with {dims} each, or neither")
    if not options.fps > 0:
        raise ClientError(f"--fps {options.fps:g}: it must be above 0")
    wanted = BridgeOptions(options.camera, options.fps, options.low, options.high)
    server, port = start_bridge(LeRobotBridge(policy, wanted, helpers), options.listen)
    print(f"LeRobot's client is answered on {options.listen.rpartition(':')[0]}:{port}", flush=True)
    try:
        threading.Event().wait()
    finally:
        server.stop(1.0).wait()
    return 0


def _sent(uploader: Uploader, spool: Spool, seconds: float, before: str) -> int:
    is_sent = uploader.wait(seconds)
    uploader.stop()
    print(f"{before}{uploader.num_sent} episodes sent, {len(spool.waiting())} wait, {uploader.num_refused} refused")
    return 0 if is_sent and not uploader.num_refused else 2


if __name__ == "__main__":
    sys.exit(main())
