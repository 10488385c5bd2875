"""What other people's code relies on changes only on purpose."""

import api
import pytest


def test_the_surface_is_the_one_that_was_agreed_on():
    changed = api.difference()
    assert not changed, f"the public surface changed:\n{changed}\nAccept it by: python tests/api.py --write"


@pytest.mark.parametrize(
    "line",
    ["reconv.load(folder, base=None, trust_code=False)", "reconv.Plan.load(path)", "$ reconv plan --budget latency=",
     "reconv.summary(model, example_inputs", "reconv.nn.Conv2d(in_channels, out_channels, kernel_size",
     '[project.entry-points."reconv.rules"]', "reconv.rules: tuple"],
)  # fmt: skip
def test_it_has_what_the_design_names(line):
    assert [one for one in api.lines() if one.startswith(line)]


def test_a_change_is_shown_and_says_how_to_accept_it(monkeypatch):
    now = api.lines()
    monkeypatch.setattr(api, "lines", lambda: ["reconv.new(x)", *now[1:]])
    shown = api.difference()
    assert "+reconv.new(x)" in shown
    assert f"-{now[0]}" in shown
