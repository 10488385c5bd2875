"""Which field each living tensor has, through views and writes in place."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from reconv.costing.receptive.combine import concatenate
from reconv.costing.receptive.field import Field
from reconv.costing.receptive.taps import LostError

Box = tuple[tuple[int, int], ...]  # start and size along each axis


@dataclass
class _Storage:
    """The tensors that share one storage. The weak reference keeps its address from being given to another."""

    reference: StorageWeakRef | None
    members: list[TensorWeakRef] = field(default_factory=list)
    tracked: bool = False
    written: Box | None = None  # the part of the first member that holds what its field says; None: all of it

    def living(self) -> Iterator[torch.Tensor]:
        yield from (tensor for member in self.members if (tensor := member()) is not None)


class Memory:
    """Fields by tensor. A tensor that was never put is a constant; None stands for a field that is not known."""

    def __init__(self) -> None:
        self._fields: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._storages: dict[int, _Storage] = {}

    def get(self, tensor: torch.Tensor) -> Field | None:
        if tensor in self._fields:
            known: Field | None = self._fields[tensor]
            return known
        storage = self._storages.get(_address(tensor))
        return None if storage and storage.tracked else Field.of_constant(tensor.shape)

    def put(self, tensor: torch.Tensor, field: Field | None) -> None:
        """The result of an operator: new, or a view of what is there."""
        self._fields[tensor] = field
        storage = self._storages.get(_address(tensor))
        if storage is None:
            storage = _Storage(StorageWeakRef(tensor.untyped_storage()) if tensor.layout is torch.strided else None)
            self._storages[_address(tensor)] = storage
        storage.members.append(TensorWeakRef(tensor))
        storage.tracked |= field is None or field.tracked

    def write(self, tensor: torch.Tensor, field: Field | None, sources: Iterable[torch.Tensor]) -> None:
        """What an operator wrote into `tensor` in place, and so into all that share its storage."""
        before = self.get(tensor)
        if field is before and field is not None:
            return
        storage = self._storages.get(_address(tensor))
        others = [other for other in storage.living() if other is not tensor] if storage else []
        base = storage.members[0]() if storage else None
        if storage and tensor is base:
            storage.written = None
        inside = any(_address(source) == _address(tensor) for source in sources)
        for other in others:
            if _layout(other) == _layout(tensor):
                self._fields[other] = field
            elif storage and other is base:
                self._fields[other] = self._pasted(storage, other, tensor, field, inside)
            else:
                self._fields[other] = None
        self.put(tensor, field)

    def _pasted(
        self, storage: _Storage, base: torch.Tensor, part: torch.Tensor, field: Field | None, inside: bool
    ) -> Field | None:
        """The field of `base` once `part` of it holds `field`.

        What is written first into a constant lies there as if padded; what is then copied from inside to around it
        (circular padding) is padding, too. What lies beside what is there already is another kind of place.
        """
        before, box = self.get(base), _box(base, part)
        if field is None or before is None or box is None:
            return None
        if not before.tracked:
            storage.written = box
        whole = storage.written or tuple((0, size) for size in base.shape)
        if inside and any(_apart(*pair) for pair in zip(box, whole, strict=True)):
            return before
        differing = [axis for axis, pair in enumerate(zip(box, whole, strict=True)) if pair[0] != pair[1]]
        try:
            for axis, (start, _) in enumerate(box):
                if axis not in differing:
                    field = field.slice(axis, -start, 1, base.shape[axis])
            return _spliced(before, field, differing[0], box[differing[0]]) if differing else field
        except LostError:
            return None


def _spliced(before: Field, part: Field, axis: int, place: tuple[int, int]) -> Field:
    """`before` with `part` in its place along an axis."""
    start, size = place
    around = [(0, start), (start + size, before.shape[axis] - start - size)]
    left, right = ([before.slice(axis, at, 1, n)] if n else [] for at, n in around)
    return concatenate([*left, part, *right], axis)


def _address(tensor: torch.Tensor) -> int:
    if tensor.layout is not torch.strided:  # sparse and MKL-DNN tensors have no storage to share
        return id(tensor)
    address: int = tensor.untyped_storage()._cdata
    return address


def _layout(tensor: torch.Tensor) -> tuple[torch.Size, tuple[int, ...], int]:
    return tensor.shape, tensor.stride(), int(tensor.storage_offset())


def _box(base: torch.Tensor, part: torch.Tensor) -> Box | None:
    """Where `part` lies in `base`, if it is a plain slice of it."""
    if part.stride() != base.stride():
        return None
    offset, starts = int(part.storage_offset() - base.storage_offset()), [0] * base.dim()
    for axis in sorted(range(base.dim()), key=base.stride, reverse=True):
        if base.stride(axis):
            starts[axis], offset = divmod(offset, base.stride(axis))
    return None if offset else tuple(zip(starts, part.shape, strict=True))


def _apart(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two (start, size) have nothing in common."""
    return one[0] + one[1] <= other[0] or other[0] + other[1] <= one[0]
