"""`reconv bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from reconv.commands import options as o
from reconv.commands.output import Sheet, emit, progress, say

Problems = Annotated[
    list[str],
    typer.Argument(
        metavar="PROBLEM...",
        show_default=False,
        help="files (.txt) of problems, or problems: BLOCK SHAPE [forward|input|weight|training] [DTYPE]",
    ),
]
Threads = Annotated[str, typer.Option(metavar="1,2", help="numbers of threads, with commas")]
Engines = Annotated[
    str, typer.Option(help="of torch, reconv, torch.compile, onnxruntime, openvino, with commas; or all")
]
Seconds = Annotated[float, typer.Option(min=0, help="for each problem and number of threads")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", metavar="RESULTS.json", help="file to write the results to, with a picture (.svg) beside it"
    ),
]


def bench(
    problems: Problems,
    threads: Threads = "1",
    engines: Engines = "torch,reconv",
    seconds: Seconds = 1.0,
    config: o.Config = None,
    format: o.OutFormat = o.Format.TABLE,
    out: Out = None,
) -> None:
    """Time convolutions: PyTorch, reconv and other engines, checked and interleaved."""
    from reconv.benching import Report, engines_of, measure, read_tasks
    from reconv.benching.chart import svg
    from reconv.writing import write_text

    with o.usage("PROBLEM"):
        tasks = read_tasks(problems)
    with o.usage("--engines"):
        columns = engines_of(engines)
    counts = _counts(threads)
    report = Report()
    with progress() as show:
        for number, task in enumerate(tasks):
            for count in counts:
                report.results.append(measure(task, columns, count, seconds))
            if out is not None:  # whatever stops the job, what was measured is there
                write_text(out, _json(report.to_dict()), "bench")
            if show:
                show("problems", number + 1, len(tasks))
    if out is not None:
        write_text(out.with_suffix(".svg"), svg(report.to_dict()["results"]), "bench")
    emit(Sheet(report.heads, report.rows, report.to_dict()), format)
    for line in [*report.summaries, *report.wrong]:
        say(line)
    if report.wrong:
        raise typer.Exit(1)


def _counts(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() and 1 <= int(part) <= 1024 for part in parts):
        raise typer.BadParameter(f"must be numbers from 1 to 1024 with commas between them, not {text!r}",
                                 param_hint="--threads")  # fmt: skip
    return [int(part) for part in dict.fromkeys(parts)]


def _json(report: dict[str, Any]) -> str:
    """A result a line: what is committed can be read."""
    results = ",\n".join(json.dumps(result) for result in report.pop("results"))
    head = json.dumps(report, indent=1).removesuffix("\n}")
    return f'{head},\n "results": [\n{results}\n ]\n}}\n'
