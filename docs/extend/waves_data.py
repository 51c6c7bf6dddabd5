"""Writes waves.npz: noisy waves of any loudness and pitch, now and then with a glitch."""

import numpy as np


def waves(num: int, rng: np.random.Generator) -> np.ndarray:
    """`[num, 32]`, float32."""
    time = np.linspace(0, 1, 32)
    loudness = rng.gamma(3.0, 0.5, (num, 1))
    pitch, phase = rng.uniform(1, 3, (num, 1)), rng.uniform(0, 2 * np.pi, (num, 1))
    noise = 0.05 * rng.standard_t(3, (num, 32))
    return (loudness * np.sin(2 * np.pi * pitch * time + phase) + noise).astype(np.float32)


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    np.savez("waves.npz", train=waves(2000, rng), valid=waves(250, rng), test=waves(250, rng))
