"""Tables of images: files with a column of paths beside a column of labels."""

import os
from pathlib import Path

import datasets
from datasets import Dataset

from hpt.errors import InputError


def read_table(file: Path) -> Dataset:
    """A .csv or .tsv file, whose paths are taken from the folder that it lies in.

    Returns:
        `Dataset`: The table's columns, those of paths as images.

    Raises:
        InputError: for a table without rows, without paths, or with a path to nothing.
    """
    import pandas

    separator = "\t" if file.suffix == ".tsv" else ","
    table = pandas.read_csv(file, sep=separator, encoding="utf-8-sig", keep_default_na=False, na_values=[""])
    if table.empty:
        raise InputError(f"{file} has no rows.")
    paths = [
        name for name, value in table.iloc[0].items() if isinstance(value, str) and os.path.isfile(file.parent / value)
    ]
    if not paths:
        raise InputError(
            f"{file} has no column of images: the paths in one of {list(table.columns)!s:.300} must be right from "
            f"{file.parent.resolve()} on."
        )
    for name in paths:
        table[name] = [_find(file, row, name, value) for row, value in enumerate(table[name])]
    dataset = Dataset.from_pandas(table, preserve_index=False)
    for name in paths:
        dataset = dataset.cast_column(name, datasets.Image())
    return dataset


def _find(file: Path, row: int, column: str, value) -> str:
    image = file.parent / str(value)
    if not os.path.isfile(image):  # False also for a name that no file can have
        raise InputError(
            f"Row {row} of {file} has {value!r:.100} as {column}, but there is no such file in {file.parent}."
        )
    return str(image.resolve())
