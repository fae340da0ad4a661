"""Array annotations: jaxtyping's, or none where a bundle is opened without it.

A line-side PC opens bundles with numpy, an image decoder and onnxruntime alone; there the names
below accept any subscript and mean nothing.
"""

from typing import Any

try:
    from jaxtyping import (
        Bool,
        Float,
        Float32,
        Float64,
        Int,
        Int32,
        Int64,
        Real,
        Shaped,
        UInt8,
        UInt16,
        UInt32,
        UInt64,
    )
except ModuleNotFoundError:

    class _Unchecked:
        def __class_getitem__(cls, item: Any) -> Any:
            return Any

    Bool = Float = Float32 = Float64 = Int = Int32 = Int64 = Real = _Unchecked  # type: ignore
    Shaped = UInt8 = UInt16 = UInt32 = UInt64 = _Unchecked  # type: ignore


__all__ = [
    "Bool",
    "Float",
    "Float32",
    "Float64",
    "Int",
    "Int32",
    "Int64",
    "Real",
    "Shaped",
    "UInt8",
    "UInt16",
    "UInt32",
    "UInt64",
]
