"""Images without labels: folders of nothing but images, columns of images, captioned images without captions.

train = load_benchmark("mine=PATH", "train", labelled=False)  # for an objective that needs no labels, such as FARE
HPTTrainer(..., args=HPTConfig("outputs/robust", objective="fare", anchor_epochs=0), train_dataset=train)
"""

from hpt.data.benchmark import Benchmark, StreamingBenchmark
from hpt.data.geometry import ImageTransform
from hpt.data.records import BenchmarkRecord
from hpt.data.sources import read_splits, select_images
from hpt.references import Reference


def load_images(
    reference: Reference, record: BenchmarkRecord, split: str, transform: ImageTransform | None, streaming: bool
) -> Benchmark | StreamingBenchmark:
    """The images of a dataset alone, whatever else it has; its class names are those that the record says, or none.

    Args:
        reference ([`Reference`]): Where it is read from.
        record ([`BenchmarkRecord`]): Of it, or one for a dataset that has none.
        split (`str`): As the record calls it.
        transform ([`ImageTransform`], *optional*): How its images come to a model.
        streaming (`bool`): Read rows as they are asked for.

    Raises:
        InputError: for a dataset that can't be had, or has no images.
    """
    if record.load is not None:
        dataset, commit = record.load(split).select_columns(["image"]), None
        dataset = dataset.to_iterable_dataset() if streaming else dataset
    else:
        wanted, has_record = record.splits[split].split("+"), record.num_classes is not None
        any_split = not has_record and split == "test"
        dataset, splits, _, commit = read_splits(
            reference, record.config, wanted, streaming, any_split, labelled=False
        )
        dataset = select_images(dataset, record.image_column, reference.place)
        split = split if has_record or splits == wanted else splits[0]
    names = record.class_names or ()
    return (StreamingBenchmark if streaming else Benchmark)(
        reference.name,
        split,
        dataset,
        list(names.values() if isinstance(names, dict) else names),
        record.template,
        transform,
        source=commit and f"{reference.source}@{commit}",
    )
