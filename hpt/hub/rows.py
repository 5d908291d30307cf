"""Rows that go with a model: those of its own weights and of the vanilla model's, under names that say just that."""

from collections.abc import Iterable
from dataclasses import replace

from hpt.evaluation.rows import LARGE_EPS, WORST_CASE, Row
from hpt.json_files import digest


THIS, VANILLA, PROXY, OTHER = "this model", "vanilla", "proxy", "other"


def publish_rows(rows: Iterable[Row], weights: str, vanilla_weights: str | None) -> list[Row]:
    """The rows measured on the weights of the model or of its vanilla original, renamed; others are left out.

    So are those of functions that compute with these weights, such as a defence around the model.

    Args:
        rows (`Iterable[Row]`): Of any evaluations, each with the hash of the weights that it was measured on.
        weights, vanilla_weights (`str`): From [`hash_weights`]; `None` if the original isn't known.
    """
    rows = [row for row in rows if row.identified_by is None]
    roles = {weights: THIS} | ({vanilla_weights: VANILLA} if vanilla_weights else {})
    names = {row.model: roles[row.weights] for row in rows if row.weights in roles}
    return [_renamed(row, names) for row in rows if row.weights in roles]


def _renamed(row: Row, names: dict[str, str]) -> Row:
    """A row whose models are named by what they are: of others that are attacked, the proxy is known as one."""
    parameters = row.parameters | ({"proxy": PROXY} if "proxy" in row.parameters else {})
    other = OTHER if "attacked_weights" in parameters and not row.named_attack.needs_proxy else PROXY
    attacked = row.attacked and names.get(row.attacked, other)
    return replace(row, model=names[row.model], attacked=attacked, parameters=parameters)


def shown_rows(rows: list[Row]) -> list[Row]:
    """Without checks, and without what a later row says again, or better.

    Of the worst cases, which grow with the attacks that ran, those over the most attacks stay.
    """
    others = {_measurement(row): row for row in rows if row.attack not in (LARGE_EPS, WORST_CASE)}
    worst = {}
    for row in rows:
        key = (row.model, row.sample_set, row.eps, row.norm)
        if row.attack == WORST_CASE and len(row.parameters["attacks"]) >= len(_attacks(worst.get(key))):
            worst[key] = row
    return [*others.values(), *worst.values()]


def _measurement(row: Row) -> tuple:
    """What two rows share that are the same measurement: model, samples and attack."""
    names = "model sample_set attacked attack eps norm steps step_size restarts".split()
    return (*(getattr(row, name) for name in names), digest(row.strength))


def _attacks(row: Row | None) -> list[str]:
    return row.parameters["attacks"] if row else []


def pair_up(rows: list[Row]) -> list[tuple[Row, Row | None]]:
    """Each row of the model beside the vanilla model's under the same attack on the same samples, if it was measured.

    The attack is one on the model scored; or both on the same images, made against a third or the vanilla model.
    """
    vanilla = {_comparison(row): row for row in rows if row.model == VANILLA}
    return [(row, vanilla.get(_comparison(row))) for row in rows if row.model == THIS]


def _comparison(row: Row) -> tuple:
    """What two rows share that can be compared: their samples and attack."""
    attacked = "itself" if row.attacked in (THIS, VANILLA) else row.attacked
    attack = (row.attack, row.eps, row.norm, row.steps, row.step_size, row.restarts, attacked)
    return (*row.sample_set, row.n) + attack + (digest(row.strength), *row.left_out)


def radii(rows: list[Row]) -> dict[tuple, list[Row]]:
    """Rows of attacks on the model scored at several radii, by samples, norm and kind of attack, the strongest first.

    Returns:
        `dict`: from samples, norm and what else is the same at all radii; worst cases first.
    """
    kinds: dict[tuple, list[Row]] = {}
    for row in rows:
        if row.eps is not None and row.attacked == row.model:
            ratio = row.step_size and round(row.step_size / row.eps, 4)
            over = tuple(_attacks(row)) if row.is_worst_case else ()
            key = (row.sample_set, row.norm, row.attack, row.steps, ratio, over)
            kinds.setdefault(key, []).append(row)
    several = {
        key: attacked
        for key, attacked in kinds.items()
        if len({row.eps for row in attacked if row.model != VANILLA}) > 1
    }
    return dict(sorted(several.items(), key=lambda item: not item[1][0].is_worst_case))
