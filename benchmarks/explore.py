"""The explorer under load: 50 clients at once on random states, right and wrong, against a real server.

    python benchmarks/explore.py [--clients 50] [--rounds 30] [--each 10]

Prints for each round how many answers of which status came, their median and longest time, and the server's memory.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from urllib.error import HTTPError
from urllib.request import urlopen

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from states import any_query


def asked(address: str, chance: random.Random) -> tuple[int, float]:
    """The status of one answer, and its seconds."""
    path = chance.choice(["", "panel", "panel", "panel", "latency"])
    started = time.perf_counter()
    try:
        with urlopen(f"{address}{path}?{any_query(chance)}", timeout=300) as answer:
            answer.read()
            status = answer.status
    except HTTPError as error:
        status = error.code
    return status, time.perf_counter() - started


def memory(process: int) -> float:
    """MiB that the server holds."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, usual in (("clients", 50), ("rounds", 30), ("each", 10)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    given = parser.parse_args()
    command = [sys.executable, "-m", "reconv", "explore"]
    with (
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server,
        ThreadPoolExecutor(given.clients) as pool,
    ):
        assert server.stderr is not None
        address = server.stderr.readline().split()[0]
        print("| round | answers | median, s | longest, s | memory, MiB |\n|---|---|---|---|---|")
        for number in range(given.rounds):
            chances = [random.Random(1000 * number + client) for client in range(given.clients)]
            work = [chance for chance in chances for _ in range(given.each)]
            found = list(pool.map(lambda chance: asked(address, chance), work))
            counts = ", ".join(f"{status}: {n}" for status, n in sorted(Counter(s for s, _ in found).items()))
            seconds = [s for _, s in found]
            print(f"| {number + 1} | {counts} | {median(seconds):.2f} | {max(seconds):.1f} | "
                  f"{memory(server.pid):.0f} |", flush=True)  # fmt: skip
        server.terminate()


if __name__ == "__main__":
    main()
