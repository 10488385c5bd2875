"""Random states of the explorer, right and wrong."""

import random
from urllib.parse import urlencode

from reconv.explorer.kinds import CONTROLS
from reconv.explorer.state import CHOICES


def any_query(chance: random.Random) -> str:
    """A link's query."""
    pairs: dict[str, object] = {
        name: chance.choice([*values, "x"]) for name, values in CHOICES.items() if chance.random() < 0.7
    }
    for name, control in CONTROLS.items():
        if chance.random() < 0.5:
            small = chance.randint(control.least, control.least + 8)
            pairs[name] = chance.choice([small, small, small, -1, "", "\x00", "é", "9" * 30, control.limit(2)])
    return urlencode(pairs)
