"""kill -9 at any moment of whatever writes; then what stands is read, and the job is finished.

    python trust/kills.py [--kills 200] [--seed 0] [--jobs NAME ...]

Each job runs in a process that is ended by SIGKILL: half of the times after a part of its duration, drawn evenly; the
other half where it is about to touch the disk (open to write, half of a file written, synchronise, rename, remove,
make a folder), at a touch that is drawn evenly too. After each kill: plan, run folder and caches read as before the job
or as after it, never as half of it; then the job is run again, with resume where it has that, and must give what it
gives when nobody kills it, bit for bit. `--kills` of all jobs together; rows of other jobs stay.
All of it follows from the seed but the moments
by the clock, which depend on the machine. Writes trust/results/kills.json: a row a job and kind of moment.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
import jobs as j
from forked import call, killed, touches
from told import held, keep

WEIGHTS = {"recover": 5, "rewrite": 4, "rewrite over a run": 4, "save": 4, "plan": 3, "cache": 4, "export": 1}


def made() -> dict[str, Callable[[], j.Job]]:
    """Each job, once what it may leave is known."""
    return {
        "recover": lambda: j.Job("a recovery with checkpoints", j.nothing, lambda f: j.recovered(f, False),
                                 j.checkpoint_reads, lambda f: j.tidy(f, j.recovered(f, True))),
        "rewrite": lambda: j.Job("the whole job: plan, stages, run folder", j.nothing, lambda f: j.rewritten(f, False),
                                 j.empty_or_whole, j.gone_on),
        "rewrite over a run": over_a_run,
        "save": over_a_save,
        "plan": over_a_plan,
        "cache": lambda: j.Job("latencies and rows into the caches", j.nothing, j.noted, j.all_kept, j.noted),
        "export": lambda: j.Job("an export over an older file", j.older, j.exported, j.file_stands, j.exported),
    }  # fmt: skip


def over_a_run() -> j.Job:
    def run(folder: Path) -> object:
        return j.rewritten(folder, False)

    known = {in_folder(j.finished, j.of_run), in_folder(j.finished, run, j.of_run)}
    return j.Job("the whole job, into the folder of an older run", j.finished, run, j.old_or_new(known), j.gone_on)


def over_a_save() -> j.Job:
    old, new = j.saved("bottleneck", 1), j.saved("separable", 2)
    return j.Job("saving a run over another one", old, new, j.old_or_new({in_folder(old), in_folder(new)}), new)


def over_a_plan() -> j.Job:
    old, new = j.planned("macs=0.8"), j.planned("macs=0.5")
    return j.Job("a plan over another one, and its caches", old, new,
                 j.plan_stands({in_folder(old), in_folder(new)}), new)  # fmt: skip


def in_folder(*steps: Callable[[Path], Any]) -> Any:
    """What the last step gives, each in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        return [there(Path(name), step) for step in steps][-1]


def there(folder: Path, step: Callable[[Path], Any]) -> Any:
    def in_it() -> Any:
        os.environ["RECONV_CACHE"] = str(folder / "cache")
        return step(folder)

    return call(in_it)


def span(job: j.Job) -> tuple[float, int]:
    """How long it runs, and how often it touches the disk."""

    def counted(folder: Path) -> int:
        seen = [0]
        touches(lambda count: seen.__setitem__(0, count))
        job.run(folder)
        return seen[0]

    def timed(folder: Path) -> float:
        begun = time.perf_counter()
        job.run(folder)
        return time.perf_counter() - begun

    return max(in_folder(job.before, timed) for _ in range(3)), in_folder(job.before, counted)


def one(job: j.Job, moment: dict[str, Any], wanted: str, old: Path) -> tuple[bool, str | None]:
    """Whether it was killed, and what went wrong then."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "here"
        shutil.copytree(old, folder)

        def in_it() -> None:
            os.environ["RECONV_CACHE"] = str(folder / "cache")
            job.run(folder)

        try:
            dead = killed(in_it, **moment)
            if wrong := there(folder, job.look):
                return dead, wrong
            came = there(folder, job.again)
            return dead, None if came == wanted else f"finished, it gives {came[:200]}, not {wanted[:200]}"
        except (RuntimeError, OSError) as error:
            return True, str(error)


def kill(name: str, job: j.Job, count: int, draw: random.Random) -> list[dict[str, Any]]:
    seconds, touched = span(job)
    wanted = in_folder(job.before, job.again)
    rows = []
    with tempfile.TemporaryDirectory() as kept:
        old = Path(kept) / "old"
        old.mkdir()
        there(old, job.before)
        for kind, many in (("at a random moment", count - count // 2), ("before a touch of the disk", count // 2)):
            dead, wrong, drawn = 0, [], 0
            while dead < many and drawn < 3 * many:
                drawn += 1
                by_time = kind == "at a random moment"
                moment = {"after": draw.uniform(0, seconds)} if by_time else {"at": draw.randint(1, touched)}
                was_killed, why = one(job, moment, wanted, old)
                dead += was_killed
                if why:
                    wrong.append(f"{moment}: {why}")
                    print(f"{name}, {wrong[-1]}", file=sys.stderr, flush=True)
            rows.append({"what": f"{job.what}, killed {kind}", "tried": dead, "failures": len(wrong),
                         "seconds": round(seconds, 2), "touches": touched, "found": wrong[:5]})  # fmt: skip
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="another file for the rows")
    parser.add_argument("--jobs", nargs="+", choices=WEIGHTS, default=list(WEIGHTS), metavar="NAME")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    j.preload()
    total, rows = sum(WEIGHTS[name] for name in asked.jobs), []
    for name in asked.jobs:
        count = -(-asked.kills * WEIGHTS[name] // total)
        rows += kill(name, made()[name](), count, random.Random(f"{asked.seed} {name}"))
        if not asked.out:
            fresh = {row["what"] for row in rows}
            others = [row for row in held("kills").get("rows", []) if row["what"] not in fresh]
            keep("kills", [*others, *rows], seed=asked.seed, kills=sum(row["tried"] for row in (*others, *rows)))
    if asked.out:
        asked.out.write_text(json.dumps({"rows": rows}))
    if any(row["failures"] for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
