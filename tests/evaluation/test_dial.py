"""The dial: a point is measured as the evaluator measures a model of its weights, and a rule says which is taken."""

import json
from dataclasses import replace

import pytest
from helpers import assert_same, make_benchmark, make_clip, weights

from hpt import InputError, RobustnessEvaluator, ZeroShotClassifier
from hpt.evaluation.dial import DialPoint, check_rule, choose_point, measure_dial
from hpt.evaluation.dial_report import describe_dial, format_points, parse_choice
from hpt.evaluation.rows import CLEAN, wilson_interval
from hpt.evaluation.work import Work
from hpt.json_files import sealed
from hpt.models.interpolation import Endpoints, make_grid
from hpt.models.weights import hash_weights


GRID = make_grid([0, 0.5, 1])


def make_endpoints(average: bool = False) -> Endpoints:
    vanilla, final, between = (make_clip(seed)[0].state_dict() for seed in (0, 1, 2))
    return Endpoints(vanilla, final, between if average else None)


def make_evaluator(folder=None, **settings) -> RobustnessEvaluator:
    settings = {"attacks": "pgd:steps=3", "eps": 8 / 255, "max_samples": 9, "batch_size": 4} | settings
    return RobustnessEvaluator(output_dir=folder, **settings)


@pytest.fixture
def images():
    return replace(make_benchmark(12), split="validation")


@pytest.fixture
def skeleton() -> ZeroShotClassifier:
    """A classifier of the endpoints' architecture, with weights of its own."""
    return ZeroShotClassifier(*make_clip(7))


def test_points_are_measured_as_the_evaluator_measures_models(images, skeleton):
    before, endpoints = weights(skeleton.model), make_endpoints(average=True)
    grid = make_grid([0, 0.6], [0, 0.5])
    points = measure_dial(skeleton, endpoints, images, make_evaluator(), grid)
    assert_same(weights(skeleton.model), before)
    assert [(point.t, point.u) for point in points] == grid
    for point in points:
        model, processor = make_clip(0)
        model.load_state_dict(endpoints.at(point.t, point.u))
        clean, *_, worst = make_evaluator()(model, processor, images, name="point")
        assert clean.attack == CLEAN and worst.attack == "worst case"
        assert (point.clean, point.robust, point.num_samples) == (clean.accuracy, worst.accuracy, 9)
        assert point.weights == hash_weights(model.state_dict())
        right = round(9 * point.robust)
        assert point.accuracies[1] == (point.robust, *wilson_interval(right, 9))
    assert len({point.weights for point in points}) == 4


class Cut(Exception):
    pass


def test_a_dial_that_was_cut_off_goes_on(images, skeleton, tmp_path, monkeypatch):
    """Batches that are there aren't measured again, and the points are the same."""
    whole = measure_dial(skeleton, make_endpoints(), images, make_evaluator(), GRID)
    attacked, work_off = [], Work._work_off

    def cut_off_after(number):
        def cut(self, *arguments):
            if len(attacked) == number:
                raise Cut
            attacked.append(arguments[1])
            return work_off(self, *arguments)

        monkeypatch.setattr(Work, "_work_off", cut)

    for number in (4, 9, 100):
        cut_off_after(number)
        try:
            points = measure_dial(skeleton, make_endpoints(), images, make_evaluator(tmp_path), GRID)
        except Cut:
            assert number < 100
    assert points == whole
    assert len(attacked) == 3 * 2 * 3  # points, clean and attacked, batches: each once


def test_results_of_other_weights_are_refused(images, skeleton, tmp_path):
    measure_dial(skeleton, make_endpoints(), images, make_evaluator(tmp_path), GRID)
    other = Endpoints(make_clip(0)[0].state_dict(), make_clip(5)[0].state_dict())
    with pytest.raises(InputError, match="results from other settings for model t=0.5 .weights"):
        measure_dial(skeleton, other, images, make_evaluator(tmp_path), make_grid([0.5]))


@pytest.mark.parametrize("split", ["test", "testing", "eval"])
def test_a_test_split_is_refused(images, skeleton, split):
    with pytest.raises(InputError, match=f"random .{split}. is what models are tested on: choose on training images"):
        measure_dial(skeleton, make_endpoints(), replace(images, split=split), make_evaluator(), GRID)


@pytest.mark.parametrize(
    ("settings", "grid", "line"),
    [
        ({"attacks": []}, GRID, "under attacks on the model, one or several, at one eps"),
        ({"eps": [1 / 255, 2 / 255]}, GRID, "under attacks on the model, one or several, at one eps"),
        ({}, [(0.5, 0.5)], "There is no average to go to"),
        ({}, [(0.5, 0), (2, 0)], "t is 2, but must be between 0"),
        ({"attacks": "apgd-t"}, GRID, "apgd-t isn't defined for the 3 classes"),
    ],
    ids=["no attack", "several radii", "no average", "outside", "undefined"],
)
def test_what_cannot_be_measured_is_refused(images, skeleton, settings, grid, line):
    before = weights(skeleton.model)
    with pytest.raises(InputError, match=line):
        measure_dial(skeleton, make_endpoints(), images, make_evaluator(**settings), grid)
    assert_same(weights(skeleton.model), before)


