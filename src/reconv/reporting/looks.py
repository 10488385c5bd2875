"""What the layers of both networks give and what they look at, on samples."""

from __future__ import annotations

from collections.abc import Sequence

from reconv.drawing.heat import over
from reconv.drawing.maps import tiles
from reconv.errors import ConvError
from reconv.plain import escape
from reconv.reporting.html import fold, image, named, number
from reconv.reporting.seen import Seen, View

HOW = "reconv report RUN_FOLDER"
PILLOW = ("<p class='note'>The pictures of feature maps and receptive fields are left out: they need Pillow. "
          f"<code>pip install 'reconv[pictures]'</code>, then <code>{HOW}</code>.</p>")  # fmt: skip


def looks(seen: Seen) -> str:
    """All that was seen on samples, and what could not be had."""
    if not seen.count and not seen.missing:
        return ("<h2>On samples</h2><p class='note'>What the layers give and see was not looked at in this run; "
                f"<code>{HOW}</code> adds it.</p>")  # fmt: skip
    parts = [_apart(seen)]
    try:
        parts += [_maps(seen.views), _fields(seen)]
    except ConvError as error:
        if not isinstance(error, ImportError):
            raise
        parts.append(PILLOW)
    parts += [f"<p class='note'>Not shown: {escape(part)}. {escape(why)}</p>" for part, why in seen.missing.items()]
    samples = "sample" if seen.count == 1 else "samples"
    looked = f"<p class='note'>{seen.count} {samples}: {escape(seen.source)}.</p>" if seen.count else ""
    return "<h2>On samples</h2>" + looked + "".join(parts)


def _apart(seen: Seen) -> str:
    """How far what each layer gives is from the original's, as bars."""
    if not seen.apart:
        return ""
    most = max(seen.apart.values()) or 1.0
    rows = [f"<tr><td><code>{escape(named(site))}</code></td><td class='number'>{number(apart)}</td>"
            f"<td><span class='bar' style='width: {12 * min(1.0, apart / most):.2f}rem'></span></td></tr>"
            for site, apart in seen.apart.items()]  # fmt: skip
    head = "<thead><tr><th>layer</th><th class='number'>off by</th><th></th></tr></thead>"
    title = ("How far what each layer gives is from what it gave: ‖student − teacher‖ / ‖teacher‖, with the batch norm "
             f"and activation that it took over ({len(rows)})")  # fmt: skip
    return fold(title, f'<div class="wide"><table>{head}<tbody>{"".join(rows)}</tbody></table></div>')


# -- feature maps -------------------------------------------------------------------------------------------
def _maps(views: Sequence[View]) -> str:
    figures = []
    for view in views:
        if view.maps:
            channels = ", ".join(str(channel) for channel, _, _ in view.maps)
            _, then, now = zip(*view.maps, strict=True)
            pair = [(when, image(tiles(arrays), f"{when}: channels {channels}"))
                    for when, arrays in (("before", then), ("after", now))]  # fmt: skip
            figures.append(_figure(view.name, f"channels {channels}", pair))
    if not figures:
        return ""
    return ("<h3>Feature maps</h3><p class='note'>Of the first sample, the channels that varied most before, each on "
            f"its own scale.</p><div class='views'>{''.join(figures)}</div>")  # fmt: skip


# -- receptive fields ---------------------------------------------------------------------------------------
def _fields(seen: Seen) -> str:
    figures = []
    for view in seen.views:
        pair = [(f"{when}: effective {_extent(field.box)}, theoretical {_extent(field.window)}",
                 image(over(seen.image, field.heat, field.box, field.window or ()),
                       f"{when}: what counts for the middle of {view.name}"))
                for when, field in (("before", view.before), ("after", view.after))
                if field is not None and field.heat.shape == seen.image.shape[1:]]  # fmt: skip
        if pair:
            figures.append(_figure(view.name, "", pair))
    if not figures:
        return ""
    deep = " Of three axes the middle slice is shown, and the sum along the first." if seen.image.ndim == 4 else ""
    return ("<h3>Receptive fields</h3><p class='note'>How much each position of the input moves the middle of the "
            "layer's output: the mean size of the gradient (Luo et al. 2016, arXiv:1701.04128), drawn over the first "
            "sample. Along each axis 95 % of it lies in the blue frame. All that could count in theory lies in the "
            f"white one, which may end outside of the image.{deep}</p>"
            f"<div class='views fields'>{''.join(figures)}</div>")  # fmt: skip


def _extent(window: Sequence[tuple[int, int]] | None) -> str:
    return "×".join(str(high - low) for low, high in window) if window else "unknown"


def _figure(name: str, note: str, pair: Sequence[tuple[str, str]]) -> str:
    shown = "".join(f"<div><span>{escape(title)}</span>{picture}</div>" for title, picture in pair)
    caption = f"<code>{escape(named(name))}</code>" + (f", {escape(note)}" if note else "")
    return f"<figure><figcaption>{caption}</figcaption><div class='pair'>{shown}</div></figure>"
