"""Latencies measured before, in an SQLite file of the user's cache folder."""

from __future__ import annotations

import os
import sqlite3
import warnings
from pathlib import Path

import platformdirs

from reconv.targets.timing import Timing

_SCHEMA = "CREATE TABLE IF NOT EXISTS latency (key TEXT PRIMARY KEY, median_ms REAL, spread_ms REAL, rounds INTEGER)"
_complained: set[str] = set()


def cache_folder() -> Path:
    """$RECONV_CACHE, else the user's cache folder."""
    return Path(os.environ.get("RECONV_CACHE") or platformdirs.user_cache_dir("reconv"))


def default_path() -> Path:
    """Of the latencies. The number is that of the table's form."""
    return cache_folder() / "latency-1.sqlite"


class LatencyCache:
    """get and put of Timings by key. A file that cannot be used is said once, and work goes on without it.

    What a job has put is known to it in any case; so is, instead of a Timing, why an engine could not run something,
    which no file keeps.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or default_path()
        self.known: dict[str, Timing | str] = {}
        self.connection: sqlite3.Connection | None = None
        self.closed = False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.connection = sqlite3.connect(self.path, timeout=10)
            with self.connection:
                self.connection.execute("PRAGMA synchronous = OFF")  # what a power cut loses is measured again
                self.connection.execute(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)

    def get(self, key: str) -> Timing | str | None:
        if key in self.known or self.connection is None:
            return self.known.get(key)
        try:
            row = self.connection.execute(
                "SELECT median_ms, spread_ms, rounds FROM latency WHERE key = ?", (key,)
            ).fetchone()
        except sqlite3.Error as error:
            self._give_up(error)
            return None
        sound = row is not None and all(isinstance(number, float | int) for number in row)
        return Timing(*row) if sound else None

    def put(self, key: str, timing: Timing | str) -> None:
        if self.closed:
            return
        self.known[key] = timing
        if self.connection is None or isinstance(timing, str):
            return
        try:
            with self.connection:
                self.connection.execute("INSERT OR REPLACE INTO latency VALUES (?, ?, ?, ?)",
                                        (key, timing.median_ms, timing.spread_ms, timing.rounds))  # fmt: skip
        except sqlite3.Error as error:
            self._give_up(error)

    def close(self) -> None:
        self.closed = True
        self.known.clear()
        self._part()

    def _part(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def _give_up(self, error: Exception) -> None:
        self._part()
        if str(self.path) not in _complained:
            _complained.add(str(self.path))
            warnings.warn(f"the latency cache {self.path} cannot be used ({error}); measuring without it", stacklevel=3)
