"""What `hpt interpolate` needs of a run: models, images that it didn't train on, and a folder for the chosen point.

A point is saved as any model is. Its card says where it came from, as the run's does, and which point it is and why.
Rows that were measured on the run's own weights aren't the point's, and stay with these.
"""

from pathlib import Path

import numpy as np

from hpt.data.benchmark import Benchmark
from hpt.data.images import check_images
from hpt.data.loading import load_benchmark, load_training_data, load_validation
from hpt.data.names import parse_benchmark
from hpt.data.subsets import name_for_command
from hpt.errors import InputError
from hpt.evaluation.dial import DialPoint, choose_point, refuse_test_split
from hpt.evaluation.dial_report import describe_samples, draw_dial, report_dial
from hpt.hub.card import write_card
from hpt.hub.card_text import stated_license
from hpt.hub.folder import DIAL, ModelFolder
from hpt.models.classifier import ZeroShotClassifier
from hpt.models.endpoints import find_path_of_vanilla, read_endpoints, read_index
from hpt.models.identity import hash_configuration
from hpt.models.interpolation import Endpoints, check_same_architecture
from hpt.models.loading import load_dual_encoder, save_finished
from hpt.models.positions import with_image_size
from hpt.models.weights import hash_weights
from hpt.references import Reference, parse_model


UNSEEN = "--validation_size N holds training images out, the same in every recipe"


def find_trained(run: str | None, final: str | None) -> tuple[Reference, ModelFolder]:
    """The trained model, which a run with endpoints ended with or which is named, and its folder.

    Raises:
        InputError: if the run isn't finished, or has kept no endpoints.
    """
    if run is None:
        trained = parse_model(final)
        return trained, ModelFolder(trained.source)
    read_index(Path(run))
    folder = ModelFolder.of_run(Path(run), merged=True)
    return Reference(str(folder), str(folder), named=False), folder


def find_eps(eps: float | None, record: dict | None) -> float | str:
    """The radius that is given, or else the one that a run trained at.

    Raises:
        InputError: if there is neither.
    """
    if eps is None and record is None:
        raise InputError("At which eps the model was trained isn't recorded: give it, such as --eps 4/255.")
    return record["settings"].get("attack_eps", "1/255") if eps is None else eps


def load_ends(
    run: str | None, vanilla: Reference | None, trained: Reference, record: dict | None
) -> tuple[ZeroShotClassifier, Endpoints]:
    """The trained model as a classifier, and the checkpoints between which points lie.

    Args:
        run (`str`, *optional*): The `output_dir` of a run with endpoints; without, the two models are the ends.
        vanilla ([`Reference`], *optional*): The model before training; of a run, where that says it lies unless given.
        trained ([`Reference`]): The model after it.
        record (`dict`, *optional*): The `training.json` of the latter.

    Raises:
        InputError: for models that can't be had or are of different architectures, or that training didn't begin and
            end with.
    """
    vanilla = vanilla or find_vanilla(Path(run), record)
    classifier = ZeroShotClassifier(*load_dual_encoder(trained.source, trained.revision))
    start = _load_vanilla(vanilla, classifier)
    weights, trained_weights = start.model.state_dict(), classifier.model.state_dict()
    check_same_architecture(weights, trained_weights)
    check_same_architecture(trained_weights, weights)
    if hash_configuration(start) != hash_configuration(classifier):
        raise InputError(f"{vanilla} and {trained} are configured differently, such as in their heads or activations.")
    first, last = hash_weights(weights), hash_weights(trained_weights)
    if first == last:
        raise InputError(f"{vanilla} and {trained} are the same weights: there is nothing between them.")
    if record is not None and first != record["vanilla_weights"]:
        raise InputError(
            f"{trained} wasn't trained from {vanilla}: it began with weights of hash {record['vanilla_weights']}, and "
            f"these are {first}. Give the right ones as --vanilla."
        )
    endpoints = Endpoints(weights, trained_weights) if run is None else read_endpoints(Path(run), weights)
    if hash_weights(endpoints.at(1)) != last:
        raise InputError(f"The endpoints in {run} aren't of {trained}: one of them is of another run.")
    templates = classifier.templates if record is None else record["prompt_template"]
    model = classifier.model.requires_grad_(False)
    return ZeroShotClassifier(model, classifier.processor, template=templates), endpoints


