"""hpt: adversarially robust CLIP by HPT-GPD, on the Hugging Face stack (arXiv 2601.12865).

The public names below load their modules when first used, so that `import hpt` costs nothing.
"""

from importlib import import_module


__version__ = "0.11.0"

_MODULE_OF = {
    "ATTACKS": "attacks",
    "FGSM": "attacks",
    "PGD": "attacks",
    "BENCHMARKS": "data.records",
    "Classifier": "classifiers",
    "Mixture": "data.mixtures",
    "load_benchmark": "data.loading",
    "RobustnessEvaluator": "evaluation.evaluator",
    "format_accuracies": "evaluation.report",
    "InputError": "errors",
    "ZeroShotClassifier": "models.classifier",
    "load_proxy": "models.loading",
    "HPTConfig": "training.config",
    "GPDCallback": "training.gpd",
    "GPDSchedule": "training.gpd",
    "get_gpd_schedule": "training.gpd",
    "OBJECTIVES": "training.objectives",
    "GeneralizationAnchor": "training.objectives",
    "Objective": "training.objectives",
    "RobustTransfer": "training.objectives",
    "HPTTrainer": "training.trainer",
}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'hpt' has no attribute {name!r}")
    return getattr(import_module(f"hpt.{_MODULE_OF[name]}"), name)


def __dir__():
    return sorted([*globals(), *_MODULE_OF])
