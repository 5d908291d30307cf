"""Which batches of an evaluation are attacked together, so that the samples which are left fill batches.

Where samples leave an attack as soon as they are broken, the last of each batch would go through thousands of steps
alone. So several batches, a pool, take each step together, and those that are left in all of them go through the model
in batches of the usual size. Which batches make a pool follows from their number and the size of the images alone: no
number of processes changes it, and what a kill interrupts is made again in the same pool.
"""

import math


MOST_VALUES = 2**25  # of a pool's images; an attack keeps about a dozen tensors of that size, 128 MiB each


def make_pools(num_batches: int, values: int) -> list[range]:
    """Consecutive batches that are attacked together.

    There are about as many pools as batches in a pool. Larger ones would leave nothing to the other processes, and
    lose more of a row when they are killed.

    Args:
        num_batches (`int`): Of a row, at least 1.
        values (`int`): Of the images of a batch: `batch_size * 3 * height * width`.
    """
    largest = max(1, min(math.ceil(math.sqrt(num_batches)), MOST_VALUES // values))
    number = math.ceil(num_batches / largest)
    ends = [num_batches * place // number for place in range(number + 1)]  # whose sizes differ by 1 at most
    return [range(*pair) for pair in zip(ends[:-1], ends[1:], strict=True)]
