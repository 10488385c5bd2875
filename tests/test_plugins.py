"""Rules and engines of installed packages: found by name, or said to be unusable and whose they are."""

import shutil
import tomllib
from pathlib import Path

import pytest
import torch
from fakes import FakeTarget
from handmade import make_site, run
from torch import nn

import reconv
from reconv.errors import ConvError
from reconv.ruleset import RULES, rules_named
from reconv.targets import TARGETS, get_target, time_networks

EXAMPLES = Path(__file__).parent.parent / "examples"
GROUP = {"my_rule": "reconv.rules", "my_target": "reconv.targets"}


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a package on the path as an installer would: a module, and its metadata."""
    monkeypatch.syspath_prepend(tmp_path)

    def put(points: str, dist: str = "my-rule", group: str = "reconv.rules", **modules: str) -> None:
        info = tmp_path / f"{dist.replace('-', '_')}-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 0.1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{points}\n")
        for name, code in modules.items():
            (tmp_path / f"{name}.py").write_text(code)
            monkeypatch.delitem(__import__("sys").modules, name, raising=False)

    return put


@pytest.fixture
def example(install):
    _install_example(install, "my_rule")


@pytest.fixture
def engine(install):
    _install_example(install, "my_target")


def _install_example(install, name: str) -> None:
    """With the entry points that its pyproject.toml has."""
    folder = EXAMPLES / name
    points = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["entry-points"][GROUP[name]]
    text = "\n".join(f"{name} = {value}" for name, value in points.items())
    install(text, name.replace("_", "-"), GROUP[name], **{name: (folder / f"{name}.py").read_text()})


def test_the_example_is_found_by_its_name_alone(example):
    (rule,) = rules_named("in_groups")
    assert (rule.name, rule.group) == ("in_groups", "smaller")
    assert rule not in RULES
    assert "in_groups" not in {rule.name for rule in rules_named("smaller")}


def test_the_example_keeps_the_blocks_on_the_diagonal(example):
    (rule,) = rules_named("in_groups")
    site = make_site("ic4oc8k3x3p1nb")
    site.weight[4:, :2] = 0
    site.weight[:4, 2:] = 0
    x = torch.ones(1, 4, 5, 7, dtype=torch.float64)
    halves = [p for p in rule.propose(site) if p.block.groups == 2]
    weights = rule.init(site, halves[0])
    assert weights.error == pytest.approx(0, abs=1e-7)
    torch.testing.assert_close(run(halves[0].block, weights.tensors, x), run(site.block, site.tensors, x))
    assert 0 < rule.init(site, next(iter(rule.propose(site)))).error < 1


def test_a_plan_names_it_and_is_applied_in_another_process_of_the_same_installation(example, tmp_path):
    net = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    x = torch.randn(1, 8, 11, 9)
    plan = reconv.plan(net, x, "latency=0.5", rules=["exact", "in_groups"], target=FakeTarget())
    assert {edit.rule for edit in plan.edits} >= {"in_groups"}
    plan.save(tmp_path / "plan.json")
    student = reconv.apply(net, reconv.Plan.load(tmp_path / "plan.json"), x)
    assert any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in student.modules())


def test_without_the_package_a_plan_says_what_is_missing(example, tmp_path):
    net, x = nn.Sequential(nn.Conv2d(8, 8, 3)).eval(), torch.randn(1, 8, 7, 5)
    plan = reconv.Plan.from_dict({"format": 1, "edits": [{"site": "0", "rule": "in_groups", "block": "ic8oc8k3x3g2"}]})
    reconv.apply(net, plan, x)
    shutil.rmtree(next(tmp_path.glob("*.dist-info")))
    with pytest.raises(ConvError, match="Install the package that has it, or pass the rule itself"):
        reconv.apply(net, plan, x)


LACKING = "class Mine:\n    name, group, source = 'mine', 'smaller', 'me'\n"
WHOLE = LACKING + "    def refuse(self, site): pass\n    propose = init = refuse\n"


@pytest.mark.parametrize("points, module, kind, says", [
    ("mine = broken:Mine", "import no_such_module", ImportError,
     "a plug-in must be importable; got rule=mine, plug-in=broken:Mine of my-rule, error=\"ModuleNotFoundError"),
    ("mine = broken:Other", WHOLE, ImportError, "AttributeError"),
    ("mine = broken:Mine", LACKING, TypeError, "a plug-in must be a Rule: it has no refuse, propose, init"),
    ("mine = broken:Mine", WHOLE.replace("'smaller'", "'better'"), TypeError,
     "its group must be one of exact, smaller, stronger, denser"),
    ("mine = broken:Mine", WHOLE.replace("'mine'", "'ours'"), TypeError,
     "its name must be that of its entry point, mine"),
    ("mine = broken:Mine", WHOLE + "    def __init__(self): self.table['it']\n    table = {}", RuntimeError,
     "a plug-in must give a Rule; got rule=mine, plug-in=broken:Mine of my-rule, error=\"KeyError: 'it'\""),
    ("mine = broken:Mine", WHOLE.replace("'me'", "None"), TypeError, "its source must be text"),
])  # fmt: skip
def test_an_unusable_one_says_whose_it_is(install, points, module, kind, says):
    install(points, broken=module)
    with pytest.raises(kind) as caught:
        rules_named("mine")
    assert isinstance(caught.value, ConvError)
    assert says in str(caught.value)
    assert "of my-rule" in str(caught.value)


def test_names_of_reconvs_own_are_not_for_others(install):
    install("separable = theirs:Mine", theirs=WHOLE)
    with pytest.raises(ValueError, match="name of reconv's own; got rule=separable, plug-in=theirs:Mine of my-rule"):
        rules_named("separable")
    assert rules_named("bottleneck", "exact")


def test_two_packages_must_not_share_a_name(install):
    install("mine = first:Mine", first=WHOLE)
    install("mine = second:Mine", dist="other-rule", second=WHOLE)
    with pytest.raises(ValueError, match=r"of my-rule, second:Mine of other-rule|of other-rule, first:Mine of my-rule"):
        rules_named("mine")


def test_nothing_is_imported_before_it_is_asked_for(install):
    install("mine = broken:Mine", broken="raise RuntimeError('imported')")
    assert rules_named("exact", "separable")
    with pytest.raises(ValueError, match=r"Did you mean mine .*Installed packages add mine"):
        rules_named("mines")


# engines -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, threads", [("traced", None), ("traced:1", 1)])
def test_the_example_engine_is_found_by_its_name_and_times_networks(engine, name, threads):
    target = get_target(name)
    assert (target.name, target.threads) == (name, threads)
    assert target.fingerprint() != get_target("traced:64").fingerprint()
    (timing,) = time_networks(target, [nn.Conv2d(3, 2, 3)], (torch.rand(1, 3, 7, 5),), seconds=0.0)
    assert timing.median_ms > 0


def test_a_plan_is_made_on_it_and_names_it(engine, tmp_path):
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)).eval(), torch.rand(1, 3, 7, 5)
    plan = reconv.plan(net, x, "macs=0.9", target="traced:1", rules=["exact", "bottleneck"])
    assert plan.target == "traced:1"
    assert reconv.summary(net, x, plan.target).rows[0].latency_ms > 0


ENGINE = """
class Mine:
    name = "mine"
    def __init__(self, threads): self.name += f":{threads}" if threads else ""
    def fingerprint(self): return self.name
    def measure(self, jobs, seconds, burst=1): return []
