"""Random numbers that belong to one attack, one image and one restart."""

import zlib

import numpy as np


def generator(seed: int, attack: str, image_id: int, restart: int = 0) -> np.random.Generator:
    """Return a random generator; generators with different arguments are independent.

    Args:
        seed: of the whole attack, not negative.
        attack: name of the attack that draws.
        image_id: number of the image, not negative.
        restart: number of the restart, not negative.
    """
    return np.random.default_rng([seed, zlib.crc32(attack.encode()), image_id, restart])
