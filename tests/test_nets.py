"""The trained networks that the other tests stand on load, run, and are good at what they were trained for."""

import pytest
import torch
from nets import NETS, SCRIPTED, first, silero_vad, voices

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
