"""What the kinds of places of a tensor see: concatenated channels, say, are places of several kinds."""

from collections.abc import Callable, Iterable, Mapping

from reconv.costing.receptive.layout import Label
from reconv.costing.receptive.span import Span
from reconv.costing.receptive.span import hull as hull_of_spans

Spans = Mapping[Label, Span | None]  # by input axis; None: not known
Kinds = tuple[Spans, ...]  # by the position along KIND


def each(kinds: Iterable[Spans], change: Callable[[Spans], Spans]) -> Kinds:
    """The kinds, changed; those that are one object are changed once."""
    done: dict[int, tuple[Spans, Spans]] = {}
    for spans in kinds:
        if id(spans) not in done:
            done[id(spans)] = spans, change(spans)
    return tuple(done[id(spans)][1] for spans in kinds)


def update(kinds: Kinds, label: Label, change: Callable[[Span], Span | None]) -> Kinds:
    """The kinds, with what they see along one label changed where it is known."""

    def changed(spans: Spans) -> Spans:
        span = spans.get(label)
        return {**spans, label: change(span)} if span else spans

    return each(kinds, changed)


def labels_of(kinds: Iterable[Spans]) -> list[Label]:
    return list(dict.fromkeys(label for spans in {id(spans): spans for spans in kinds}.values() for label in spans))


def hull(kinds: Iterable[Spans]) -> Spans:
    """What places of all these kinds see together."""
    different = list({id(spans): spans for spans in kinds}.values())
    if len(different) == 1:
        return different[0]
    return {
        label: hull_of_spans(spans[label] for spans in different if label in spans) for label in labels_of(different)
    }
