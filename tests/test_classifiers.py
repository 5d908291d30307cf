"""What randomised classifiers are given: seeds that depend on what they should and on nothing else."""

import numpy as np
import pytest
import torch

from hpt.classifiers import VERDICTS, draw_seeds, draw_uniform, is_randomised


IDS = torch.arange(1000)


def splitmix64(state: int) -> int:
    """One output of SplitMix64 in Python's integers; of state 0 its authors' code gives 0xE220A8397B1DCDAF."""
    bits = 2**64 - 1
    state = (state + 0x9E3779B97F4A7C15) & bits
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & bits
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & bits
    return state ^ (state >> 31)


@pytest.mark.parametrize(("seed", "step", "draw"), [(0, 0, 0), (3, -2, 7), (2**40, VERDICTS, 1)])
def test_seeds_are_splitmix64_of_all_four_numbers(seed, step, draw):
    assert splitmix64(0) == 0xE220A8397B1DCDAF
    ids = [0, 1, 17, 2**62]
    for sample_id, found in zip(ids, draw_seeds(seed, torch.tensor(ids), step, draw).tolist(), strict=True):
        state = 0
        for number in (seed, sample_id, step, draw):
            state = splitmix64((state + number) % 2**64)
        assert found == state >> 1


def test_a_seed_depends_on_its_own_sample_alone():
    together = draw_seeds(5, IDS, 3, 1)
    assert together.dtype == torch.int64 and together.shape == IDS.shape and together.min() >= 0
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw_seeds(5, IDS[order], 3, 1), together[order])
    assert torch.equal(draw_seeds(5, IDS[7:8].int(), 3, 1), together[7:8])


def test_no_two_samples_steps_draws_or_seeds_share_a_seed():
    numbers = [(seed, step, draw) for seed in range(3) for step in (-2, -1, 0, 1, 2, VERDICTS) for draw in range(3)]
    seeds = torch.cat([draw_seeds(seed, IDS, step, draw) for seed, step, draw in numbers])
    assert len(seeds.unique()) == len(numbers) * len(IDS)


def test_seeds_of_neighbours_are_unrelated():
    """Each bit is set in half of the seeds, and flips in half of the steps from a number to the next."""
    for seeds in (
        draw_seeds(0, torch.arange(4000), 0, 0),
        torch.cat([draw_seeds(0, torch.tensor([0]), step, 0) for step in range(4000)]),
        torch.cat([draw_seeds(0, torch.tensor([0]), 0, draw) for draw in range(4000)]),
    ):
        bits = (seeds.numpy()[:, None] >> np.arange(63)) & 1
        for share in (bits.mean(0), (bits[1:] != bits[:-1]).mean(0)):
            assert abs(share - 0.5).max() < 5 * 0.5 / 4000**0.5  # five standard deviations


def test_uniform_draws_follow_from_the_seed_and_are_uniform():
    seeds = draw_seeds(0, IDS, 0, 0)
    numbers = draw_uniform(seeds, 2, 5)
    assert numbers.shape == (1000, 2, 5) and numbers.dtype == torch.float32
    assert torch.equal(draw_uniform(seeds[4:5], 2, 5), numbers[4:5])
    assert 0 <= numbers.min() and numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 5 / (12 * 10_000) ** 0.5
    assert abs(torch.corrcoef(numbers.flatten(1).T).triu(1)).max() < 5 / 1000**0.5


def test_only_what_says_so_is_randomised():
    class Noisy:
        randomised = True

    assert (
        is_randomised(Noisy()) and not is_randomised(torch.nn.Identity()) and not is_randomised(lambda images: images)
    )
