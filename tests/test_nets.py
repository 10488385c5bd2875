"""The trained networks that the other tests stand on load, run, and are good at what they were trained for."""

import pytest
import torch
from nets import NETS, SCRIPTED, first, let_torchvision_import, silero_vad, voices
from torch import nn

from reconv.planning.edits import Fit, apply_edits
from reconv.planning.plan import Edit
from reconv.ruleset import rules_named
from reconv.surgery import clone, find_sites

(FOLD,) = rules_named("fold_batch_norm")

FLOORS = {
    "digit_recognizer": 0.99,
    "ccexam_mnist": 0.99,
    "ccexam_usps": 0.8,  # MNIST's digits, cut and shrunk: not quite USPS
    "ccexam_svhn": 0.7,  # nor are coloured ones house numbers
    "mobilenet_v2": 0.999,  # agreement with itself
    "mtcnn_p": 0.999,
    "mtcnn_r": 0.95,
    "mtcnn_o": 0.95,
    "silero_vad": 0.95,
    "attacut": 0.95,
}


@pytest.mark.parametrize(
    "parts", [{"act_layer": nn.SiLU}, {}, {"apply_act": False}, {"drop_layer": nn.Dropout}], ids=str
)
def test_timms_batch_norm_with_an_activation_is_folded(parts):
    """What it does besides stays: its activation, and in training its dropout."""
    let_torchvision_import()
    from timm.layers import BatchNormAct2d

    torch.manual_seed(0)
    norm = BatchNormAct2d(6, **parts)
    for tensor in (norm.running_mean, norm.weight.data, norm.bias.data):
        tensor.normal_()
    norm.running_var.uniform_(0.5, 2)
    model, x = nn.Sequential(nn.Conv2d(4, 6, 3), norm, nn.ReLU(), nn.Conv2d(6, 3, 1)).eval(), torch.randn(2, 4, 9, 8)
    (first, _) = find_sites(model, (x,)).sites
    assert FOLD.refuse(first) is None
    edit = Edit("0", FOLD.name, *[(p := next(iter(FOLD.propose(first)))).block, 0.0, None, p.absorbs])
    folded, _ = apply_edits(clone(model), {"0": first}, [edit], Fit())
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, BatchNormAct2d) for m in folded.modules())


@pytest.mark.parametrize("net", NETS, ids=str)
def test_network_is_trained_and_its_data_fit(net):
    model, example = net.load(), net.example()
    assert not model.training
    with torch.no_grad():
        model(*example)
    assert first(net.data())[0].shape == example[0].shape
    assert net.score(model) >= FLOORS[net.name]


def test_plain_voice_detector_is_the_scripted_one():
    script = SCRIPTED.load()
    sound = voices(held_out=True).tensors[0][:2]
    with torch.no_grad():
        expected = torch.cat([script(window, 16000) for window in sound.split(512, 1)], 1)
        torch.testing.assert_close(silero_vad()(sound), expected, rtol=1e-4, atol=1e-5)
