"""The one error of the package, and the one builder of its message."""

import importlib.util
from collections.abc import Mapping, Sequence

from reconv.plain import plain


class ConvError(Exception):
    """A request that cannot be served. Says what must hold, what it got and what to do.

    Where PyTorch raises a builtin type for the same mistake, the error is of that type too.
    """


def conv_error(
    name: str,
    must: str,
    *,
    got: Mapping[str, object] | None = None,
    do: str = "",
    spec: object = None,
    also: type[Exception] | None = None,
) -> ConvError:
    """Builds `<name>: <must>; got <arg>=<value>[, …]. <do>. [<spec>]`, to be raised by the caller.

    Args:    also: a builtin exception type that the error must be an instance of, too.
    Example:
             >>> print(conv_error("conv2d", "stride must be positive", got={"stride": 0}, do="Use stride >= 1."))
             conv2d: stride must be positive; got stride=0. Use stride >= 1.
    """
    text = f"{name}: {must}"
    if got:
        text += "; got " + ", ".join(f"{key}={plain(str(value))}" for key, value in got.items())
    text += "."
    if do:
        text += " " + do
    if spec is not None:
        text += f" [{spec}]"
    return error_type(also)(text)


def check_packages(name: str, what: str, extra: str, packages: Sequence[str]) -> None:
    """Raises ConvError, an ImportError, where a package is missing that `reconv[extra]` brings."""
    if missing := [package for package in packages if importlib.util.find_spec(package) is None]:
        raise conv_error(name, f"{what} needs {', '.join(packages)}", got={"missing": ", ".join(missing)},
                         do=f"pip install 'reconv[{extra}]'.", also=ImportError)  # fmt: skip


def on_one_line(error: BaseException, most: int = 200) -> str:
    """What another's error is, to be quoted: its type and at most so many characters of its text.

    Example:
             >>> on_one_line(ValueError("two\\n   lines"))
             'ValueError: two lines'
    """
    return f"{type(error).__name__}: {' '.join(str(error).split())[:most]}"


def first_line(error: BaseException, most: int = 300) -> str:
    """What another's error says first, to be quoted; its type, where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:most]


_TYPES: dict[type[Exception], type[ConvError]] = {}


def error_type(also: type[Exception] | None) -> type[ConvError]:
    """ConvError, or the (cached) subclass of it that is an `also` as well."""
    if also is None:
        return ConvError
    if also not in _TYPES:
        _TYPES[also] = type("ConvError", (ConvError, also), {"__module__": __name__, "__reduce__": _reduced})
    return _TYPES[also]


def _reduced(error: ConvError) -> tuple[object, tuple[object, ...]]:
    """How a made type is pickled, so that it crosses processes (DataLoader workers)."""
    return _again, (type(error).__mro__[2], error.args)


def _again(also: type[Exception], args: tuple[object, ...]) -> ConvError:
    return error_type(also)(*args)
