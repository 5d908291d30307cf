"""hpt: adversarially robust CLIP by HPT-GPD, on the Hugging Face stack (arXiv 2601.12865).

The public names below load their modules when first used, so that `import hpt` costs nothing.
"""

from importlib import import_module


__version__ = "0.1.0"

_MODULE_OF = {
    "ATTACKS": "attacks",
    "FGSM": "attacks",
    "PGD": "attacks",
    "BENCHMARKS": "records",
    "load_benchmark": "benchmarks",
    "GPDCallback": "callbacks",
    "HPTConfig": "config",
    "InputError": "errors",
    "RobustnessEvaluator": "evaluation",
    "ZeroShotClassifier": "modeling",
    "OBJECTIVES": "objectives",
    "GeneralizationAnchor": "objectives",
    "RobustTransfer": "objectives",
    "load_proxy": "proxies",
    "GPDSchedule": "schedulers",
    "get_gpd_schedule": "schedulers",
    "HPTTrainer": "trainer",
}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'hpt' has no attribute {name!r}")
    return getattr(import_module(f"hpt.{_MODULE_OF[name]}"), name)


def __dir__():
    return sorted([*globals(), *_MODULE_OF])
