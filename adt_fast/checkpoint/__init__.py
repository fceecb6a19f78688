"""Checkpoints: tensors and plain metadata in one safetensors file, written whole or not at all, read without pickle.

`file.py` has the format, `state.py` packs nested states into it, `model.py` has models, those in the files of others as
well. Their layouts are in `adt_fast.checkpoint_layouts`; what is in a pickle is read by torch.load(weights_only=True)
alone.
"""

from .file import FORMAT_VERSION, CheckpointError, digest, load_checkpoint, save_checkpoint
from .model import digest_of_model, load_model, read_model, save_model
from .state import load_state, pack_state, unpack_state

__all__ = [
    "FORMAT_VERSION",
    "CheckpointError",
    "digest",
    "digest_of_model",
    "load_checkpoint",
    "load_model",
    "load_state",
    "pack_state",
    "read_model",
    "save_checkpoint",
    "save_model",
    "unpack_state",
]
