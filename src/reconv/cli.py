"""The command `reconv`: which commands there are, and what an error looks like to a shell."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from reconv import __version__
from reconv.commands.bench import bench
from reconv.commands.demo import demo
from reconv.commands.draw import draw
from reconv.commands.explore import explore
from reconv.commands.export import export
from reconv.commands.kernels import kernels
from reconv.commands.output import say
from reconv.commands.plan import plan
from reconv.commands.recover import recover
from reconv.commands.report import report
from reconv.commands.rewrite import rewrite
from reconv.commands.summary import summary
from reconv.errors import ConvError

COMMANDS = (summary, plan, rewrite, recover, export, report, draw, explore, bench, kernels, demo)
WANT_OF_MEMORY = "can't allocate memory"  # in a RuntimeError: torch has no kind of its own for it


class Guarded(TyperGroup):
    """Exit status 0 done · 1 the job failed · 2 wrong usage · 3 the budget is not met · 130 stopped."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("stopped.")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            raise  # whoever reads has had enough: not an error of ours
        except (ConvError, OSError, MemoryError) as error:
            say(f"Error: {error or type(error).__name__}", each=True)
            raise typer.Exit(1) from None
        except RuntimeError as error:
            if WANT_OF_MEMORY not in str(error):
                raise
            say("Error: the job must fit in memory; got less than it needs. Give a smaller input, batch or network.")
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=Guarded,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
for command in COMMANDS:
    app.command(command.__name__)(command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"reconv {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="print it")] = False,
) -> None:
    """The right convolution for every layer: rewrite a trained network so that it is smaller and faster, measured."""
