"""Philox 4x32-10, random numbers by counter (Salmon et al. 2011), over whole arrays of counters.

Number 10^9 of a stream costs no more than number 0. Knows no sentence; numpy's own Philox has one counter at a time.
"""

import numpy as np

MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
WEYL = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10
LOW, SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)

Words = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # 32-bit values, held in uint64


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Four 32-bit values per counter. counter: four arrays of one shape; key: two 32-bit numbers."""
    a, b, c, d = counter
    for number in range(ROUNDS):
        left, right = (np.uint64((k + number * w) & 0xFFFFFFFF) for k, w in zip(key, WEYL))
        first, second = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b, c, d = (second >> SHIFT) ^ b ^ left, second & LOW, (first >> SHIFT) ^ d ^ right, first & LOW
    return a, b, c, d


def uniforms(seed: int, index: np.ndarray, attempt: np.ndarray, block: int) -> np.ndarray:
    """[B, 4] numbers inside (0, 1), the `block`-th four of each stream (seed, index, attempt). index: [B], 64 bits."""
    index, attempt = index.astype(np.uint64), attempt.astype(np.uint64)
    counter = (np.full_like(index, block), index & LOW, index >> SHIFT, attempt)
    drawn = philox(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    return (np.stack(drawn, -1).astype(np.float64) + 0.5) * 2.0**-32