"""


@pytest.mark.parametrize("points, module, kind, says", [
    ("mine = broken:Mine", "import no_such_module", ImportError, "a plug-in must be importable; got target=mine"),
    ("mine = broken:Other", ENGINE, ImportError, "AttributeError"),
    ("mine = broken:Mine", "Mine = 3", RuntimeError, "a plug-in must give a Target"),
    ("mine = broken:Mine", ENGINE.replace("self, threads", "self"), RuntimeError, "TypeError"),
    ("mine = broken:Mine", ENGINE.replace("fingerprint", "print"), TypeError,
     "a plug-in must be a Target: it has no fingerprint; got target=mine"),
    ("mine = broken:Mine", "def Mine(threads): return None", TypeError, "it has no fingerprint, measure"),
    ("mine = broken:Mine", ENGINE.replace('name = "mine"', 'name = "ours"'), TypeError,
     "its name must be as it was asked for, mine"),
])  # fmt: skip
def test_an_unusable_engine_says_whose_it_is(install, points, module, kind, says):
    install(points, "my-target", "reconv.targets", broken=module)
    with pytest.raises(kind) as caught:
        get_target("mine")
    assert isinstance(caught.value, ConvError)
    assert says in str(caught.value)
    assert "of my-target" in str(caught.value)


def test_an_engine_that_misses_a_package_says_so_in_its_own_words(install):
    code = "from reconv.errors import conv_error\n\ndef make(threads):\n    raise conv_error('mine', 'it needs more')\n"
    install("mine = theirs:make", "my-target", "reconv.targets", theirs=code)
    with pytest.raises(ConvError, match=r"^mine: it needs more\.$"):
        get_target("mine")


@pytest.mark.parametrize("name, taken", [(name, name) for name in TARGETS] + [("torch-compile", "torch.compile")])
def test_names_of_reconvs_own_engines_are_not_for_others(install, name, taken):
    install(f"{taken} = theirs:Mine", "my-target", "reconv.targets", theirs=ENGINE)
    with pytest.raises(ValueError, match=f"name of reconv's own; got target={taken}, plug-in=theirs:Mine of my-target"):
        get_target(name)


def test_two_packages_must_not_share_the_name_of_an_engine(install):
    install("mine = first:Mine", "my-target", "reconv.targets", first=ENGINE)
    install("mine = second:Mine", "other", "reconv.targets", second=ENGINE)
    with pytest.raises(ValueError, match="one plug-in alone may have this name"):
        get_target("mine")


def test_no_engine_is_imported_before_it_is_asked_for(install):
    install("mine = broken:Mine", "my-target", "reconv.targets", broken="raise RuntimeError('imported')")
    assert get_target("torch").name == "torch"
    with pytest.raises(ValueError, match=r"target must be one of torch, .*Installed packages add mine\.$"):
        get_target("mines")
