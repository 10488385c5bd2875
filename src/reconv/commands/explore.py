"""`reconv explore`."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reconv.commands import options as o
from reconv.commands.output import say
from reconv.errors import conv_error

if TYPE_CHECKING:
    from reconv.explorer.app import Given

Shown = Annotated[
    str | None,
    typer.Argument(metavar="[MODEL]", show_default=False, help="a run folder or a network, to have its page"),
]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")]
Open = Annotated[bool, typer.Option("--open", help="open it in the browser")]


def explore(
    ctx: typer.Context,
    model: Shown = None,
    weights: o.Weights = None,
    input: o.Input = None,
    data: o.Data = None,
    target: o.MaybeTarget = None,
    port: Port = 0,
    open: Open = False,
    trust_code: o.TrustCode = False,
) -> None:
    """Serve a web page, to this machine only, on which every kind of convolution can be drawn, moved and compared."""
    import webbrowser

    try:
        from reconv.explorer.app import app, server
    except ImportError as error:
        raise conv_error("explore", "the page is served by starlette and uvicorn", got={"error": repr(str(error))},
                         do="pip install 'reconv[explore]'.", also=ImportError) from error  # fmt: skip
    given = [] if model is None else [_given(ctx, model, weights, input, data, target, trust_code)]
    with socket.create_server(("127.0.0.1", port)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        say(f"{address}  (Ctrl+C ends it)")
        if open:
            webbrowser.open(address)
        server(app(given)).run(sockets=[listening])


def _given(
    ctx: typer.Context, model: str, weights: Path | None, input: list[str] | None, data: str | None,
    target: str | None, trust_code: bool,
) -> Given:  # fmt: skip
    """The report of a run folder, or the summary of a network."""
    from reconv.explorer.app import Given
    from reconv.reporting.page import page, summary_page
    from reconv.rewriting.store import is_run, read_run

    if is_run(model):
        held = read_run(model)
        return Given(f"report of {model}", page(held.before, held.after, held.plan, held.config, held.error))
    from reconv.commands.given import check_flags, give
    from reconv.costing.summary import summary
    from reconv.targets import get_target

    shapes = check_flags(ctx, model, input or [], data, None, trust_code)
    with o.usage("--target"):
        engine = get_target(target) if target is not None else None
    found = give(model, shapes, weights=weights, data=data, trust_code=trust_code)
    return Given(f"summary of {model}", summary_page(summary(found.model, found.inputs, engine), model))
