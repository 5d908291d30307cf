"""What `report_to` names: refused where it can't report, before anything long begins."""

import os
from collections.abc import Iterable
from importlib.util import find_spec

from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from hpt.errors import InputError, check_known


# The modules that names in `report_to` need, one of them, with the package that has it
MODULES = {
    "azure_ml": {"azureml": "azureml-sdk"},
    "clearml": {"clearml": "clearml"},
    "codecarbon": {"codecarbon": "codecarbon"},
    "comet_ml": {"comet_ml": "comet-ml"},
    "dagshub": {"dagshub": "dagshub"},
    "dvclive": {"dvclive": "dvclive"},
    "flyte": {"flytekit": "flytekit"},
    "mlflow": {"mlflow": "mlflow"},
    "neptune": {"neptune": "neptune"},
    "swanlab": {"swanlab": "swanlab"},
    "tensorboard": {"tensorboard": "tensorboard", "tensorboardX": "tensorboardX"},
    "trackio": {"trackio": "trackio"},
    "wandb": {"wandb": "wandb"},
}
KUBEFLOW, KUBEFLOW_VARIABLE = "kubeflow", "KUBEFLOW_TRAINER_SERVER_URL"


def check_trackers(names: Iterable[str]) -> None:
    """Refuse names that transformers doesn't know, or whose package isn't installed.

    Raises:
        InputError: naming what is known, or what is to be installed.
    """
    for name in names:
        check_known("report_to", name, INTEGRATION_TO_CALLBACK)
        if name == KUBEFLOW and KUBEFLOW_VARIABLE not in os.environ:
            raise InputError(
                f"report_to names {name}, but this is no job of Kubeflow's: they have {KUBEFLOW_VARIABLE}."
            )
        if name in MODULES and not any(find_spec(module) for module in MODULES[name]):
            package = next(iter(MODULES[name].values()))
            raise InputError(f"report_to names {name}, which isn't installed: pip install {package}.")
