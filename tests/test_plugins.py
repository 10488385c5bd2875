"""Rules of installed packages: found by name, or said to be unusable and whose they are."""

import shutil
from pathlib import Path

import pytest
import torch
from fakes import FakeTarget
from handmade import make_site, run
from torch import nn

import reconv
from reconv.errors import ConvError
from reconv.ruleset import RULES, rules_named

EXAMPLE = Path(__file__).parent.parent / "examples" / "my_rule"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a package on the path as an installer would: a module, and its metadata."""
    monkeypatch.syspath_prepend(tmp_path)

    def put(points: str, dist: str = "my-rule", **modules: str) -> None:
        info = tmp_path / f"{dist.replace('-', '_')}-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 0.1.0\n")
        (info / "entry_points.txt").write_text(f"[reconv.rules]\n{points}\n")
        for name, code in modules.items():
            (tmp_path / f"{name}.py").write_text(code)
            monkeypatch.delitem(__import__("sys").modules, name, raising=False)

    return put


@pytest.fixture
def example(install, tmp_path):
    install(_declared(), my_rule=(EXAMPLE / "my_rule.py").read_text())


def _declared() -> str:
    """The example's entry point, as its pyproject.toml has it."""
    import tomllib

    points = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]["entry-points"]["reconv.rules"]
    return "\n".join(f"{name} = {value}" for name, value in points.items())


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
