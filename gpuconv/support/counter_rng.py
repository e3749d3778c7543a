"""Random bits as a function of a seed and a position, the same on every backend and computed where they are needed.

A generator with a hidden state would belong to one device, and would have to be saved with a checkpoint. Here number i
of a stream depends on nothing but seed, stream and i, so NumPy and CuPy give the same bits, nothing crosses the bus,
and two integers are the whole state of a stream. The function is SplitMix64 (Steele, Lea & Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014, figure 16): a bijection of 64-bit words, so the numbers of a stream are
all different.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np

from gpuconv.typing import Array

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def bits(xp: ModuleType, seed: int, stream: int, count: int) -> Array:
    """Return `count` different 64-bit words, as uint64."""
    start = mix(seed ^ mix(stream))
    z: Array = xp.arange(1, count + 1, dtype=np.uint64)
    z *= np.uint64(GOLDEN)
    z += np.uint64(start)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z ^= z >> np.uint64(shift)
        z *= np.uint64(factor)
    z ^= z >> np.uint64(31)
    return z


def mix(word: int) -> int:
    """Return the first word of SplitMix64 from a seed.

    >>> hex(mix(0))  # as published with the algorithm's reference code
    '0xe220a8397b1dcdaf'
    """
    z = (word + GOLDEN) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def coin(xp: ModuleType, seed: int, stream: int, count: int, p: float) -> Array:
    """Return `count` booleans, each True with probability `p`.

    >>> float(coin(np, 1, 0, 100_000, 0.3).mean())
    0.29953
    """
    kept: Array = bits(xp, seed, stream, count) < np.uint64(min(int(p * 2**64), MASK))
    return kept


def permutation(xp: ModuleType, seed: int, stream: int, count: int) -> Array:
    """Return the numbers 0 to count - 1 in random order.

    >>> permutation(np, 1, 0, 5)
    array([0, 4, 3, 2, 1])
    """
    order: Array = xp.argsort(bits(xp, seed, stream, count))  # no ties, so every algorithm sorts alike
    return order


def seed_of(rng: int | np.random.Generator | None) -> int:
    """Draw a 63-bit seed from a generator, or from one seeded with an integer; for None, from the system."""
    return int(generator(rng, "seed_of").integers(2**63 - 1))


def generator(rng: int | np.random.Generator | None, caller: str) -> np.random.Generator:
    """Return the generator for an argument `rng`: itself, or one with that seed; None takes a seed from the system.

    Raises
    ------
    TypeError
        If it is neither: a float, a bool, np.random itself, or a RandomState, whose numbers NumPy has frozen and which
        has no children for the layers of a model.
    ValueError
        If the seed is negative.
    """
    given: object = rng
    if isinstance(given, (np.random.RandomState, ModuleType)):
        raise TypeError(
            f"{caller}: rng={rng!r} is of NumPy's old kind. Pass a seed, or a generator of the new: "
            "np.random.default_rng(seed)."
        )
    if isinstance(given, (bool, np.bool_, str, bytes, float)):
        raise TypeError(f"{caller}: rng={rng!r} is neither a seed, which is an integer, nor a numpy Generator.")
    try:
        return np.random.default_rng(given.item() if isinstance(given, np.ndarray) and not given.ndim else rng)
    except TypeError:
        raise TypeError(
            f"{caller}: rng={rng!r} is neither a seed, which is an integer, nor a numpy Generator."
        ) from None
    except ValueError:
        raise ValueError(f"{caller}: rng={rng!r}, but a seed must be at least 0.") from None
