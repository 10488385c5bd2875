"""Writes the results into docs/compress.md, between its marks, and draws docs/compress.svg.

PYTHONPATH=src python -m benchmarks.compress.report
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..marks import fill
from .networks import NETWORKS
from .picture import svg

RESULTS, DOCS = Path(__file__).with_name("results"), Path(__file__).parents[2] / "docs"
ORDER = ("vgg", "resnet", "mobilenet", "solids")
GIVEN, OURS = "as trained", "reconv"
RATIOS = (0.75, 0.5, 0.33, 0.25)
LOADED = ("Measured while others used the machine, therefore in processor time, and reconv's plans were made so, too: "
          "first figures, to be measured anew.\n\n")  # fmt: skip
NOISE = 0.05  # of a latency: by so much may a ratio be over, and so much faster must be who beats another
ENGINES = {"torch:1": "PyTorch", "onnxruntime:1": "ONNX Runtime"}


@dataclass(frozen=True)
class Point:
    """One network on one engine. ratio: of its latency to the trained network's there. loss: points of accuracy."""

    method: str
    setting: str
    ratio: float
    loss: float

    @property
    def tool(self) -> str:
        return self.method.partition(" ")[0]


def points(result: Mapping[str, Any], target: str) -> list[Point]:
    """Every row that was measured there; of reconv's those that were planned for it."""
    given = next(row for row in result["rows"] if row["method"] == GIVEN)
    whole_ms = given["latency"][target]["median_ms"]
    return [
        Point(row["method"], row["setting"], row["latency"][target]["median_ms"] / whole_ms,
              100 * (given["accuracy"] - row["accuracy"]))
        for row in result["rows"]
        if target in row.get("latency", {}) and (row["method"] != OURS or row["setting"].endswith(target))
    ]  # fmt: skip


def front(of: Iterable[Point]) -> list[Point]:
    """Those that no other is at least as good as in both ways, the fastest first."""
    kept: list[Point] = []
    for point in sorted(of, key=lambda p: (p.ratio, p.loss)):
        if not kept or point.loss < kept[-1].loss:
            kept.append(point)
    return kept


def within(of: Iterable[Point], ratio: float) -> Point | None:
    """The most accurate of those as fast as that."""
    return min((p for p in of if p.ratio <= ratio * (1 + NOISE)), key=lambda p: p.loss, default=None)


def wins(theirs: Iterable[Point], ours: Sequence[Point]) -> list[tuple[Point, Point]]:
    """(a peer's network, the one of our front that it beats in both ways), for each of ours the best that beats it."""
    found = []
    for mine in front(ours):
        if better := [p for p in theirs if p.ratio < mine.ratio * (1 - NOISE) and p.loss < mine.loss]:
            found.append((min(better, key=lambda p: (p.loss, p.ratio)), mine))
    return found


# -- the page ----------------------------------------------------------------------------------------------
def write(results: Sequence[Mapping[str, Any]], docs: Path = DOCS) -> None:
    parts = {"short": short(results), "networks": "\n".join(section(result) for result in results)}
    fill(docs / "compress.md", parts)
    panels = [(f"{result['title']}, {ENGINES[target]}", points(result, target)) for result in results
              for target in ENGINES]  # fmt: skip
    (docs / "compress.svg").write_text(svg(panels, front, OURS), encoding="utf-8")


