"""What the pages of the book leave to be computed: numbers, tables and pictures. docs/hooks.py calls it at each build.

    {{ params("ic16oc32k3x3nb") }}                     a number in a sentence, by the functions of `NUMBERS`
    ![words](draw:ic4oc8k3x3p1?input=7x7&animate)      a picture, on a line of its own, by reconv.draw
    ![words](plot:speed)                               the milliseconds of all measured problems over their MACs

A fence ```shapes has lines LABEL: BLOCK @ INPUT and becomes a table of shapes, weights and multiply-accumulates; a
fence ```measured has lines LABEL: PROBLEM and becomes one of the milliseconds in benchmarks/results.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from math import log10
from pathlib import Path
from typing import Any

import reconv
from reconv import spec
from reconv.drawing.plot import Panel, Series, plot

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "avx512.json"
COMMAND = '`reconv bench "{}" --engines torch,reconv,onnxruntime,openvino`'
ENGINES = {"torch": "PyTorch", "reconv": "reconv", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
NUMBER, PLOT = re.compile(r"\{\{ (.+?) \}\}"), re.compile(r"^!\[(.+)\]\(plot:speed\)$", re.MULTILINE)
PICTURE = re.compile(r"^!\[(.*)\]\(draw:([^?]+)(?:\?(\S*))?\)$", re.MULTILINE)
TABLE = re.compile(r"^```(shapes|measured)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

WORDS = {
    "en": {
        "shapes": ("", "input", "kernel", "output", "weights", "MACs"),
        "measured": ("", "MACs"),
        "speed": "PyTorch, MACs a µs",
        "how": "Milliseconds on one thread, each engine in the memory format in which it is faster ({cpu}, torch "
               "{torch}). To measure them again: {command}.",
        "plot": ("PyTorch on one thread", "multiply-accumulates, as powers of ten", "milliseconds, as powers of ten"),
        "kinds": ("dense", "pointwise", "grouped", "depthwise", "transposed", "others"),
    },
    "zh": {
        "shapes": ("", "输入", "卷积核", "输出", "权重数", "MAC 数"),
        "measured": ("", "MAC 数"),
        "speed": "PyTorch，每 µs 的 MAC 数",
        "how": "单线程毫秒数，每个引擎取它较快的内存格式（{cpu}，torch {torch}）。重新测量：{command}。",
        "plot": ("PyTorch，单线程", "乘加次数，10 的幂", "毫秒，10 的幂"),
        "kinds": ("稠密", "逐点", "分组", "逐深度", "转置", "其他"),
    },
}  # fmt: skip


# -- pages --------------------------------------------------------------------------------------------------
def expanded(text: str, language: str, picture: Callable[[str], str]) -> str:
    """The Markdown of a page with all that it leaves to be computed; `picture` takes an SVG and gives its place."""
    text = TABLE.sub(lambda found: {"shapes": shapes, "measured": measured}[found[1]](found[2], language), text)
    text = PICTURE.sub(lambda found: picture(drawn(found[1], found[2], found[3] or "")), text)
    text = PLOT.sub(lambda found: picture(speeds(found[1], language)), text)
    return NUMBER.sub(lambda found: said(eval(found[1], {"__builtins__": {}}, NUMBERS)), text)


def said(value: float | str) -> str:
    """A number as it stands in a sentence: whole ones with commas, others with three digits."""
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{float(f'{value:.3g}'):,g}"


# -- numbers ------------------------------------------------------------------------------------------------
def params(text: str) -> int:
    """Weights and biases of a block."""
    return spec.params(spec.parse(text))


def macs(text: str, shape: str) -> int:
    """Multiply-accumulates of a block on an input such as 1x16x28x28."""
    return spec.macs(spec.parse(text), sizes(shape))


def field(text: str) -> int:
    """Positions along the first axis that one output depends on."""
    return spec.receptive_field(spec.parse(text))[0]


def output(text: str, shape: str) -> str:
    return times(spec.output_shape(spec.parse(text), sizes(shape)))


def ms(problem: str, engine: str = "torch", threads: int = 1) -> float:
    """Measured milliseconds, in the memory format in which the engine is faster."""
    found = best(problem, engine, threads)
    if found is None:
        raise KeyError(f"{engine} was not measured on {problem}")
    return found


def speed(problem: str, engine: str = "torch", threads: int = 1) -> float:
    """Multiply-accumulates a microsecond."""
    return results()[problem, threads]["macs"] / 1e3 / ms(problem, engine, threads)


def copy_ms(size: int, threads: int = 1) -> float:
    """Milliseconds that a copy of so many bytes takes on the machine of the results: as many are read and written."""
    limit = next(limit for limit in machine()["limits"] if limit["threads"] == threads)
    _, bytes_per_s = min(limit["bytes_per_s"].items(), key=lambda known: abs(int(known[0]) - 2 * size))
    return 1e3 * 2 * size / bytes_per_s


def cell(page: str, row: str, column: str) -> str:
    """What the first table of a page that has this row and column says there."""
    heads: list[str] = []
    for line in (Path(__file__).parent / page).read_text(encoding="utf-8").splitlines():
        cells = [part.strip() for part in line.strip("|").split("|")]
        heads = [] if not line.startswith("|") else heads or cells
        if column in heads and cells[0] == row:
            return cells[heads.index(column)]
    raise KeyError(f"{page} has no row {row} with a column {column}")


NUMBERS = {"cell": cell, "copy_ms": copy_ms, "params": params, "macs": macs, "field": field,
           "output": output, "ms": ms, "speed": speed}  # fmt: skip


@cache
def results() -> dict[tuple[str, int], Any]:
    held = json.loads(RESULTS.read_text(encoding="utf-8"))["results"]
    return {(result["problem"], result["threads"]): result for result in held}


@cache
def machine() -> dict[str, Any]:
    return json.loads(RESULTS.read_text(encoding="utf-8"))["machine"]


def best(problem: str, engine: str, threads: int = 1) -> float | None:
    if (problem, threads) not in results():
        raise KeyError(f"no such line in {RESULTS.name}: {problem}, threads {threads}")
    engines = results()[problem, threads]["engines"]
    found = [timed.get("ms") for name, timed in engines.items() if name.split()[0] == engine]
    return min((value for value in found if value), default=None)


# -- tables -------------------------------------------------------------------------------------------------
def shapes(lines: str, language: str) -> str:
    """A row for each convolution of each block, and what the whole of it costs."""
    rows = []
    for label, rest in labelled(lines):
        text, _, shape = rest.partition(" @ ")
        table = spec.describe(spec.parse(text), sizes(shape))
        kernels = "<br>".join(times(weight) for part in table for weight in part.weight_shapes)
        rows.append([f"{label}<br>`{text}`", times(table.input_shape), kernels, times(table.output_shape),
                     f"{table.params:,}", f"{table.macs:,}"])  # fmt: skip
    return grid(WORDS[language]["shapes"], rows)


def measured(lines: str, language: str) -> str:
    """A row for each problem, a column for each engine."""
    words, rows = WORDS[language], []
    for label, problem in labelled(lines):
        timed = {engine: best(problem, engine) for engine in ENGINES}
        rows.append([f"{label}<br>`{problem}`", f"{results()[problem, 1]['macs']:,}",
                     *("–" if value is None else f"{value:.3g}" for value in timed.values()),
                     f"{speed(problem):,.0f}"])  # fmt: skip
    how = words["how"].format(cpu=machine()["cpu"], torch=machine()["torch"],
                               command=COMMAND.format(labelled(lines)[0][1]))  # fmt: skip
    engines = [f"{name}, ms" for name in ENGINES.values()]
    return grid([*words["measured"], *engines, words["speed"]], rows) + f"\n{how}\n"


def labelled(lines: str) -> list[tuple[str, str]]:
    return [(label, rest.strip()) for label, _, rest in (line.partition(": ") for line in lines.strip().splitlines())]


def grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [heads, ["---"] * len(heads), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in cells)


def sizes(shape: str) -> tuple[int, ...]:
    return tuple(map(int, shape.split("x")))


def times(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


# -- pictures -----------------------------------------------------------------------------------------------
def drawn(alt: str, text: str, options: str) -> str:
    """The SVG of a block; options are those of reconv.draw: input=7x7, at=0x2x3, numbers, animate, offsets=rotate."""
    if not alt.strip():
        raise ValueError(f"a picture must be told in words, too: {text}")
    return relabelled(svg_of(text, options), alt)


@cache
def svg_of(text: str, options: str) -> str:
    given: dict[str, Any] = {}
    for option in filter(None, options.split("&")):
        name, _, value = option.partition("=")
        given[{"input": "input_size"}.get(name, name)] = sizes(value) if value[:1].isdigit() else value or True
    return reconv.draw(text, **given)


def speeds(alt: str, language: str) -> str:
    """A point for each forward pass in float32: PyTorch's milliseconds over the multiply-accumulates."""
    words = WORDS[language]
    points: dict[str, list[tuple[float, float, str]]] = {kind: [] for kind in words["kinds"]}
    for problem, threads in results():
        text, shape = problem.rsplit(" ", 1)
        if threads == 1 and re.fullmatch(r"\d+(x\d+)+", shape):
            macs, took = results()[problem, 1]["macs"], ms(problem)
            kind = words["kinds"][kind_of(spec.parse(text))]
            points[kind].append((log10(macs), log10(took), f"{problem}: {macs:,} MACs, {took:.3g} ms"))
    series = [Series(kind, found, colour=i) for i, (kind, found) in enumerate(points.items())]
    return relabelled(plot([Panel(*words["plot"], series)], alt), alt)


