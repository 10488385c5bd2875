"""fasterai: Tucker and SVD of the weights, at one share of the ranks or of the energy in all layers."""

from __future__ import annotations

from torch import nn

from ..method import Method, Refused, Setting, Subject

KEPT_ENERGY = (0.95, 0.85, 0.7, 0.5)
REMOVED = (0.3, 0.5, 0.7, 0.85)


def decomposed(method: str, subject: Subject, setting: Setting) -> nn.Module:
    from fasterai.misc.conv_decomposer import Conv_Decomposer

    served = [name for name, m in subject.model.named_modules()
              if isinstance(m, nn.Conv2d) and m.groups == 1 and min(m.kernel_size) > 1 and m.in_channels > 4]  # fmt: skip
    if not served:
        raise Refused("it serves dense 2D kernels larger than 1×1, and the network has none but its first")
    return Conv_Decomposer().decompose(subject.model, method=method, layers=served, **setting)


def sweep() -> tuple[Setting, ...]:
    return (*({"percent_removed": share} for share in REMOVED), *({"energy_threshold": e} for e in KEPT_ENERGY))


METHODS = (
    Method("fasterai Tucker", lambda subject, setting: decomposed("tucker", subject, setting), sweep()),
    Method("fasterai SVD", lambda subject, setting: decomposed("svd", subject, setting), sweep()[:4]),
)