def short(results: Sequence[Mapping[str, Any]]) -> str:
    """What was to be shown: points lost by reconv and by the best peer at each latency, and where a peer wins."""
    rows, lost, open_ones = [], [], [name for name in NETWORKS if name not in {r["network"] for r in results}]
    for result in results:
        for target, engine in ENGINES.items():
            ours, theirs = sides(points(result, target))
            open_ones += [] if any("exact" not in p.setting for p in ours) else [f"{result['network']} on {engine}"]
            cells = [f"{loss(within(ours, ratio))} / {loss(within(theirs, ratio))}" for ratio in RATIOS]
            rows.append([result["network"], engine, *cells])
            lost += [f"- {result['network']}, {engine}: {told(peer)} beats {told(mine)}.\n"
                     for peer, mine in wins(theirs, ours)]  # fmt: skip
    heads = ["network", "engine", *(f"at {ratio:g}" for ratio in RATIOS)]
    beaten = "".join(lost) or "- nowhere.\n"
    loaded = LOADED if any(result["machine"]["clock"] == "processor" for result in results) else ""
    rest = f"- Still to be compared: {', '.join(open_ones)}.\n" if open_ones else ""
    return f"{loaded}{table(heads, rows)}\nWhere a peer is both faster and more accurate:\n\n{beaten}{rest}"


def section(result: Mapping[str, Any]) -> str:
    """One network: each method's best at each latency, and all rows."""
    given, machine = result["rows"][0], result["machine"]
    out = [f"## {result['title'][0].upper()}{result['title'][1:]}\n\n"
           f"{100 * given['accuracy']:.2f} % of {result['tested']:,} test samples, {given['macs'] / 1e6:.0f} MMACs, "
           f"{given['params'] / 1e6:.2f} M parameters; {result['calibration']:,} samples to calibrate and recover on, "
           f"{result['epochs']} epochs. {machine['cpu']}, torch {machine['torch']}, 1 thread, "
           f"{machine['clock']} time.\n"]  # fmt: skip
    for target, engine in ENGINES.items():
        all_points = points(result, target)
        methods = dict.fromkeys(p.method for p in all_points if p.method != GIVEN)
        rows = [[name, *(loss(within([p for p in all_points if p.method == name], ratio)) for ratio in RATIOS)]
                for name in sorted(methods, key=lambda name: (name != OURS, name))]  # fmt: skip
        out.append(f"\nPoints lost at most at a latency, {engine}:\n\n"
                   + table(["method", *(f"at {ratio:g}" for ratio in RATIOS)], rows))  # fmt: skip
    refused = {f"- {row['method']}: {row['refused']}.\n": None for row in result["rows"] if "refused" in row}
    said = f"\nRefused:\n\n{''.join(refused)}" if refused else ""
    return "".join(out) + said + f"\n<details><summary>All networks</summary>\n\n{everything(result)}\n</details>\n"


def everything(result: Mapping[str, Any]) -> str:
    rows = []
    for row in result["rows"]:
        if "latency" in row:
            before = row.get("accuracy_before_recovery")
            rows.append([row["method"], row["setting"], "" if before is None else f"{100 * before:.2f}",
                         f"{100 * row['accuracy']:.2f}", f"{row['macs'] / 1e6:.1f}", f"{row['params'] / 1e3:,.0f}",
                         *(f"{row['latency'][t]['median_ms']:.2f} ± {row['latency'][t]['spread_ms'] / 2:.2f}"
                           for t in ENGINES)])  # fmt: skip
    return table(["method", "setting", "accuracy before recovery, %", "accuracy, %", "MMACs", "k parameters",
                  *(f"{engine}, ms" for engine in ENGINES.values())], rows)  # fmt: skip


def sides(of: Iterable[Point]) -> tuple[list[Point], list[Point]]:
    """(reconv's, the peers')."""
    of = list(of)
    peers = [p for p in of if p.setting and p.method != OURS]  # what has no setting is the trained network
    return [p for p in of if p.method == OURS], peers


def loss(point: Point | None) -> str:
    return "–" if point is None else f"{max(point.loss, 0) if abs(point.loss) < 0.005 else point.loss:.2f}"


def told(point: Point) -> str:
    return f"{point.method} ({point.setting}; latency {point.ratio:.2f}, {point.loss:.2f} points lost)"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in (heads, ["---"] * len(heads), *rows))


def main() -> None:
    files = [RESULTS / f"{name}.json" for name in ORDER]
    write([json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()])


if __name__ == "__main__":
    main()
