"""Seeds for single purposes, derived from the one seed that a user gives."""

import hashlib


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 64-bit seed that is a pure function of the user's seed and of what it is for.

    Different purposes give unrelated seeds, so that one draw never changes another.

    Args:
        seed: the user's seed.
        purpose: what is drawn, for example `"order", 3` for the order of epoch 3.

    Returns:
        A number from 0 to 2**64 - 1, the same on every machine.

    Example:
        >>> derive_seed(0, "order", 3) == derive_seed(0, "order", 3)
        True
        >>> derive_seed(0, "order", 3) == derive_seed(0, "order", 4)
        False
    """
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
