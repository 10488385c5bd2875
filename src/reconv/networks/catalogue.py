"""What the literature says of each network: one entry a function, put there by `@network`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec

from torch import nn

from reconv.layers.arguments import check_counts

P = ParamSpec("P")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A network of the literature, as its function makes it without arguments.

    Args:    make: the function. paper: authors, year, and where it stands.
             input_shape: (N, C, *spatial) of the paper.
             params, macs: counted exactly; macs of convolutions and linear layers for `input_shape`.
             published: the same figures as others print them, and who does; "" where nobody does.
             kinds: of convolution, named as the chapters of the book.
    """

    make: Callable[..., nn.Module]
    paper: str
    input_shape: tuple[int, ...]
    params: int
    macs: int
    published: str
    kinds: tuple[str, ...]


CATALOGUE: dict[str, Entry] = {}


def network(
    *, paper: str, input_shape: tuple[int, ...], params: int, macs: int, published: str = "", kinds: str
) -> Callable[[Callable[P, nn.Module]], Callable[P, nn.Module]]:
    """Enters a function into the catalogue and checks the counts that it is given."""

    def enter(make: Callable[P, nn.Module]) -> Callable[P, nn.Module]:
        signature = inspect.signature(make)

        @functools.wraps(make)
        def checked(*args: P.args, **kwargs: P.kwargs) -> nn.Module:
            for name, value in signature.bind(*args, **kwargs).arguments.items():
                if signature.parameters[name].annotation == "int":
                    check_counts(f"networks.{make.__name__}", **{name: value})
            return make(*args, **kwargs)

        CATALOGUE[make.__name__] = Entry(
            make=checked, paper=paper, input_shape=input_shape, params=params, macs=macs, published=published,
            kinds=tuple(kinds.split()),
        )  # fmt: skip
        return checked

    return enter
