"""`python -m reconv` is the command `reconv`."""

from reconv.cli import app

if __name__ == "__main__":
    app()
