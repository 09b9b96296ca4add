"""What other libraries ask a Variable for: a namespace of the array API standard, its values by DLPack.

Values of constants are handed out. A differentiated Variable is not: what another library computes from it
would have lost its gradient in silence.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..core.variable import Variable
from ..errors import ArgumentError, UnsupportedError

VERSIONS = ("2021.12", "2022.12", "2023.12", "2024.12")


def array_namespace(self: Variable, /, *, api_version: str | None = None) -> Any:
    """The functions of the array API standard, for code that does not say which library it computes with."""
    if api_version not in (None, *VERSIONS):
        raise ArgumentError(
            f"__array_namespace__: `api_version` must be one of {', '.join(VERSIONS)}, and {api_version!r} came."
        )
    return import_module("tapegrad.array_api")  # few programs ask


def dlpack(
    self: Variable,
    *,
    stream: Any = None,
    max_version: tuple[int, int] | None = None,
    dl_device: Any = None,
    copy: bool | None = None,
) -> Any:
    """The values of a constant as a DLPack capsule: shared and read-only, or a copy for one who cannot read that they are."""
    array = exported(self)
    if max_version is None or max_version[0] < 1:  # has no way to say that an array is read-only
        return array.copy().__dlpack__(stream=stream)
    return array.__dlpack__(stream=stream, max_version=max_version, dl_device=dl_device, copy=copy)


def dlpack_device(self: Variable) -> Any:
    """Where the values of a constant lie: DLPack's kind of device, and its number."""
    return exported(self).__dlpack_device__()


def exported(v: Variable) -> Any:
    """The array of a constant."""
    if v._slot != 0:
        raise UnsupportedError(
            "a differentiated Variable cannot be handed out by DLPack: its gradient would be lost in silence.\n"
            "  Use tg.stop_gradient(v) for a constant, or v.value.copy() for a plain array of your own."
        )
    return v.value


METHODS = {"__array_namespace__": array_namespace, "__dlpack__": dlpack, "__dlpack_device__": dlpack_device}

for name, method in METHODS.items():
    setattr(Variable, name, method)
