"""What float32 convolutions and matrix products are computed in, whatever the caller's settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_OPERATIONS = (("cuda", "conv"), ("cuda", "rnn"), ("cuda", "matmul"), ("mkldnn", "matmul"))
_C: Any = torch._C  # torch.backends has the same, but refuses to set it after disable_global_flags()


@contextmanager
def float32_arithmetic(device: torch.device, *, tf32: bool = False) -> Iterator[None]:
    """Without autocast; on CUDA in IEEE float32, or in TF32 where that is wanted, even where PyTorch's default differs.

    PyTorch has two sets of settings, an older and a newer one, and complains when the older is read while the two
    differ, as :func:`torch.backends.cudnn.flags` does. So both are set; afterwards both are as they were.
    """
    with torch.autocast(device.type, enabled=False):
        if device.type != "cuda":
            yield
            return
        own, older = _take_settings()
        try:
            _set_older(tf32, "high" if tf32 else "highest")
            for backend, operation in _OPERATIONS:
                precision = "tf32" if tf32 and backend == "cuda" else "ieee"
                _C._set_fp32_precision_setter(backend, operation, precision)
            yield
        finally:
            _set_older(*older)
            for (backend, operation), precision in zip(_OPERATIONS, own, strict=True):
                _C._set_fp32_precision_setter(backend, operation, precision)


def _set_older(cudnn_allow_tf32: bool, matmul_precision: str) -> None:
    _C._set_cudnn_allow_tf32(cudnn_allow_tf32)
    torch.set_float32_matmul_precision(matmul_precision)


def _take_settings() -> tuple[list[str], tuple[bool, str]]:
    """The newer settings, and the older ones of convolutions and of products. Leaves the newer ones at "ieee"."""
    own = [_own_precision(*one) for one in _OPERATIONS]
    for one in _OPERATIONS:
        _C._set_fp32_precision_setter(*one, "ieee")
    try:
        cudnn_allow_tf32 = _C._get_cudnn_allow_tf32()
    except RuntimeError:  # it differs from "ieee"
        cudnn_allow_tf32 = True
    return own, (cudnn_allow_tf32, torch.get_float32_matmul_precision())


def _own_precision(backend: str, operation: str) -> str:
    """What a newer setting is to be set to again: "none" where it follows the more general ones.

    Its getter gives theirs then; that it follows them shows when they change. Where PyTorch's default is TF32 as long
    as nothing more general is set, there is no way back to that, but only to TF32.
    """
    get, put = _C._get_fp32_precision_getter, _C._set_fp32_precision_setter
    now, general, of_all = get(backend, operation), get(backend, "all"), get("generic", "all")
    for_backend, for_operation = set(), set()
    for precision in ("ieee", "tf32"):
        put("generic", "all", precision)
        for_backend.add(get(backend, "all"))
    for precision in ("ieee", "tf32"):
        put(backend, "all", precision)
        for_operation.add(get(backend, operation))
    put("generic", "all", of_all)
    put(backend, "all", general if len(for_backend) == 1 else "none")
    return now if len(for_operation) == 1 or now != general else "none"
