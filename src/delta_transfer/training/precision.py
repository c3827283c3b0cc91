"""In which precision a network computes; its weights are float32 in each."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from delta_transfer.errors import UserError

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
"""As Lightning calls them; the mixed ones are autocast."""

_DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def find_precision(name: str, device: torch.device) -> Precision:
    """What `--precision` means on a device.

    Args:
        name: `"32"`, `"bf16"`, `"16"`, or `"auto"`: half precision on CUDA GPUs, bfloat16 on those
            that compute in it.
        device: of the run.

    Raises:
        UserError: if the device does not compute in it.
    """
    if name == "16" and device.type == "cpu":
        raise UserError(
            "--precision 16 needs a GPU, float16 is not for training on a CPU: give bf16, or 32 "
            "(which is the faster one on most CPUs)"
        )
    if name == "auto" and device.type == "cuda":
        name = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "16"
    if name == "bf16":
        return "bf16-mixed"
    return "16-mixed" if name == "16" else "32-true"


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """A context in which networks compute in a precision."""
    if precision == "32-true":
        return nullcontext()
    return torch.autocast(device.type, dtype=_DTYPES[precision])
