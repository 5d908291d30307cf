"""Pretrain a small CLIP on an image-classification benchmark, to have targets and proxies without the Hub.

    hpt pretrain --config digits_target --output_dir outputs/my_clip
    hpt pretrain --config cifar10_target \
        --train_dataset cifar10=PATH --output_dir outputs/cifar10/target

The YAML files beside this script are read into `hpt.training.pretraining.PretrainingConfig`; any field can follow as
`--field value`. A run that was cut off continues from its last checkpoint; a finished model isn't written over without
`--overwrite`.
"""

from pathlib import Path

from hpt.cli import parse_config, run_recipe
from hpt.data.benchmark import Benchmark
from hpt.data.loading import load_benchmark
from hpt.data.names import parse_benchmark
from hpt.data.sample_subsets import SAMPLE_SETTINGS
from hpt.errors import MissingSplit
from hpt.evaluation.comparison import measure
from hpt.evaluation.subject import Subject
from hpt.models.classifier import ZeroShotClassifier
from hpt.models.loading import load_dual_encoder
from hpt.processes import hold_together
from hpt.references import Reference
from hpt.training.pretraining import PretrainingConfig, pretrain, refuse_finished


def main():
    args, _ = parse_config((PretrainingConfig,), folder=Path(__file__).parent)
    with hold_together(args.output_dir):
        refuse_finished(args)
        benchmarks = map(parse_benchmark, args.train_datasets or [args.train_dataset])
        tests = [test for benchmark in benchmarks if (test := load_test(benchmark)) is not None]
        pretrain(args)
    if args.process_index > 0 or not tests:
        return
    model, processor = load_dual_encoder(args.output_dir)
    subject = Subject(ZeroShotClassifier(model.to(args.device), processor))
    for test in tests:
        (row,) = measure([subject], test)
        interval = f"[{100 * row.low:.1f}, {100 * row.high:.1f}]"
        print(f"{args.output_dir}: {100 * row.accuracy:.1f} {interval} % of {row.n} {test.name} {test.split} images")


def load_test(benchmark: Reference) -> Benchmark | None:
    """The test split, if there is one besides what is trained on; none where that is chosen by split or samples."""
    if {"split", *SAMPLE_SETTINGS} & benchmark.settings.keys():
        return None
    try:
        test = load_benchmark(benchmark)
    except MissingSplit as error:
        print(f"The model won't be tested: {error}")
        return None
    return None if test.split == "train" else test


if __name__ == "__main__":
    run_recipe(main)