# The rule


def point(t: float, clean: int, robust: int, u: float = 0.0, n: int = 10) -> DialPoint:
    return DialPoint(t, u, clean / n, robust / n, n, "0" * 16)


FRONTIER = [point(0.4, 9, 1), point(0.6, 8, 4), point(0.8, 6, 5), point(1, 3, 6)]


@pytest.mark.parametrize(
    ("points", "rule", "t"),
    [
        (FRONTIER, "sum", 0.6),
        (FRONTIER, "clean>=0", 1),
        (FRONTIER, "clean>=0.3", 1),
        (FRONTIER, "clean >= 0.31", 0.8),
        (FRONTIER, "clean>=0.6", 0.8),
        (FRONTIER, "clean>=6e-1", 0.8),
        (FRONTIER, "clean>=0.9", 0.4),
        ([point(0.5, 6, 3), point(0.7, 5, 4), point(0.9, 4, 5)], "sum", 0.9),  # 0.6 + 0.3 isn't 0.4 + 0.5 in floats
        ([point(0.5, 7, 1), point(0.7, 6, 2)], "sum", 0.7),  # 0.7 + 0.1 is less than 0.6 + 0.2, and both are 8 of 10
        ([point(0.5, 5, 3), point(0.7, 6, 3), point(0.9, 4, 3)], "clean>=0.4", 0.7),
        ([point(1, 6, 3), point(0.7, 6, 3)], "sum", 0.7),
        ([point(1, 6, 3), point(0.7, 6, 3)], "clean>=0.5", 0.7),
        ([point(0.5, 6, 3, u=0.5), point(0.7, 6, 3), point(0.2, 6, 3, u=0.5)], "sum", 0.2),
        ([point(0.7, 6, 3), point(0.2, 6, 3, u=0.5)], "sum", 0.2),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_rules(points, rule, t):
    for order in (points, points[::-1]):
        assert choose_point(order, rule).t == t


def test_too_much_clean_accuracy_is_refused_with_the_best_that_there_is():
    with pytest.raises(InputError, match="clean accuracy of 0.95 or more: the best has 0.900, at t=0.4. Give a lower"):
        choose_point(FRONTIER, "clean>=0.95")
    with pytest.raises(InputError, match="There are no points to choose from"):
        choose_point([], "sum")


BAD = ["", "max", "sum ", "clean", "clean>0.6", "clean>=", "clean>=x", "clean>=nan", "clean>=60", "clean>=-0.1"]


@pytest.mark.parametrize("rule", [*BAD, "robust>=0.5", "clean>=0.6,sum"])
def test_other_rules_are_refused(rule):
    with pytest.raises(InputError, match=r"must be sum, or clean>=NUMBER with a number from 0 to 1"):
        check_rule(rule)


# The report


def test_the_table_has_a_line_for_each_point():
    table = format_points(FRONTIER[:2], FRONTIER[1]).splitlines()
    assert [cell.strip() for cell in table[2].split("|")[1:-1]] == [
        "t=0.4",
        "90.0 [59.6, 98.2]",
        "10.0 [1.8, 40.4]",
        "100.0",
        "",
    ]
    assert table[3].endswith("| 120.0 | chosen |")


def test_a_choice_that_was_altered_is_noticed(images):
    dial = describe_dial(FRONTIER, images, make_evaluator(), make_endpoints())
    choice = dial | {"t": 0.6, "u": 0.0, "rule": "sum", "saved_weights": "0" * 16}
    written = json.loads(json.dumps(sealed(choice)))
    assert parse_choice(written) == choice
    with pytest.raises(ValueError, match="it was altered"):
        parse_choice(written | {"rule": "clean>=0.5"})
    for name in choice:
        with pytest.raises(ValueError, match=f"it lacks .*{name}"):
            parse_choice({key: value for key, value in choice.items() if key != name})
    with pytest.raises(ValueError, match="it lacks a point's robust"):
        parse_choice(choice | {"points": [{"t": 1.0, "u": 0.0, "clean": 0.5, "num_samples": 1, "weights": ""}]})
    with pytest.raises(ValueError, match="the point that was chosen isn't among its points"):
        parse_choice(choice | {"t": 0.7})
    with pytest.raises(ValueError, match="The rule is 'clean>=<b>', but must be"):
        parse_choice(choice | {"rule": "clean>=<b>"})
    for change in ({"clean": 1.5}, {"robust": -0.1}, {"num_samples": 0}):
        with pytest.raises(ValueError, match="can't have been measured"):
            parse_choice(choice | {"points": [choice["points"][0] | change]})
