"""`python -m reconv` is the command `reconv`."""

from reconv.cli import app

app()
