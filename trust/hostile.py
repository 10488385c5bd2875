"""Damaged and forged files of every kind that reconv reads, and hostile bytes to the explorer.

    python trust/hostile.py [--cases 2000] [--kinds pt,npz] [--seed 0]

A sound file of each kind is spoilt at random: bits turned, numbers made extreme, parts cut out, doubled, swapped, words
put in. Whatever becomes of it must be read, or refused by a ConvError. A failure is another error, a crash of the
process, a read that runs a program, unpickles, connects, or writes anywhere; or one that takes 1 GiB more than before.
Each kind is read in a process of its own, which goes on behind what made it crash. Writes
trust/results/hostile.json, in which other kinds keep their rows.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from told import held, keep
from torch import nn

from reconv.errors import ConvError

HERE = Path(__file__).resolve()
CACHE = os.path.join(tempfile.gettempdir(), "hostile")
CASES, MOST = 2000, 2**30
EXTREME = (0, 1, 0x7F, 0x80, 0xFF, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove", "os.rename", "os.symlink", "os.chmod",
             "subprocess.Popen", "socket.connect", "socket.bind", "pickle.find_class", "shutil.rmtree")  # fmt: skip
INPUT = torch.zeros(1, 3, 8, 8)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()


# -- sound files, and what reads them -----------------------------------------------------------------------------
def weights_pt(folder: Path) -> Path:
    torch.save({"state_dict": network().state_dict(), "epoch": 3}, folder / "w.pt")
    return folder / "w.pt"


def legacy_pt(folder: Path) -> Path:
    torch.save(network().state_dict(), folder / "w.pt", _use_new_zipfile_serialization=False)
    return folder / "w.pt"


def weights_safetensors(folder: Path) -> Path:
    from reconv.rewriting.weights import save_weights

    save_weights(network(), folder / "w.safetensors")
    return folder / "w.safetensors"


def exported(suffix: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        import reconv

        reconv.export(network(), INPUT, folder / f"n{suffix}")
        return folder / f"n{suffix}"

    return write


def arrays(folder: Path) -> Path:
    np.savez_compressed(folder / "d.npz", x=np.arange(3 * 2 * 4).reshape(3, 2, 4).astype(np.float32), y=np.arange(3))
    return folder / "d.npz"


def image(folder: Path) -> Path:
    from PIL import Image

    (folder / "images").mkdir()
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8)).save(folder / "images" / "a.png")
    return folder / "images" / "a.png"


def run_file(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        import reconv
        from reconv.costing.summary import summary
        from reconv.rewriting.store import save_run

        made = reconv.plan(network(), INPUT, rules="exact", target="torch:1")
        student = reconv.apply(network(), made, INPUT)
        save_run(folder / "run", model=student, plan=made, before=summary(network(), INPUT),
                 after=summary(student, INPUT), error=0.5, config={"settings": {"input": ["1x3x8x8"]}})  # fmt: skip
        return folder / "run" / name

    return write


def checkpoint(folder: Path) -> Path:
    from reconv.rewriting.checkpoint import write_checkpoint

    state = {"settings": {"epochs": 3}, "student": network().state_dict(), "best": [0.5, 0.25], "optimizer": {"a": [1]}}
    write_checkpoint(folder, state)
    return folder / "recovery.pt"


def settings(folder: Path) -> Path:
    (folder / "c.yaml").write_text("budget: {latency: 0.5, error: 0.1}\nrules: [exact, smaller]\nseed: 3\n")
    return folder / "c.yaml"


def read_weights(path: Path) -> None:
    from reconv.models import load_weights

    load_weights(network(), path)


def read_model(path: Path) -> None:
    from nets import let_torchvision_import

    from reconv.models import resolve

    let_torchvision_import()
    resolve(str(path))


def read_data(path: Path) -> None:
    from reconv.commands.data import load_data

    load_data(str(path))


def read_image(path: Path) -> None:
    from reconv.commands.data import load_data

    load_data(str(path.parent), (1, 1, 6, 8))[0]


def read_folder(path: Path) -> None:
    from reconv.reporting.page import page
    from reconv.rewriting.store import load, read_run

    run = read_run(path.parent)
    page(run.before, run.after, run.plan, run.config, run.error)
    load(path.parent, network())


def read_state(path: Path) -> None:
    from reconv.rewriting.checkpoint import read_checkpoint

    read_checkpoint(path.parent, {"epochs": 3})


def read_settings(path: Path) -> None:
    from reconv.commands.options import _read_yaml

    _read_yaml(path, ["budget", "rules", "seed", "input"])


Kind = tuple[
    str, Callable[[Path], Path], Callable[[Path], None], float
]  # the last: of the cases, what takes longer less
KINDS: dict[str, Kind] = {
    "pt": ("checkpoints (.pt)", weights_pt, read_weights, 1),
    "legacy": ("checkpoints of torch's older format", legacy_pt, read_weights, 1),
    "safetensors": ("safetensors", weights_safetensors, read_weights, 1),
    "pt2": ("networks of torch.export (.pt2)", exported(".pt2"), read_model, 1),
    "onnx": ("networks of ONNX (.onnx)", exported(".onnx"), read_model, 0.25),
    "npz": ("arrays (.npz)", arrays, read_data, 1),
    "png": ("images", image, read_image, 1),
    "plan": ("plans of run folders", run_file("plan.json"), read_folder, 0.5),
    "config": ("settings of run folders", run_file("config.json"), read_folder, 0.5),
    "summary": ("summaries of run folders", run_file("summary.json"), read_folder, 0.5),
    "weights": ("weights of run folders", run_file("model.safetensors"), read_folder, 0.5),
    "recovery": ("checkpoints of a recovery", checkpoint, read_state, 1),
    "yaml": ("settings files (--config)", settings, read_settings, 1),
}


# -- how they are spoilt --------------------------------------------------------------------------------------------
def spoilt(sound: bytes, chance: random.Random) -> bytes:
    """One to four changes."""
    data = bytearray(sound)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data) + 1)
        length = chance.choice((1, 2, 4, 8, 32, 256))
        match chance.randrange(9):
            case 0 if data:  # a bit
                data[at % len(data)] ^= 1 << chance.randrange(8)
            case 1:  # an extreme number
                size = chance.choice((1, 2, 4, 8))
                value = chance.choice(EXTREME) % (1 << 8 * size)
                data[at : at + size] = value.to_bytes(size, chance.choice(("little", "big")))
            case 2:  # cut off
                del data[at:]
            case 3:  # cut out
                del data[at : at + length]
            case 4:  # doubled
                data[at:at] = data[at : at + length] * chance.choice((1, 2, 50))
            case 5:  # a part of elsewhere
                other = chance.randrange(len(sound))
                data[at : at + length] = sound[other : other + length]
            case 6:  # what means something in JSON, YAML or a pickle
                data[at:at] = chance.choice(WORDS)
            case 7:  # a number as text
                told = chance.choice(
                    (b"0", b"-1", b"1e999", b"NaN", b"99999999999999999999", b"null", b"[]", b"{}", b'""')
                )
                digits = [i for i, one in enumerate(data) if 48 <= one <= 57]
                if digits:
                    spot = chance.choice(digits)
                    data[spot : spot + 1] = told
            case _:
                data[at:at] = bytes(chance.randrange(256) for _ in range(length))
    return bytes(data)


WORDS = (
    b'"', b"{", b"}", b"[" * 2000, b"]", b",", b":", b"\\u0000", b"null", b"&a", b"*a", b"!!python/object:os.system",
    b"../", b"/etc/passwd\0", b"cposix\nsystem\n", b"\x80\x02", b"R", b".", b"PK\x01\x02", b"ic999999999oc9",
    b'"format": 2,', b"<script>", b"\x1b[2J", b"ic3oc4k3x3 -> " * 30,
)  # fmt: skip


# -- one kind, in a process of its own ------------------------------------------------------------------------------
def work(kind: str, first: int, last: int, seed: int, told: Path) -> None:
    """Reads the cases one after the other; the file says which is at hand, and what failed."""
    warnings.simplefilter("ignore")
    _, write, read, _ = KINDS[kind]
    resource.setrlimit(resource.RLIMIT_AS, (2**35, 2**35))
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder))
        sound = path.read_bytes()
        read(path)
        state, total = {"reading": False, "seen": ""}, 0
        sys.addaudithook(lambda event, args: watch(event, args, state))
        for number in range(first, last):
            chance = random.Random(f"{kind} {seed} {number}")
            path.write_bytes(spoilt(sound, chance))
            told.write_text(f"{number}\n")
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            state["seen"], state["reading"] = "", True
            found = one(read, path)
            total += found is None
            state["reading"] = False
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
            failed = found or state["seen"] or (f"took {grown >> 20} MiB" if grown > MOST else "")
            if failed:
                print(json.dumps({"case": number, "failed": failed}), flush=True)
        print(f"refused {total}")


def watch(event: str, args: tuple[object, ...], state: dict[str, object]) -> None:
    if not state["reading"] or state["seen"]:
        return
    if event in FORBIDDEN:
        state["seen"] = f"{event} {args!r}"[:200]
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        state["seen"] = f"{event} {args!r}"[:200]


def one(read: Callable[[Path], None], path: Path) -> str | None:
    """What failed; empty where it was read, None where it was refused."""
    try:
        read(path)
    except ConvError:
        return None
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "/reconv/" in f.filename]
        where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
        return f"{type(error).__name__}: {error}"[:200] + where
    return ""


def tried(kind: str, count: int, seed: int) -> dict[str, object]:
    """All cases of a kind; where the process crashes, another goes on behind."""
    failures, refused, begin = [], 0, 0
    while begin < count:
        with tempfile.TemporaryDirectory() as folder:
            told = Path(folder) / "at"
            command = [sys.executable, str(HERE), "--work", kind, str(begin), str(count), str(seed), str(told)]
            done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment())
            failures += [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
            refused += sum(int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("refused "))
            if done.returncode == 0:
                break
            if not told.is_file():
                sys.exit(f"{kind}: the sound file cannot be read:\n{done.stderr[-2000:]}")
            at = int(told.read_text())
            failures.append({"case": at, "failed": f"the process ended with {done.returncode}: {done.stderr[-300:]}"})
            begin = at + 1
    for failure in failures:
        print(kind, failure, flush=True)
    return {"what": f"spoilt {KINDS[kind][0]}: read, or refused with a reason", "tried": count,
            "failures": len(failures), "refused": refused, "kind": kind, "examples": failures[:3]}  # fmt: skip


# -- the explorer -----------------------------------------------------------------------------------------------------
REQUEST = (b"GET /panel?kind=separable&dims=2&k=3&ic=6&oc=6&numbers=1 HTTP/1.1\r\nHost: 127.0.0.1\r\n"
           b"Origin: http://127.0.0.1\r\nAccept: text/html\r\nConnection: close\r\n\r\n")  # fmt: skip


def asked(count: int, seed: int) -> dict[str, object]:
    """A server in this process, and spoilt requests to it; every hundredth, a sound one must be answered."""
    from reconv.explorer.app import app, server

    failures: list[dict[str, object]] = []
    statuses: Counter[str] = Counter()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving, port = server(app()), listening.getsockname()[1]
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # it warns of each request that is none
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        for number in range(count):
            chance = random.Random(f"request {seed} {number}")
            status = answer(port, spoilt(REQUEST, chance), 0.1)
            statuses[status] += 1
            if status.startswith("5") or (number % 100 == 0 and answer(port, REQUEST, 60) != "200"):
                failures.append({"case": number, "failed": status or "the next request was not answered"})
        serving.should_exit = True
        thread.join(30)
    return {"what": "spoilt requests to the explorer: answered, refused or hung up on, and the next one served",
            "tried": count, "failures": len(failures), "statuses": dict(sorted(statuses.items())),
            "kind": "request", "examples": failures[:3]}  # fmt: skip


def answer(port: int, raw: bytes, patience: float) -> str:
    """The status; empty where there was none in time."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as one, suppress(TimeoutError, ConnectionError):
        one.sendall(raw)
        one.settimeout(patience)
        return one.recv(64)[9:12].decode("latin-1")
    return ""


def environment() -> dict[str, str]:
    path = os.pathsep.join(
        filter(None, (str(HERE.parents[1] / "src"), str(HERE.parents[1] / "tests"), os.environ.get("PYTHONPATH")))
    )
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": path,
        "RECONV_CACHE": tempfile.gettempdir() + "/hostile",
    }


ALL = ",".join([*KINDS, "request"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--kinds", default=ALL)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", nargs=5, metavar=("KIND", "FIRST", "LAST", "SEED", "FILE"))
    given = parser.parse_args()
    if given.work:
        kind, first, last, seed, told = given.work
        work(kind, int(first), int(last), int(seed), Path(told))
        return
    rows = {row["kind"]: row for row in held("hostile").get("rows", [])}
    for kind in given.kinds.split(","):
        if kind == "request":
            rows[kind] = asked(given.cases, given.seed)
        else:
            rows[kind] = tried(kind, max(1, int(given.cases * KINDS[kind][3])), given.seed)
        print(rows[kind]["what"], rows[kind]["tried"], rows[kind]["failures"], flush=True)
        keep("hostile", [rows[each] for each in ALL.split(",") if each in rows], seed=given.seed)
    shutil.rmtree(CACHE, ignore_errors=True)


if __name__ == "__main__":
    main()
