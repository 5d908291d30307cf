"""Whether a model that was converted computes with the right activation: clean accuracy shows it, logits don't.

A source and what is converted from it are computed alike, so a wrong guess gives both the same wrong logits.
"""

import copy

from hpt.data.benchmark import Benchmark
from hpt.evaluation.comparison import measure
from hpt.evaluation.rows import Row
from hpt.evaluation.subject import Subject
from hpt.models.classifier import ZeroShotClassifier


OTHER = {"gelu": "quick_gelu", "quick_gelu": "gelu"}


def compare_activations(model, processor, benchmark: Benchmark, vision_alone: bool, **loader) -> tuple[Row, dict]:
    """Clean accuracy of a model, and with the other activation.

    Args:
        model ([`~transformers.CLIPModel`]): On its device; it stays as it is.
        processor ([`~transformers.CLIPProcessor`]): Its processor.
        benchmark ([`Benchmark`]): Images and labels.
        vision_alone (`bool`): Whether the text tower is that of a base, whose activation is known.
        loader: `batch_size` and `num_workers`.

    Returns:
        `tuple[Row, dict]`: the row of the model, and both accuracies; `better` is the activation that does better, by
        95 % intervals that don't meet, or `None`.
    """
    activation = model.config.vision_config.hidden_act
    other = _with_activation(model, OTHER[activation], ["vision"] if vision_alone else ["vision", "text"])
    models = {activation: model, OTHER[activation]: other}
    subjects = [Subject(ZeroShotClassifier(each, processor), name) for name, each in models.items()]
    own, others = measure(subjects, benchmark, **loader)
    return own, {
        "benchmark": own.benchmark,
        "split": own.split,
        "n": own.n,
        "activation": activation,
        "accuracy": own.accuracy,
        "other_activation": OTHER[activation],
        "other_accuracy": others.accuracy,
        "better": activation if own.low > others.high else OTHER[activation] if others.low > own.high else None,
    }


def _with_activation(model, activation: str, towers: list[str]):
    """A copy of a CLIP with another activation in some of its towers, which share no weights with it."""
    config = copy.deepcopy(model.config)
    for tower in towers:
        getattr(config, f"{tower}_config").hidden_act = activation
    other = type(model)(config).to(model.device, model.dtype).eval()
    other.load_state_dict(model.state_dict())
    return other
