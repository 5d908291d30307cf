"""How a command line names benchmarks: `cifar10`, `cifar10=PATH`, `owner/birds:label_column=species`, `all`."""

from dataclasses import replace
from pathlib import Path

from hpt.data.class_subsets import CLASS_SETTINGS, check_class_settings, read_classes, write_out_classes
from hpt.data.geometry import GEOMETRIES
from hpt.data.records import BENCHMARKS, SIXTEEN
from hpt.data.sample_subsets import SAMPLE_SETTINGS, check_sample_settings, pin_samples, read_samples
from hpt.data.sources import FILE_ENDINGS
from hpt.data.subsets import refuse_name_of_part
from hpt.errors import InputError, check_known, did_you_mean_path, list_known
from hpt.json_files import digest
from hpt.references import Reference, check_names


# What can stand behind the colon in "birds=PATH:label_column=species,class_names=birds.txt"
SETTINGS = "split config image_column label_column class_names template geometry native_resolution".split()
SETTINGS += CLASS_SETTINGS + SAMPLE_SETTINGS


def parse_benchmark(text: str) -> Reference:
    """A benchmark as recipes name it, `NAME`, `NAME=PATH` or `PATH`, with settings behind a colon or without.

    Raises:
        InputError: for a name that is neither a record's nor a place to read from, or an unknown setting.
    """
    return name_benchmark(Reference.parse(text))


def name_benchmark(reference: Reference) -> Reference:
    """The benchmark that a reference stands for: without a source if its record says that, and called by its own name.

    Raises:
        InputError: as [`parse_benchmark`].
    """
    _check_settings(reference)
    if _first_word(reference) == "all":
        raise InputError(f"all is sixteen benchmarks, where one is needed: {', '.join(SIXTEEN)}.")
    if reference.source is None and reference.name in BENCHMARKS:
        return reference
    if not reference.named and reference.place in BENCHMARKS:  # whatever folders there are
        return Reference(reference.place, settings=reference.settings)
    if reference.named and (not reference.source or not reference.name or "/" in reference.name):
        raise InputError(f"{str(reference)!r} must be NAME=PATH, with a name without /.")
    _check_place(reference)
    benchmark = reference if reference.named else replace(reference, name=_name_of(reference))
    check_names([benchmark.name])
    return benchmark


def call_before_loading(reference: Reference) -> str:
    """What messages call a benchmark of which no more is known yet than the text that names it."""
    said = []
    for settings, read in ((CLASS_SETTINGS, read_classes), (SAMPLE_SETTINGS, read_samples)):
        for setting in reference.settings.keys() & {*settings}:
            listed = read(setting, reference.settings[setting], reference.name)
            said.append(f"{setting}: {len(listed)}, {digest(listed)[:4]}")
    return f"{reference.name} ({'; '.join(said)})" if said else reference.name


def as_recorded(text: str) -> str:
    """The text that names a benchmark as records keep it: see [`write_out_classes`] and [`pin_samples`].

    Raises:
        InputError: as these.
    """
    return pin_samples(write_out_classes(text))


def _check_place(reference: Reference) -> None:
    """Refuse a path to nothing, before others are loaded; what may be an id is looked for on the Hub later."""
    place = reference.source
    if not place:
        raise InputError("A dataset's path is empty: give a folder, a file or a Hub id.")
    if Path(place).exists() or (place.count("/") == 1 and not place.startswith((".", "/"))):
        return
    if reference.named or "/" in place:
        hint = did_you_mean_path(place)
        raise InputError(f"There is no folder or file {place!r}, and it is no Hub id, which is OWNER/NAME{hint}")
    raise InputError(
        f"Unknown benchmark {place!r}; {list_known(place, [*BENCHMARKS, 'all'])} Give any other dataset by its Hub id "
        "OWNER/NAME, its folder or its file."
    )


def _first_word(reference: Reference) -> str:
    """The name as its text has it, or else the place."""
    return reference.name if reference.named else reference.place


def _check_settings(reference: Reference) -> None:
    for key in reference.settings:
        if key not in SETTINGS:
            raise InputError(f"{str(reference)!r} sets {key!r}; {list_known(key, SETTINGS)}")
    if reference.settings.get("native_resolution", "true") not in ("true", "false"):
        raise InputError(f"{str(reference)!r} sets native_resolution, which must be true or false.")
    if "geometry" in reference.settings:
        check_known("geometry", reference.settings["geometry"], GEOMETRIES)
    check_class_settings(reference)
    check_sample_settings(reference)
    refuse_name_of_part(reference.name)


def _name_of(reference: Reference) -> str:
    """What a dataset is called that is given by its place alone."""
    place = reference.place
    name = Path(reference.source).resolve().name
    name = name.removesuffix(next((ending for ending in FILE_ENDINGS if name.endswith(ending)), ""))
    of_record = {record.hub_id: key for key, record in BENCHMARKS.items()}.get(reference.source, name)
    if of_record in BENCHMARKS:
        raise InputError(
            f"{place!r} may be the benchmark {of_record} or another dataset: write {of_record}={place}, or "
            f"NAME={place} with a name of your own."
        )
    return name


def loading_arguments(benchmark: Reference) -> dict[str, str | bool | list[str]]:
    """A benchmark's settings as arguments of `load_benchmark`; a `|` stands between several templates."""
    settings = dict(benchmark.settings)
    if "native_resolution" in settings:
        settings["native_resolution"] = settings["native_resolution"] == "true"
    if "|" in settings.get("template", ""):
        settings["template"] = settings["template"].split("|")
    return settings


def stands_for_all(reference: Reference) -> bool:
    """Whether it is `all` or `all=PATH`."""
    return _first_word(reference) == "all" and not reference.settings


def the_sixteen(folder: str | None) -> list[Reference]:
    """The sixteen benchmarks, from a copy under each name in a folder, or by their records."""
    return [Reference(name, folder and f"{folder}/{name}") for name in SIXTEEN]


def expand_all(texts: list[str]) -> list[Reference]:
    """Benchmarks as recipes name them, with the sixteen in place of `all` and of `all=PATH`.

    Raises:
        InputError: as [`parse_benchmark`].
    """
    benchmarks = []
    for reference in map(Reference.parse, texts):
        if stands_for_all(reference):
            benchmarks += the_sixteen(reference.source if reference.named else None)
        else:
            benchmarks.append(name_benchmark(reference))
    return benchmarks