def _load_vanilla(vanilla: Reference, trained: ZeroShotClassifier) -> ZeroShotClassifier:
    """The model before training, at the input size that the trained one has."""
    model, processor = load_dual_encoder(vanilla.source, vanilla.revision)
    start = ZeroShotClassifier(model, processor)
    if _input_sizes(start) == _input_sizes(trained):
        return start
    return ZeroShotClassifier(*with_image_size(model, processor, trained.image_size))


def _input_sizes(classifier: ZeroShotClassifier) -> tuple[int, int | None]:
    """The side of its images by its processor and by its configuration, which needn't say any."""
    return classifier.image_size, getattr(classifier.model.config.vision_config, "image_size", None)


def find_vanilla(run: Path, record: dict) -> Reference:
    """The model that a run began with, where it lies on this machine or on the Hub.

    Args:
        run (`Path`): Its `output_dir`, with endpoints.
        record (`dict`): Its `training.json`.

    Raises:
        InputError: if it isn't there any more.
    """
    path, target = find_path_of_vanilla(run), record["target"]
    if path is not None and Path(path).is_dir():
        return Reference(path, path, named=False)
    if target["hub_id"] is None:
        where = path or target["name"] or "which was in memory"
        raise InputError(f"The vanilla model of {run}, {where}, isn't there any more: give it as --vanilla.")
    return Reference(target["hub_id"], target["hub_id"], record["settings"].get("target_revision"), named=False)


def load_unseen(dataset: str | None, record: dict | None, validation_size: int | None, protocol: str) -> Benchmark:
    """Images to choose a point by: training images that the run held out, or a validation split, never a test.

    Args:
        dataset (`str`, *optional*): The training set; of a recipe's run, that of the run unless given, or one of those
            of its mixture.
        record (`dict`, *optional*): The run's `training.json`, if hpt has trained the model.
        validation_size (`int`, *optional*): So many training images are held out; of a recipe's run, as many as it
            held out itself.
        protocol (`str`): As of [`load_benchmark`].

    Raises:
        InputError: if there are no such images, or they can't be had.
    """
    trained_on = _name_sets(record)
    dataset = _name_dataset(dataset, trained_on)
    if not trained_on:
        images = load_validation(dataset, validation_size or 0, protocol)
    elif dataset.settings.get("split") not in [Reference.parse(text).settings.get("split") for text in trained_on]:
        images = load_benchmark(dataset, protocol=protocol)
        if images.split in [part["split"] for part in _describe_sets(record)]:
            raise InputError(f"The run trained on {dataset}: give another split, or leave the split out.")
    else:
        images = _held_out_by_run(dataset, record, validation_size, protocol)
    refuse_test_split(images)
    check_images(images.dataset, images.name, same_size=images.is_native)
    return images


def _name_sets(record: dict | None) -> list[str]:
    """The training sets of a recipe's run, by the texts that name them; none without labels, to measure by."""
    if record is None or not record["data"].get("labelled", True):
        return []
    one = record["settings"].get("train_dataset")
    return record["settings"].get("train_datasets", [] if one is None else [one])


def _describe_sets(record: dict) -> list[dict]:
    """What is recorded of the training set, or of each of a mixture."""
    return record["data"].get("sets", [record["data"]])


def _name_dataset(dataset: str | None, trained_on: list[str]) -> Reference:
    if dataset is not None:
        return parse_benchmark(dataset)
    if not trained_on:
        raise InputError(
            "What the model was trained on isn't recorded, or has no labels: give the set to choose on, as --dataset."
        )
    if len(trained_on) > 1:
        raise InputError(f"The run trained on {' and '.join(trained_on)}: give the one to choose on, as --dataset.")
    if "PATH/" in trained_on[0]:
        raise InputError(
            f"The run trained on {trained_on[0]}: give --dataset, with that folder in the place of PATH/."
        )
    return parse_benchmark(trained_on[0])


