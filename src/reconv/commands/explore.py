"""`reconv explore`."""

from __future__ import annotations

import socket
from typing import Annotated

import typer

from reconv.commands.output import say

Port = Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")]
Open = Annotated[bool, typer.Option("--open", help="open it in the browser")]


def explore(port: Port = 0, open: Open = False) -> None:
    """Serve a web page, to this machine only, on which every kind of convolution can be drawn, moved and compared."""
    import webbrowser

    try:
        import uvicorn

        from reconv.explorer.app import app
    except ImportError as error:
        from reconv.errors import conv_error

        raise conv_error("explore", "the page is served by starlette and uvicorn", got={"error": repr(str(error))},
                         do="pip install 'reconv[explore]'.", also=ImportError) from error  # fmt: skip
    with socket.create_server(("127.0.0.1", port)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        say(f"{address}  (Ctrl+C ends it)")
        if open:
            webbrowser.open(address)
        server = uvicorn.Server(uvicorn.Config(app(), log_level="warning"))
        server.run(sockets=[listening])
