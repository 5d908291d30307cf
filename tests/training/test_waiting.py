"""How often a training step makes the host wait for its device: once, to ask whether loss and gradient are finite."""

from collections import Counter

import pytest
from helpers import Reads, make_clip, make_dataset, make_trainer
from transformers import TrainerCallback

from hpt import Mixture, ZeroShotClassifier


ONCE = Counter(tolist=1)  # in `_stop_unless_finite`
LOGGED = Counter(tolist=1, _local_scalar_dense=2)  # what the trainer notes of the images; loss and gradient norm
# So that the steps that are looked at lie within an epoch, and only those of which that is asked are logged
RUN = {"logging_steps": 1000, "max_steps": 3}
ROWS = 24


class Marks(TrainerCallback):
    """What had been read as each step began."""

    def __init__(self, reads: Reads):
        self.reads, self.marks = reads, []

    def on_step_begin(self, args, state, control, **kwargs):
        self.marks.append(Counter(self.reads.seen))


def reads_of_step(trainer, step: int = 2) -> Counter:
    """What is read from the start of a step, counted from 1, to the start of the next."""
    noise_ids, reads = trainer._noise_ids, Reads()

    def on_host(number):
        reads.on_host.append(noise_ids(number))  # never on the device
        return reads.on_host[-1]

    trainer._noise_ids = on_host
    marks = Marks(reads)
    trainer.add_callback(marks)
    with reads:
        trainer.train()
    return marks.marks[step] - marks.marks[step - 1]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bf16": True, "attack_dtype": "float32"},
        {"max_grad_norm": 1.0},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        {"anchor_objective": "fare"},
        {"anchor_objective": "0.5*hpt + tga_zsr", "only_where_right": True},
        {"anchor_objective": "pmg_aft", "attack_random_start": False},
    ],
    ids=str,
)
def test_a_step_waits_once(tmp_path, settings):
    assert reads_of_step(make_trainer(tmp_path, dataset=make_dataset(ROWS), **RUN | settings)) == ONCE


@pytest.mark.parametrize("combination", ["probabilities", "most_confident"])
def test_several_proxies_are_not_waited_for(tmp_path, combination):
    proxies = [ZeroShotClassifier(*make_clip(seed, patch_size=4)) for seed in (1, 2)]
    settings = {"proxy_combination": combination, "dataset": make_dataset(ROWS), **RUN}
    assert reads_of_step(make_trainer(tmp_path, proxy=proxies, **settings)) == ONCE


@pytest.mark.parametrize("batches", ["one_set", "mixed"])
def test_a_batch_of_a_mixture_is_not_asked_for_its_set(tmp_path, batches):
    mixture = Mixture({"one": make_dataset(12), "other": make_dataset(12, seed=1)}, batches=batches)
    trainer = make_trainer(tmp_path, dataset=mixture, **RUN | {"max_steps": 6})
    assert reads_of_step(trainer, 5) == ONCE  # by when prompts of both sets are encoded


def test_a_logged_step_waits_for_what_is_logged(tmp_path):
    settings = {"dataset": make_dataset(ROWS), **RUN, "logging_steps": 1}
    assert reads_of_step(make_trainer(tmp_path, **settings)) == ONCE + LOGGED


def test_reads_are_seen():
    """Each of these would make the host wait, so that the tests above can fail."""
    values = make_clip(0)[0].visual_projection.weight.detach()
    looks = {
        "_local_scalar_dense": [
            lambda: values[0, 0].item(),
            lambda: bool(values.sum() > 0),
            lambda: float(values.sum()),
        ],
        "index": [lambda: values[values > 0]],
        "nonzero": [lambda: values.nonzero()],
        "_unique2": [lambda: values.unique()],
        "tolist": [lambda: values.tolist()],
        "numpy": [lambda: values.numpy()],
        "cpu": [lambda: values.cpu()],
    }
    for name, looked in looks.items():
        for look in looked:
            with Reads() as reads:
                look()
            assert reads.seen[name] == 1, name
    with Reads() as reads:
        values.sign().clamp(0, 1).sum()
    assert not reads.seen
