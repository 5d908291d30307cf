"""Square: a random search over squares that needs no gradients, in l_inf (arXiv 1912.00049)."""

import math

import torch

from hpt.attacks.base import Attack, AttackResult, check_count, project, uniform_noise
from hpt.attacks.batch import Batch
from hpt.attacks.queries import judge


# Share of the pixels that a square covers, as a multiple of its first value, from each of these queries in 10,000 on.
SCHEDULE = ((10, 2), (50, 4), (200, 8), (500, 16), (1000, 32), (2000, 64), (4000, 128), (6000, 256), (8000, 512))


class Square(Attack):
    """Square attack (Andriushchenko et al., 2020, arXiv 1912.00049, Algorithms 1 and 2), in l_inf.

    It starts from vertical stripes of +-eps; each query sets the colours of a random square to +-eps, and keeps the
    change if it lowers the margin of the label. It sees logits alone: where it beats gradients, they are masked.

    Args:
        eps (`float`): Radius in [0, 1] pixels.
        queries (`int`, *optional*, defaults to `5000`): Forward passes per image, at least 1.
        norm, seed: see [`Attack`].
    """

    name = "square"
    uses_gradients = False
    leaves_early = True
    first_share = 0.8  # p_init
    reported = ("queries",)

    def __init__(self, *, eps: float, queries: int = 5000, norm: str = "linf", seed: int = 0):
        super().__init__(eps=eps, norm=norm, seed=seed)
        check_count(queries, "queries")
        self.queries = queries

    def most_passes(self, num_classes: int) -> int:
        return self.queries

    def _run(self, classifier, batch: Batch) -> AttackResult:
        channels, height, width = batch.images.shape[1:]
        adversarial = batch.images.clone()
        stripes, draws = self._draw(batch)
        point = project(batch.images + batch.eps * stripes, batch, self.norm)
        loss, right = judge(classifier, point, batch.labels, self.seeds(batch, 0))
        place = torch.arange(len(adversarial), device=adversarial.device)
        for query in range(1, self.queries + 1):
            if not right.all():
                adversarial[place[~right]] = point[~right]
                place, point, loss = (values[right] for values in (place, point, loss))
                batch = batch.take(right)
            if len(place) == 0 or query == self.queries:
                break
            side = square_side(query - 1, self.queries, self.first_share, height, width)
            drawn = draws[place, query]
            colours, places = drawn[:, :channels].sign(), (drawn[:, channels:] + 1) / 2
            square = (
                _inside(places[:, 0], side, height)[:, None, :, None]
                & _inside(places[:, 1], side, width)[:, None, None, :]
            )
            moved = point + 2 * batch.eps * square * colours[:, :, None, None]
            moved = project(moved, batch, self.norm)
            moved_loss, right = judge(classifier, moved, batch.labels, self.seeds(batch, query))
            better = (moved_loss > loss) | ~right
            point = torch.where(better[:, None, None, None], moved, point)
            loss = torch.where(better, moved_loss, loss)
        adversarial[place] = point
        return AttackResult(adversarial, torch.zeros(len(adversarial), dtype=torch.bool, device=adversarial.device))

    def _draw(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """All that chance decides, drawn ahead so that it depends on the sample alone.

        Returns:
            stripes +-1 of shape `(batch, channels, 1, width)`, and numbers in [-1, 1) of shape
            `(batch, queries, channels + 2)`: a colour for each channel, the square's row and column.
        """
        number, channels, _, width = batch.images.shape
        size = channels * width + self.queries * (channels + 2)
        draws = uniform_noise(batch.images.new_empty(number, size), self.seed, batch.sample_ids)
        stripes, draws = draws.split([channels * width, self.queries * (channels + 2)], dim=1)
        return stripes.reshape(number, channels, 1, width).sign(), draws.reshape(number, self.queries, channels + 2)


def square_side(query: int, queries: int, first_share: float, height: int, width: int) -> int:
    """Side of the square in pixels at a query, shrinking as section 4.1 says, rescaled to the number of queries."""
    divisors = [divisor for start, divisor in SCHEDULE if query * 10_000 // queries > start]
    share = first_share / (divisors[-1] if divisors else 1)
    return min(max(round(math.sqrt(share * height * width)), 1), height, width)


def _inside(place: torch.Tensor, side: int, length: int) -> torch.Tensor:
    """Which of `length` pixels a square of that side covers, `(batch, length)`, for its place in [0, 1)."""
    start = (place * (length - side + 1)).long()[:, None]
    pixel = torch.arange(length, device=place.device)
    return (pixel >= start) & (pixel < start + side)
