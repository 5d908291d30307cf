"""What the card of a point between vanilla and trained weights says of it: which one it is, and why."""

from hpt.escaping import code, markdown, shell
from hpt.evaluation.dial import DialPoint
from hpt.evaluation.dial_report import describe_samples, explain_rule, format_points
from hpt.hub.folder import CHOICE_FILE, DIAL, FIGURES, ModelFolder
from hpt.models.interpolation import name_point


LINE = "vanilla + t (final - vanilla)"
PLANE = f"{LINE} + u (average - vanilla)"


def describe_place(choice: dict | None) -> str:
    """A sentence for a card's first paragraph; empty for a model that isn't such a point."""
    if choice is None:
        return ""
    return (
        "**Its weights lie between the vanilla model's and those that training ended with, at "
        f"{markdown(name_point(choice['t'], choice['u']))}**, a point chosen by its clean and robust accuracy."
    )


def interpolation(folder: ModelFolder, model_id: str) -> str:
    """The point, the rule, the images that the choice was made on, and what was measured there of all points."""
    choice = folder.choice
    if choice is None:
        return ""
    points = [DialPoint(**point) for point in choice["points"]]
    chosen = next(point for point in points if (point.t, point.u) == (choice["t"], choice["u"]))
    formula = PLANE if any(point.u for point in points) else LINE
    average = ", and `average` is the anchor stage's average" if formula == PLANE else ""
    return "\n\n".join(
        [
            f"They are `{formula}` at {markdown(chosen.name)}, where `vanilla` are the weights before training (hash "
            f"{code(choice['vanilla_weights'])}) and `final` those that it ended with "
            f"({code(choice['final_weights'])}){average}.",
            f"The point was chosen by the rule {code(choice['rule'])}: {explain_rule(choice['rule'])}. Accuracy in %, "
            f"with its 95 % interval, on {markdown(describe_samples(choice))}:",
            format_points(points, chosen),
            *([f"![Clean and robust accuracy of the points]({FIGURES}/{DIAL})"] if DIAL in folder.pictures else []),
            f"{_seen(folder)} No test was looked at for the choice. It was made by these numbers, so they flatter the "
            "point: what it does on other images is above, once that is measured. All that the choice depends on is "
            f"in `{CHOICE_FILE}`.",
        ]
    )


def _seen(folder: ModelFolder) -> str:
    """Whether the images were trained on, as far as it is recorded."""
    run = folder.run
    by_recipe = run is not None and {"train_dataset", "train_datasets"} & set(run["settings"])
    if by_recipe and run["data"].get("labelled", True):
        return "The run didn't train on these images."
    return "Whether the model was trained on these images isn't recorded."


def again(choice: dict | None) -> str:
    """How to come to the point again from the run's endpoints; empty for a model that isn't such a point."""
    if choice is None:
        return ""
    points = {"points": sorted({point["t"] for point in choice["points"]})}
    points["average_points"] = sorted({point["u"] for point in choice["points"]})
    given = " ".join(f"--{name} {' '.join(f'{share:g}' for share in shares)}" for name, shares in points.items())
    attacked = f"--attacks {' '.join(map(shell, choice['attacks']))} --eps {shell(choice['eps'])}"
    given += f" {attacked} --max_samples {choice['samples']} --seed {choice['seed']}"
    command = f"hpt interpolate --run outputs/again {given} --rule {shell(choice['rule'])}"
    return f"Of what it leaves in `endpoints/` (`--save_endpoints True`), {code(command)} chooses the point. "
