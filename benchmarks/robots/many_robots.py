"""64 robots in one process, that ask again as soon as they are answered.

python -m benchmarks.robots.many_robots HOST:PORT NUM SECONDS SIDE     prints what they were answered, as JSON
"""

from __future__ import annotations

import json
import sys
import threading
import time

import numpy as np

from wmpo_client.served_policy import Seen, ServedPolicy
from wmpo_client.server_connection import Address, Connection

WARM_S = 3.0


def main(target: str, num: int, seconds: float, side: int) -> None:
    counts, before, began, ended = [0] * num, [0] * num, threading.Event(), threading.Event()

    def act(index: int) -> None:
        policy = ServedPolicy(Connection(Address(target)), f"robot {index}")
        seen = Seen({"main": np.full((side, side, 3), index, np.uint8)}, policy.facts.instructions[0])
        while not ended.is_set():
            policy.act(seen)
            (counts if began.is_set() else before)[index] += 1

    threads = [threading.Thread(target=act, args=(index,)) for index in range(num)]
    for thread in threads:
        thread.start()
    time.sleep(WARM_S)
    began.set()
    start = time.perf_counter()
    time.sleep(seconds)
    answers, took = sum(counts), time.perf_counter() - start
    ended.set()
    for thread in threads:
        thread.join()
    everything = sum(counts) + sum(before)
    print(json.dumps({"answers": answers, "seconds": took, "fewest": min(counts), "all": everything}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