def _held_out_by_run(dataset: Reference, record: dict, validation_size: int | None, protocol: str) -> Benchmark:
    """What a recipe's run left of its training set, by the rules of [`load_training_data`]."""
    settings = record["settings"]
    held_out = settings.get("validation_size", 0)
    if validation_size not in (None, held_out):
        raise InputError(
            f"validation_size is {validation_size}, but the run held out {held_out} images: leave it out."
        )
    train, validation = load_training_data(dataset, held_out, settings.get("protocol", protocol))
    data = _find_set(train.name, _describe_sets(record))
    seen = train if data["streamed"] else train.subset(settings.get("max_train_samples"))
    trained_on = data.get("images", data["images_per_epoch"])  # of a mixture's sets an epoch has a share
    if not data["streamed"] and len(seen) != trained_on:
        raise InputError(
            f"The run trained on {trained_on:,} images of {data['name']}, but {dataset} has {len(seen):,}: give the "
            "set that it trained on."
        )
    if validation is not None:
        return validation
    left = np.flatnonzero(~np.isin(train.ids(), seen.ids()))
    if len(left) == 0:
        raise InputError(
            f"The run trained on all images of {dataset}, which has no validation split, so there are none to choose "
            f"a point on: train with validation_size ({UNSEEN})."
        )
    return train.rows(left)


def _find_set(name: str, described: list[dict]) -> dict:
    """What is recorded of the training set of that name."""
    by_name = {part["name"]: part for part in described}
    if name not in by_name:
        which = "that" if len(by_name) == 1 else "one of these"
        commands = " or ".join(map(name_for_command, by_name))
        raise InputError(f"The run trained on {' and '.join(by_name)}, not on {name}: name {which}, as {commands}.")
    return by_name[name]


def save_chosen(
    dial: dict, rule: str, classifier: ZeroShotClassifier, endpoints: Endpoints, trained: ModelFolder, output_dir: str
) -> None:
    """Report a dial, choose a point by a rule, and save it in `output_dir/chosen` with processor and card.

    Args:
        dial (`dict`): From [`describe_dial`].
        rule (`str`): As of [`choose_point`].
        classifier ([`ZeroShotClassifier`]): The trained model, which has the point's weights from here on.
        endpoints ([`Endpoints`]): What lies at the ends.
        trained ([`ModelFolder`]): The trained model's, whose run and license the point has too.
        output_dir (`str`): Where all of it goes.

    Raises:
        InputError: if the rule takes no point; the report is there.
    """
    chosen, folder = None, Path(output_dir)
    try:
        chosen = choose_point([DialPoint(**point) for point in dial["points"]], rule)
    finally:
        report_dial(dial, rule, chosen, folder)
    classifier.model.load_state_dict(endpoints.at(chosen.t, chosen.u))
    save_point(folder / "chosen", classifier, dial, rule, chosen, trained)
    print(f"Chosen point: {folder}/chosen, with a model card")


def save_point(
    folder: Path, classifier: ZeroShotClassifier, dial: dict, rule: str, chosen: DialPoint, trained: ModelFolder
) -> None:
    """Save a model at a chosen point; see [`save_chosen`] for the arguments.

    Raises:
        TrainingStopped: if its weights aren't finite, or it can't be written.
    """
    save_finished(classifier.model, classifier.processor, folder)
    point = ModelFolder(folder)
    if trained.run is not None:
        point.write_run({name: value for name, value in trained.run.items() if name != "weights"})
    point.write_choice(dial | {"t": chosen.t, "u": chosen.u, "rule": rule})
    points = [DialPoint(**point) for point in dial["points"]]
    draw_dial(points, chosen, describe_samples(dial), point.make_figures() / DIAL)
    write_card(point, license=trained.card and stated_license(trained.card))
