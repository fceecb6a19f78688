"""NoiseStream: an explicit, restorable stream of random numbers for the operators."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ._support.checks import check_int

# The widths of the fields of the Philox counter (csrc/math/philox.h).
MAX_OFFSET = 2**40
"""Draws that a stream has."""
MAX_SAMPLES = 2**24
"""Samples in a draw, for each example."""
MAX_EXAMPLES = 2**32
"""Examples in a draw."""
MAX_BLOCKS = 2**32
"""Blocks of four numbers for an example."""


class NoiseStream:
    """A Philox4x32-10 key and counter, held in a small tensor on the device.

    The normal that an operator uses for (sample, example, element) depends on these three, on ``seed`` and on the
    stream's offset plus the operator's ``draw``, and on nothing else: not on the batch size, the number of samples,
    threads, device, dtype or memory layout. Every call of an operator uses one draw; after a group of calls,
    :meth:`advance` moves the offset past the draws used. Kernels read the tensor on the device, so a captured CUDA
    graph that ends with ``advance`` draws new noise on every replay.

    Args:
        seed: any integer in ``[-2**63, 2**63)``.
        device: where ``state`` lives.
        offset: draws already used, in ``[0, 2**40)``.

    Raises:
        TypeError: if ``seed`` or ``offset`` is not an integer.
        ValueError: if either is out of range.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu", offset: int = 0) -> None:
        check_int("seed", seed, -(2**63), 2**63)
        check_int("offset", offset, 0, MAX_OFFSET)
        with torch.inference_mode(False):  # for the state is advanced in place wherever it is used
            self.state = torch.tensor([seed, offset], dtype=torch.int64, device=device)
            """int64 tensor ``[2]``: (seed, offset). Pass it to the operators as ``noise``."""

    @property
    def seed(self) -> int:
        """The key. Reading it waits for the device."""
        return int(self.state[0])

    @property
    def offset(self) -> int:
        """Draws used so far. Reading it waits for the device."""
        return int(self.state[1])

    @property
    def device(self) -> torch.device:
        """Where the state is."""
        return self.state.device

    def advance(self, draws: int = 1) -> None:
        """Moves past ``draws`` draws, in place and on the device, without waiting for it."""
        check_int("draws", draws, 0, MAX_OFFSET)
        self.state[1].add_(draws)

    def to(self, device: torch.device | str) -> NoiseStream:
        """A stream at the same place on another device."""
        return NoiseStream(self.seed, device, self.offset)

    def state_dict(self) -> dict[str, int]:
        """``{"seed": int, "offset": int}``: all there is to save."""
        return {"seed": self.seed, "offset": self.offset}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restores what :meth:`state_dict` gave, in place, so that captured graphs see it.

        Raises:
            TypeError: if ``state`` is not a mapping, or a value not an integer.
            ValueError: if a key is missing or unknown, or a value is out of range.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a dict with the keys 'seed' and 'offset', got {type(state).__name__}")
        if set(state) != {"seed", "offset"}:
            raise ValueError(f"state must have the keys 'seed' and 'offset', got {sorted(state)}")
        check_int("seed", state["seed"], -(2**63), 2**63)
        check_int("offset", state["offset"], 0, MAX_OFFSET)
        self.state.copy_(torch.tensor([state["seed"], state["offset"]], dtype=torch.int64, device="cpu"))

    def __repr__(self) -> str:
        return f"NoiseStream(seed={self.seed}, device='{self.device}', offset={self.offset})"


def seeded_by_torch(device: torch.device | None = None) -> NoiseStream:
    """A stream whose seed is drawn from torch's default generator, so that ``torch.manual_seed`` governs.

    Args:
        device: where its state lives. Default: None, the CPU.
    """
    return NoiseStream(int(torch.randint(2**62, ())), device or "cpu")
