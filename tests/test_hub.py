"""Rewritten networks by Hugging Face's calls: saved, loaded and pushed, with no network and no pickle."""

import json
from pathlib import Path

import huggingface_hub.hub_mixin
import pytest
import torch
from torch import nn

import reconv
from reconv.costing.summary import summary
from reconv.demo.network import digits_vgg
from reconv.errors import ConvError
from reconv.planning.edits import restructure
from reconv.planning.plan import Edit, Plan
from reconv.rewriting import hub
from reconv.rewriting.job import Result
from reconv.spec import parse
from reconv.surgery.fingerprint import structure_hash

HubModel = reconv.HubModel
OURS = "reconv.demo.network:digits_vgg"
IMAGE = torch.linspace(0, 1, 28 * 28).reshape(1, 1, 28, 28)
FILES = {"README.md", "config.json", "model.safetensors", "plan.json", "report.html", "summary.json"}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def result(ref: str | None = OURS) -> Result:
    model = digits_vgg(trained=False)
    edit = Edit("features.3", "separable", parse("ic64oc64k5x5p2g64nb -> ic64oc64k1x1nb"))
    plan = Plan((edit,), (), {"ref": ref, "hash": structure_hash(model)})
    student = restructure(model, plan).eval()
    return Result(student, plan, summary(model, IMAGE), summary(student, IMAGE), 0.25, 0.5)


def test_save_pretrained_and_from_pretrained(tmp_path):
    model = HubModel(result())
    model.save_pretrained(tmp_path / "net")
    assert {path.name for path in (tmp_path / "net").iterdir()} == FILES
    again = HubModel.from_pretrained(tmp_path / "net")
    assert not again.training
    assert torch.equal(again(IMAGE), model(IMAGE))
    assert torch.equal(reconv.load(tmp_path / "net")(IMAGE), model(IMAGE))
    card = (tmp_path / "net" / "README.md").read_text()
    assert f"| after | {model.run.after.total.params} | {model.run.after.total.macs} |" in card
    assert "library_name: reconv" in card


def test_what_was_trained_since_is_what_is_saved(tmp_path):
    model = HubModel(result())
    model.save_pretrained(tmp_path / "one")
    again = HubModel.from_pretrained(tmp_path / "one")
    with torch.no_grad():
        next(again.network.parameters()).add_(1)
    again.save_pretrained(tmp_path / "two")
    assert torch.equal(HubModel(tmp_path / "two")(IMAGE), again(IMAGE))
    assert not torch.equal(model(IMAGE), again(IMAGE))
    plans = [Plan.load(tmp_path / name / "plan.json") for name in ("one", "two")]
    assert plans[0] == plans[1]


class Api:
    """What huggingface_hub would send."""

    sent: dict[str, bytes]

    def __init__(self, token=None) -> None:
        assert token == "secret"

    def create_repo(self, repo_id, private, exist_ok):
        assert private
        return type("Repo", (), {"repo_id": repo_id})

    def upload_folder(self, repo_id, folder_path, **_):
        Api.sent = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        return f"commit of {repo_id}"


def test_push_to_hub_sends_a_run_folder_and_what_is_fetched_is_linked(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", Api)
    model = HubModel(result())
    assert model.push_to_hub("me/net", private=True, token="secret") == "commit of me/net"
    assert Api.sent.keys() == FILES
    cache = tmp_path / "cache"
    for folder in ("blobs", "snapshot"):
        (cache / folder).mkdir(parents=True)
    for name, data in Api.sent.items():
        (cache / "blobs" / name).write_bytes(data)
        (cache / "snapshot" / name).symlink_to(cache / "blobs" / name)

    def fetched(repo_id, *, allow_patterns, **_):
        assert (repo_id, sorted(allow_patterns)) == ("me/net", sorted(FILES - {"README.md", "report.html"}))
        return str(cache / "snapshot")

    monkeypatch.setattr(hub, "snapshot_download", fetched)
    monkeypatch.setattr(
        huggingface_hub.hub_mixin, "hf_hub_download", lambda repo_id, filename, **_: cache / "snapshot" / filename
    )
    assert torch.equal(HubModel.from_pretrained("me/net")(IMAGE), model(IMAGE))


def test_foreign_code_is_not_run_and_a_base_may_be_given(tmp_path):
    (tmp_path / "net.py").write_text("import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n")
    HubModel(result(f"{tmp_path}/net.py:make")).save_pretrained(tmp_path / "run")
    with pytest.raises(ConvError, match="trust_code=True"):
        HubModel.from_pretrained(tmp_path / "run")
    assert not (tmp_path / "ran").exists()
    given = HubModel.from_pretrained(tmp_path / "run", base=lambda: digits_vgg(trained=False))
    assert isinstance(given.network, nn.Module)


def newer(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"format": 2}))


BROKEN = {
    "newer": (newer, "format=2. Upgrade reconv"),
    "no plan": (lambda f: (f / "plan.json").unlink(), "must hold plan.json"),
    "cut": (lambda f: (f / "model.safetensors").write_bytes(b"\x08"), "whole and safetensors"),
}


@pytest.mark.parametrize("damage, message", BROKEN.values(), ids=BROKEN)
def test_a_broken_folder_is_an_error_that_says_what(tmp_path, damage, message):
    HubModel(result()).save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(ConvError, match=message):
        HubModel.from_pretrained(tmp_path)
