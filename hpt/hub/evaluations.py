"""Evaluations that are added to a model's folder: rows of its own weights, pictures of them, and the card."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from textwrap import fill

from hpt.data.benchmark import Benchmark
from hpt.errors import InputError
from hpt.evaluation.figures import draw_accuracy_over_eps
from hpt.evaluation.processor_check import compare_with_processor
from hpt.evaluation.results import read_result_rows
from hpt.evaluation.rows import CLEAN, Row
from hpt.evaluation.subject import Subject
from hpt.hub.card import write_card
from hpt.hub.folder import ModelFolder
from hpt.hub.rows import THIS, VANILLA, publish_rows, radii, shown_rows
from hpt.models.classifier import ZeroShotClassifier
from hpt.models.loading import load_dual_encoder


def add_evaluation(folder: ModelFolder, rows: Iterable[Row], weights: str) -> None:
    """Add measured rows to a model's folder, draw accuracy over eps, and write the card anew.

    Args:
        folder ([`ModelFolder`]): As [`HPTTrainer`] saves it, or with a model that hpt didn't train.
        rows (`Iterable[Row]`): Of any models; those of this one and of the vanilla one are taken.
        weights (`str`): Hash of the weights that rows of this model have; of an adapter, of the merged model.
    """
    vanilla_weights = folder.run and folder.run["vanilla_weights"]
    folder.add_rows(publish_rows(rows, weights, vanilla_weights), {weights, vanilla_weights})
    draw_robustness(folder)
    write_card(folder)


def add_comparison(folders: list[ModelFolder], rows: list[Row], subject: Subject, benchmark: Benchmark) -> None:
    """Add what was measured on a trained model to its folders, with how far its saved processor is from that.

    Args:
        folders (`list[ModelFolder]`): Of the model, and of the adapter that it was merged with.
        rows (`list[Row]`): From [`~hpt.evaluation.outputs.report_comparison`].
        subject ([`Subject`]): The model.
        benchmark ([`Benchmark`]): Images on which its processor is compared.
    """
    agreement = compare_with_processor(subject.classifier, benchmark)
    for folder in folders:
        folder.write_agreement(agreement)
        add_evaluation(folder, rows, subject.weights)


def draw_robustness(folder: ModelFolder) -> None:
    """Draw accuracy over eps of the rows in a model's folder, for each benchmark and norm with several radii."""
    folder.make_figures()
    rows, names, drawn = shown_rows(folder.rows), {THIS: THIS, VANILLA: "vanilla model"}, set()
    clean: dict[tuple, list[Row]] = {}
    for row in rows:
        if row.attack == CLEAN:
            clean.setdefault(row.sample_set, []).append(row)
    for (sample_set, norm, *_), attacked in radii(rows).items():
        first = attacked[0]
        picture = folder.robustness_picture(first.benchmark, norm)
        if picture not in drawn:
            drawn.add(picture)
            curves = [replace(row, model=names[row.model]) for row in clean.get(sample_set, []) + attacked]
            over = f" over {', '.join(first.parameters['attacks'])}" if first.is_worst_case else ""
            title = f"{first.benchmark} {first.split}, n = {first.n}, {first.label}{over}"
            draw_accuracy_over_eps(curves, fill(title, 70), picture)


def add_saved_evaluations(folder: ModelFolder, run: Path, paths: list[str] | None = None) -> list[str]:
    """Add evaluations that recipes/evaluate.py saved to the card of the model that they measured.

    Args:
        folder ([`ModelFolder`]): Of the model. Of an adapter, the merged model beside it is what was evaluated.
        run (`Path`): Where `evaluation/` is looked for, unless `paths` are given.
        paths (`list[str]`, *optional*): Evaluations that are asked for, by their folder or file.

    Returns:
        `list[str]`: the evaluations that were left out, since they have no rows of this model.

    Raises:
        InputError: if one that is asked for has no rows of this model, or can't be read.
    """
    own = [str(run / "evaluation")] if (run / "evaluation" / "results.jsonl").is_file() else []
    evaluations = {path: read_result_rows(path) for path in (own if paths is None else paths)}
    if not evaluations:
        return []
    subject = Subject(ZeroShotClassifier(*load_dual_encoder(str(folder.evaluated_path))))
    known = {subject.weights, folder.run and folder.run["vanilla_weights"]}
    evaluations = {
        path: [row for row in rows if not _is_of_other(row, known, subject.configuration)]
        for path, rows in evaluations.items()
    }
    others = [path for path, rows in evaluations.items() if not any(row.weights == subject.weights for row in rows)]
    if others and paths is not None:
        raise InputError(
            f"{others[0]} has no results of the weights in {folder.evaluated_path}: evaluate this model, with its "
            "configuration, or leave it out."
        )
    for path, rows in evaluations.items():
        if path not in others:
            add_evaluation(folder, rows, subject.weights)
    return others


def _is_of_other(row: Row, weights: set[str | None], configuration: str) -> bool:
    """Whether a row is of the model's or the vanilla model's weights, but says that they are computed with otherwise.

    Training changes no configuration. Another input size does, of a model without position embeddings that alone.
    """
    return row.weights in weights and row.configuration not in (None, configuration)
