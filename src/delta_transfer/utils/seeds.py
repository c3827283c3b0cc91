"""Seeds for single purposes, derived from the user's seed."""

import hashlib


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Derive a 64-bit seed from the user's seed and a purpose.

    Different purposes have unrelated seeds, so that one draw never changes another.

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
