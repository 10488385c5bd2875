"""Channels sorted into equal groups so that grouped weights keep the most energy. NumPy only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Energy = NDArray[np.float64]  # (outputs, inputs), what each pair of channels is worth
Labels = NDArray[np.intp]  # the group of each channel
GAIN = 1e-9  # relative; less is rounding, and channels stay where they are
ROUNDS = 6  # of regrouping both sides; later ones gain next to nothing


def co_cluster(
    energy: Energy, groups: int, move_outputs: bool = True, move_inputs: bool = True
) -> tuple[Labels, Labels]:
    """Groups of outputs and of inputs, all of equal size, that keep much of the energy: Σ energy[o, c] of one group.

    Starts from the channels as they stand and from a greedy choice; then outputs and inputs are regrouped in turn
    while that gains. The best found, not the best there is; channels that need not move stay.

    Args:    move_outputs, move_inputs: False keeps that side's channels in their order.
    Returns: the group of each output and of each input
    Example:
             >>> energy = np.kron(np.eye(2), np.ones((3, 2)))[:, [0, 2, 3, 1]]
             >>> co_cluster(energy, 2)
             (array([0, 0, 0, 1, 1, 1]), array([0, 1, 1, 0]))
    """
    outputs, inputs = (np.arange(n) // (n // groups) for n in energy.shape)
    starts = [(outputs, inputs)]
    if move_outputs and move_inputs:
        starts.append(_greedy(energy, groups))
    best: tuple[Labels, Labels] = starts[0]
    for start in starts:
        found = _regrouped(energy, groups, *start, move_outputs, move_inputs)
        if _gains(kept(energy, *found), kept(energy, *best)):
            best = found
    return best


def kept(energy: Energy, outputs: Labels, inputs: Labels) -> float:
    """Energy inside the groups."""
    return float(energy[outputs[:, None] == inputs[None, :]].sum())


def _gains(new: float, old: float) -> bool:
    return new > old * (1 + GAIN)


def _regrouped(
    energy: Energy, groups: int, outputs: Labels, inputs: Labels, move_outputs: bool, move_inputs: bool
) -> tuple[Labels, Labels]:
    """Outputs, then inputs, assigned anew to where their energy is, while that gains."""
    best = kept(energy, outputs, inputs)
    for _ in range(ROUNDS):
        before = best
        if move_outputs:
            outputs, best = _better(energy @ _one_hot(inputs, groups), outputs, best)
        if move_inputs:
            inputs, best = _better(energy.T @ _one_hot(outputs, groups), inputs, best)
        if best == before:
            break
    return outputs, inputs


def _better(worth: Energy, labels: Labels, best: float) -> tuple[Labels, float]:
    """Labels that are worth more, and what they are worth; the given ones where none are found."""
    trial = _assigned(worth)
    now = float(np.take_along_axis(worth, trial[:, None], 1).sum())
    return (trial, now) if _gains(now, best) else (labels, best)


def _assigned(worth: Energy) -> Labels:
    """A group for each channel, all equally large: each takes its best that has room, the surest first."""
    channels, groups = worth.shape
    worth, labels = worth.copy(), np.full(channels, -1)
    room = np.full(groups, channels // groups)
    while (left := np.flatnonzero(labels < 0)).size:
        choice = worth[left].argmax(1)
        second, first = np.partition(worth[left], -2, axis=1)[:, -2:].T
        surest = np.argsort(second - first, kind="stable")
        for group in np.unique(choice):
            takers = left[surest[choice[surest] == group][: room[group]]]
            labels[takers] = group
            room[group] -= takers.size
        worth[:, room == 0] = -np.inf
    return labels


def _greedy(energy: Energy, groups: int) -> tuple[Labels, Labels]:
    """One group after the other: around the strongest output left, its inputs, their outputs, and so on."""
    outputs, inputs = (np.full(n, groups - 1) for n in energy.shape)
    n_out, n_in = (n // groups for n in energy.shape)
    free_out, free_in = (np.arange(n) for n in energy.shape)
    for group in range(groups - 1):
        left = energy[np.ix_(free_out, free_in)]
        some_out = left.sum(1).argmax(keepdims=True)
        for _ in range(4):
            some_in = _strongest(left[some_out].sum(0), n_in)
            some_out = _strongest(left[:, some_in].sum(1), n_out)
        outputs[free_out[some_out]], inputs[free_in[some_in]] = group, group
        free_out, free_in = np.delete(free_out, some_out), np.delete(free_in, some_in)
    by_first_input = np.argsort(np.unique(inputs, return_index=True)[1])
    names = np.empty(groups, np.intp)
    names[by_first_input] = np.arange(groups)
    return names[outputs], names[inputs]


def _strongest(values: Any, count: int) -> Labels:
    return np.argsort(-values, kind="stable")[:count]


def _one_hot(labels: Labels, groups: int) -> Energy:
    return np.eye(groups)[labels]
