"""`reconv demo`."""

from __future__ import annotations


def demo() -> None:
    """Run the main job on the demo network, trained on handwritten digits."""
    from reconv.demo.run import main

    main()
