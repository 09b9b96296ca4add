"""From one device to another: a copy that is recorded, and whose gradient comes back to where the value was."""

from __future__ import annotations

from typing import Any

from ..backend import device as places
from ..core.primitive import Case, linear
from ..core.variable import Variable


@linear(
    a=lambda ct, source, target: transfer(ct, target, source),
    cases=[Case((3, 4), source="cpu", target="cpu")],
)
def transfer(xp, a, *, source, target):
    r"""`a`, which lies on the device `source`, on the device `target`. Its gradient comes back to `source`."""
    return places.moved(a, target)


def asarray(x: Any, dtype: Any = None, *, device: Any = None) -> Any:
    """`x` on `device`: "cpu", "cuda" (the device that is current) or "cuda:1"; None leaves it where it is.

        x = tg.asarray(x, device="cuda")

    Numbers, lists and arrays become a plain array, NumPy's or CuPy's, copied only where it has to move or change. A
    Variable stays one, and the move is recorded: its gradient comes back. Raises DeviceError where there is no such
    device.
    """
    if not isinstance(x, Variable):
        return places.asarray(x, dtype, device=device)
    if dtype is not None and x.dtype != dtype:
        x = x.astype(dtype)  # type: ignore[attr-defined]
    if device is None or places.is_on(x._array, device):
        return x
    return transfer(x, x.device, device)