def kind_of(block: spec.Block) -> int:
    """Which of the words for kinds is the block's."""
    if not isinstance(block, spec.ConvSpec):
        return 5
    tests = (block.transposed, block.depthwise and block.in_channels > 1, block.groups > 1, block.pointwise, True)
    return (4, 3, 2, 1, 0)[tests.index(True)]


def relabelled(svg: str, alt: str) -> str:
    """The picture with the page's own words for those who hear it."""
    quoted = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    head, tag, rest = svg.partition(">")
    head = re.sub(r'\s+(role|aria-label)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{quoted}"{tag}{rest}'


def themed(svg: str, name: str) -> str:
    """The picture for a page: its styles and names are its own, and dark where the page is."""
    svg = re.sub(r"<\?xml.*?\?>\s*", "", svg)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", svg)
    return re.sub(
        r"<style>(.*?)</style>", lambda found: f"<style>{styled(found[1], name)}</style>", svg, flags=re.DOTALL
    )


def styled(css: str, name: str) -> str:
    """Rules bound to #name; those for a dark screen hold where Material's scheme is the dark one."""
    dark, moves, kept = [], [], []
    for head, body in rules_of(css):
        if head == "@media (prefers-color-scheme: dark)":
            dark.append(body)
        elif head.startswith("@keyframes"):
            moves.append(f"@keyframes {name}-{head.split()[1]} {{{body}}}")
        else:
            kept.append(f"{head} {{{body}}}")
    named = "\n".join(kept)
    for move in moves:  # names of animations are the page's, so each picture has its own
        short = move.split()[1].removeprefix(f"{name}-")
        named = re.sub(rf"(animation[^;}}]*?)\b{re.escape(short)}\b", rf"\1{name}-{short}", named)
    parts = [*moves, f"#{name} {{ {named} }}"]
    return "\n".join([*parts, *(f'[data-md-color-scheme="slate"] #{name} {{ {body} }}' for body in dark)])


def rules_of(css: str) -> list[tuple[str, str]]:
    """(head, body) of each outermost rule."""
    found, depth, head, body = [], 0, "", ""
    for mark in css:
        if mark == "}":
            depth -= 1
            if not depth:
                found.append((" ".join(head.split()), body.strip()))
                head = body = ""
                continue
        if depth:
            body += mark
        elif mark != "{":
            head += mark
        depth += mark == "{"
    return found
