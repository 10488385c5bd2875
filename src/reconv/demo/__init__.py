"""The network on which `reconv demo` runs the main job: trained by `train.py`, shipped beside it."""
