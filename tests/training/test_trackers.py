"""What `report_to` may name."""

import pytest
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from hpt import HPTConfig, InputError
from hpt.training import trackers
from hpt.training.pretraining import PretrainingConfig


@pytest.fixture
def nothing_installed(monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda module: None)
    monkeypatch.delenv(trackers.KUBEFLOW_VARIABLE, raising=False)


@pytest.mark.parametrize("config", [HPTConfig, PretrainingConfig])
@pytest.mark.parametrize("name", INTEGRATION_TO_CALLBACK)
def test_every_tracker_of_transformers_is_refused_where_it_is_missing(tmp_path, nothing_installed, config, name):
    with pytest.raises(InputError, match=f"^report_to names {name}, (which isn't installed: pip install|but this is)"):
        config(output_dir=str(tmp_path), use_cpu=True, report_to=name)


def test_one_of_two_packages_is_enough(monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda module: module == "tensorboardX" or None)
    trackers.check_trackers(["tensorboard"])
    with pytest.raises(InputError, match="names comet_ml, which isn't installed: pip install comet-ml."):
        trackers.check_trackers(["tensorboard", "comet_ml"])


def test_a_mistyped_tracker_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(InputError, match="Unknown report_to 'tensorbord'.*tensorboard"):
        HPTConfig(str(tmp_path), use_cpu=True, report_to="tensorbord")
