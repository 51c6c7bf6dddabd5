"""A permutation of [0, N) that is computed where it is asked for, and stored nowhere.

`torch.randperm(N)` is 8 N bytes, 8 GB for a billion data. Here the memory is that of a few keys,
and any position can be looked up by itself, so that to resume an epoch is to go on counting.
"""

from collections.abc import Sequence

import numpy as np

__all__ = ["Permutation"]

# By the chi-square of all N! orders, N = 4, 5, 6, that 6, 8 and 12 rounds fail and 16 pass
# (tests/test_permutation.py).
_NUM_ROUNDS = 16
_MAX = 2**62


class Permutation:
    """A pseudo-random permutation of [0, N), by a Feistel network with cycle walking.

    A number of k bits, 2^k >= N, is cut in two halves L and R, and in turns R <- R xor f(L) and
    L <- L xor f(R), where f mixes the half with the round's key. Each round can be undone, whatever
    f is, so all rounds together permute [0, 2^k). What falls outside of [0, N) goes in again until
    it comes out inside (Black and Rogaway, 2002): on average fewer than two times, as 2^k < 2 N.

    Args:
        num: N, from 1 to 2^62.
        seed: Integers >= 0; each sequence is another permutation.

    Raises:
        ValueError: N is out of range.

    Example:
        >>> order = Permutation(5, (0,))
        >>> sorted(order(np.arange(5)).tolist())
        [0, 1, 2, 3, 4]
    """

    def __init__(self, num: int, seed: Sequence[int]) -> None:
        if not 1 <= num <= _MAX:
            raise ValueError(f"num is {num}; accepted are 1 to 2^62")
        num_bits = max(2, (num - 1).bit_length())
        self.num = num
        self._left, self._right = np.uint64(num_bits // 2), np.uint64(num_bits - num_bits // 2)
        self._mask = np.uint64((1 << int(self._right)) - 1)
        self._keys = np.random.SeedSequence(seed).generate_state(_NUM_ROUNDS, np.uint64)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """What stands at these positions.

        Args:
            positions: Integers in [0, N), of any shape.

        Returns:
            int64, of the same shape.
        """
        found = self._rounds(positions.astype(np.uint64))
        while (outside := found >= self.num).any():
            found[outside] = self._rounds(found[outside])
        return found.astype(np.int64)

    def _rounds(self, x: np.ndarray) -> np.ndarray:
        left, right = x >> self._right, x & self._mask
        for number, key in enumerate(self._keys):
            if number % 2 == 0:
                right = right ^ (_mixed(left, key) >> (_BITS - self._right))
            else:
                left = left ^ (_mixed(right, key) >> (_BITS - self._left))
        return (left << self._right) | right


_BITS = np.uint64(64)
_A, _B = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def _mixed(x: np.ndarray, key: np.uint64) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele et al., 2014), of which the highest bits are taken."""
    x = x + key
    x = (x ^ (x >> np.uint64(30))) * _A
    x = (x ^ (x >> np.uint64(27))) * _B
    return x ^ (x >> np.uint64(31))
