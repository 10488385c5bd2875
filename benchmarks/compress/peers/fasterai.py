"""fasterai: Tucker and SVD of the weights, at one share of the ranks or of the energy in all layers."""

from __future__ import annotations

from torch import nn

from ..method import Method, Refused, Setting, Subject, first_conv


def decomposed(method: str, subject: Subject, setting: Setting) -> nn.Module:
    from fasterai.misc.conv_decomposer import Conv_Decomposer

    spared = first_conv(subject.model)
    served = [name for name, m in subject.model.named_modules()
              if isinstance(m, nn.Conv2d) and m.groups == 1 and min(m.kernel_size) > 1 and m is not spared]  # fmt: skip
    if not served:
        raise Refused("it serves dense 2D kernels larger than 1×1, and the network has none but its first")
    return Conv_Decomposer().decompose(subject.model, method=method, layers=served, **setting)


def removed(*shares: float) -> tuple[Setting, ...]:
    return tuple({"percent_removed": share} for share in shares)


def kept(*shares: float) -> tuple[Setting, ...]:
    return tuple({"energy_threshold": share} for share in shares)


METHODS = (
    Method("fasterai Tucker", lambda subject, setting: decomposed("tucker", subject, setting),
           removed(0.5, 0.7) + kept(0.85, 0.7)),
    Method("fasterai SVD", lambda subject, setting: decomposed("svd", subject, setting), removed(0.5, 0.75)),
)  # fmt: skip
