"""Compare methods at equal budget: a grid of runs, methods x learning rates x seeds, all checked before one begins.

grid = read_grid(arguments, nested, (Recipe, HPTConfig), config)
recipe, args = grid.settings(grid.first_run("tecoa"))
"""

from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from hpt.attacks.registry import parse_attacks_without_proxy
from hpt.cli import as_arguments, parse_arguments
from hpt.data.benchmark import Benchmark
from hpt.data.class_subsets import take_classes
from hpt.data.loading import load_benchmark
from hpt.data.names import expand_all
from hpt.data.sample_subsets import pin_samples
from hpt.errors import InputError, check_at_least
from hpt.escaping import file_name
from hpt.evaluation.dial import check_rule
from hpt.models.interpolation import make_grid
from hpt.radius import Fraction, Radius, as_radii
from hpt.references import check_names
from hpt.training.needs import who_needs_labels
from hpt.training.record import OF_THE_WEIGHTS, describe_settings
from hpt.training.run import load_data


NESTED = ("methods", "vary")  # fields of the YAML file that hold more than a value or a list
PROTOCOL = ("dial", "choose", "tune_samples", "tune_attack", "validation_classes", "test_attacks", "test_samples")
VANILLA = "vanilla"  # what tables call the target before training
# Fields of a run that a comparison sets itself, or does without, and why they can't be given
NOT_GIVEN = {
    "learning_rate": "learning_rates are those that are chosen among",
    "seed": "seeds are those of the comparison",
    "eval_datasets": "tests are what is tested on",
    "train_datasets": "choices are made on images that were held out of one training set",
    "max_eval_samples": "test_samples says how many",
    "proxy_eps": "it is of a single run",
    "pretrain_target": "models are there before they are compared",
    "pretrain_proxy": "models are there before they are compared",
    "overwrite": "delete the folder yourself",
    "push_to_hub": "runs of a comparison aren't published",
    "resume_from_checkpoint": "runs go on by themselves",
    "max_steps": "budgets are compared in epochs",
    "save_endpoints": "it is always on",
    "load_best_model_at_end": "the dial is what is chosen by held-out images",
}
NOT_OF_METHODS = {
    "output_dir": "all runs lie in the comparison's folder",
    "validation_size": "choices of all methods are made on the same held-out images",
    "protocol": "all methods are tested at the same resolution",
}


@dataclass
class Comparison:
    """How methods are compared: rates, seeds, how both rates and points are chosen, and what is tested.

    Beside these, `methods`, `vary` and the settings that all runs share stand in the YAML file.
    """

    learning_rates: list[Fraction] = field(
        default_factory=list, metadata={"help": "Peak rates of which each method's is chosen on held-out images."}
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "Of the runs; rates are chosen with the first."}
    )
    dial: list[Fraction] = field(
        default_factory=lambda: [0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
        metadata={"help": "Points t between vanilla, 0, and trained weights, 1, of which each run's is chosen."},
    )
    choose: str = field(
        default="sum", metadata={"help": "The rule for rates and points: sum (of clean and robust), or clean>=NUMBER."}
    )
    tune_samples: int = field(default=500, metadata={"help": "Held-out training images that choices are made on."})
    tune_attack: str = field(default="pgd:steps=10", metadata={"help": "The attack that choices are made by."})
    validation_classes: str | None = field(
        default=None,
        metadata={
            "help": "Classes of the training set, as of a benchmark's classes=, that no run is trained on: choices "
            "are made on their images, as zero-shot as a test of other classes is."
        },
    )
    tests: list[str] = field(default_factory=list, metadata={"help": "Benchmarks; no choice sees their images."})
    test_attacks: list[str] = field(
        default_factory=lambda: ["apgd-ce", "apgd-t"], metadata={"help": "The worst case over these is reported too."}
    )
    test_eps: list[Fraction] | None = field(
        default=None,
        metadata={
            "help": "Radii of tests; by default the attack_eps that all share. Rates and points are chosen at that "
            "alone, also those of a method with an attack_eps of its own."
        },
    )
    test_samples: int | None = field(default=1000, metadata={"help": "So many images of each test, stratified."})
    allow_unequal_budget: bool = field(
        default=False, metadata={"help": "Compare runs that differ in images or attack steps; the table says so."}
    )
    print_commands: bool = field(default=False, metadata={"help": "Print what can be run now as commands, and end."})
    report: bool = field(
        default=False, metadata={"help": "Write the report of what is done by now, say what isn't, and end."}
    )
    task: str | None = field(default=None, metadata={"help": "Do this task alone, such as train--tecoa-0.05-0."})

    def __post_init__(self):
        for name in ("seeds", "dial", "tests", "test_attacks", "test_eps"):
            if getattr(self, name) == []:
                raise InputError(f"There are no {name}: give one or several.")
        for name in ("seeds", "tests", "test_attacks"):
            refuse_repetition(name, getattr(self, name))
        refuse_repetition("test_eps", [_read_radius(eps) for eps in self.test_eps or []])
        for seed in self.seeds:
            check_at_least(0, seeds=seed)
        check_rates(self.learning_rates)
        check_rule(self.choose)
        make_grid(self.dial)
        check_at_least(1, tune_samples=self.tune_samples)
        if self.test_samples is not None:
            check_at_least(1, test_samples=self.test_samples)


def refuse_repetition(name: str, values: list) -> None:
    """Refuse a list that has something twice."""
    for value in values:
        if values.count(value) > 1:
            raise InputError(f"{name} have {value} twice: give each once.")


def _read_radius(eps: float) -> str:
    """A radius of `test_eps` as tables and the names of tasks have it."""
    try:
        return str(Radius(eps))
    except InputError as error:
        raise InputError(f"test_eps: {error}") from error


def check_rates(rates: list[float]) -> None:
    """Refuse learning rates that aren't above 0, one that is there twice, or none."""
    if not rates:
        raise InputError("There are no learning_rates: give one or several.")
    refuse_repetition("learning_rates", [f"{rate:g}" for rate in rates])  # as the folders of runs have them
    for rate in rates:
        if not 0 < rate < float("inf"):
            raise InputError(f"learning_rates have {rate:g}, but each must be above 0.")


@dataclass(frozen=True)
class Method:
    """What is compared with others.

    Args:
        name (`str`): What tables call it.
        settings (`dict`): Fields of a run that differ from those that all share, as YAML has them.
        learning_rates (`tuple[float]`): Of which its own is chosen.
    """

    name: str
    settings: dict = field(hash=False)
    learning_rates: tuple[float, ...]


@dataclass(frozen=True)
class Run:
    """A run of a method: `str` gives the name of its folder, such as `tecoa-0.05-0`."""

    method: str
    learning_rate: float
    seed: int

    def __str__(self) -> str:
        return f"{file_name(self.method)}-{self.learning_rate:g}-{self.seed}"


class Grid:
    """The runs of a comparison, and what they are tested on.

    Args:
        arguments (`list[str]`): Settings of the comparison and those that all runs share, as of a command line.
        methods (`dict[str, Method]`): By name.
        types (`tuple`): The dataclasses of a run's settings: the recipe's, and [`HPTConfig`].

    Attributes:
        comparison ([`Comparison`]), recipe, args ([`HPTConfig`]): The settings that all runs share.
        folder (`Path`): Where all of it lies.
        tests (`dict[str, Reference]`): What is tested on, by its text without local paths.

    Raises:
        InputError: for settings that can't be meant, naming the method that they are of.
    """

    def __init__(self, arguments: list[str], methods: dict[str, Method], types: tuple[type, ...]):
        self._arguments, self._types, self.methods = arguments, types, methods
        self.comparison, self.recipe, self.args = parse_arguments((Comparison, *types), arguments)
        self.folder = Path(self.args.output_dir)
        references = expand_all(list(map(pin_samples, self.comparison.tests)))
        self.tests = {reference.without_local_paths(): reference for reference in references}
        if len(self.tests) < len(references):
            raise InputError(f"tests have {', '.join(self.tests)} twice: give each once, or names, as NAME=PATH.")
        parse_attacks_without_proxy([self.comparison.tune_attack], [self.eps])
        parse_attacks_without_proxy(self.comparison.test_attacks, self.test_eps)
        self._loaded: dict[tuple, Benchmark | tuple] = {}  # images, once for all tasks
        self._settings: dict[Run, tuple] = {}
        for method in methods.values():
            self._settings |= {run: self._parse(run) for run in self.runs_of(method.name)}
        self._refuse_twins()
        for name in self.targets().keys() & methods.keys():
            raise InputError(f"No method can be called {name!r}: the target before training is, and is compared too.")

    @property
    def eps(self) -> Radius:
        """The radius at which rates and points are chosen: that of the settings that all share."""
        return Radius(self.args.attack_eps)

    @property
    def test_eps(self) -> list[Radius]:
        """The radii at which points are tested, ascending."""
        return as_radii(self.comparison.test_eps or self.eps)

    def in_file_names(self, eps: Radius) -> str:
        """What names of files say of the radius of a test: nothing of that at which points are chosen."""
        return "" if eps == self.eps else f"eps{file_name(str(eps))}"

    def runs_of(self, method: str) -> list[Run]:
        """All runs that a method can have: at each of its rates, with each seed."""
        return [Run(method, *place) for place in product(self.methods[method].learning_rates, self.comparison.seeds)]

    def tuning_runs(self, method: str) -> list[Run]:
        """The runs that a method's rate is chosen by: at each rate, with the first seed."""
        return [run for run in self.runs_of(method) if run.seed == self.comparison.seeds[0]]

    def run_folder(self, run: Run) -> Path:
        return self.folder / "runs" / str(run)

    def first_run(self, method: str) -> Run:
        """The run that stands for a method where rate and seed don't matter."""
        return self.runs_of(method)[0]

    def settings(self, run: Run) -> tuple:
        """The recipe's fields and the [`HPTConfig`] of a run."""
        return self._settings[run]

    def choosing_images(self, run: Run) -> tuple[Benchmark, Benchmark | None]:
        """What a run trains on, and the images held out of it, on which choices are made: nothing of a test."""
        recipe, args = self.settings(run)
        key = recipe.train_dataset, recipe.validation_size, recipe.protocol, recipe.streaming, recipe.max_train_samples
        key += (who_needs_labels(args),)
        if key not in self._loaded:
            self._loaded[key] = self._load_choosing_images(recipe, args)
        return self._loaded[key]

    def _load_choosing_images(self, recipe, args) -> tuple[Benchmark, Benchmark | None]:
        classes = self.comparison.validation_classes
        if classes is None:
            return load_data(recipe, args)
        if recipe.streaming:
            raise InputError("validation_classes can't be taken out of a stream: leave them out, or don't stream.")
        whole, held_out = load_data(replace(recipe, max_train_samples=None), args)
        try:
            chosen_on = take_classes(whole if held_out is None else held_out, classes)
            return take_classes(whole, without_classes=classes).subset(recipe.max_train_samples), chosen_on
        except InputError as error:
            raise InputError(f"validation_classes: {error}") from error

    @property
    def trainer_may_evaluate(self) -> bool:
        """Whether the images that are held out are of the classes that runs are trained on."""
        return self.comparison.validation_classes is None

    def test_images(self, run: Run, test: str) -> Benchmark:
        """What a run is tested on."""
        key = test, self.settings(run)[0].protocol
        if key not in self._loaded:
            self._loaded[key] = load_benchmark(self.tests[test], protocol=key[1])
        return self._loaded[key]

    def _parse(self, run: Run) -> tuple:
        own = as_arguments(self.methods[run.method].settings, self._types, f"method {run.method!r}")
        own += ["--learning_rate", repr(run.learning_rate), "--seed", str(run.seed), "--save_endpoints", "True"]
        own += ["--output_dir", str(self.run_folder(run))]
        try:
            return parse_arguments((Comparison, *self._types), [*self._arguments, *own])[1:]
        except InputError as error:
            raise InputError(f"Method {run.method!r}: {error}") from error

    def _refuse_twins(self) -> None:
        """Refuse two methods whose runs would be the same."""
        known = {}
        for name in self.methods:
            recipe, args = self.settings(self.first_run(name))
            settings = vars(recipe) | describe_settings(args, {})
            in_effect = {field: value for field, value in settings.items() if field not in args.without_effect}
            for twin, (theirs, theirs_in_effect) in known.items():
                if settings == theirs:
                    raise InputError(f"Methods {twin!r} and {name!r} have the same settings: give each method once.")
                if in_effect == theirs_in_effect:
                    differing = " and ".join(_differing(settings, theirs))
                    raise InputError(
                        f"Methods {twin!r} and {name!r} would train the same: they differ in {differing} alone, which "
                        f"changes nothing with anchor_epochs {args.anchor_epochs}, transfer_epochs "
                        f"{args.transfer_epochs} and restart {args.restart}."
                    )
            known[name] = settings, in_effect

    def targets(self) -> dict[str, Run]:
        """The vanilla targets by what tables call them, each with a run that has it."""
        runs = {}
        for method in self.methods:
            recipe, _ = self.settings(self.first_run(method))
            size = recipe.image_size and f"{recipe.image_size} pixels"
            name = " ".join(filter(None, ("@".join(filter(None, (recipe.target, recipe.target_revision))), size)))
            runs.setdefault(name, self.first_run(method))
        if len(runs) == 1:
            return dict.fromkeys([VANILLA], *runs.values())
        return {f"{VANILLA} {name}": run for name, run in runs.items()}

    # What can't change between two calls that share a folder

    def describe(self) -> dict:
        """The protocol, and the settings of each method; not the radii of tests, by which nothing is chosen."""
        protocol = {name: getattr(self.comparison, name) for name in PROTOCOL} | {"attack_eps": float(self.eps)}
        protocol["tests"] = list(self.tests)
        return {"protocol": protocol, "methods": {name: self._describe_method(name) for name in self.methods}}

    def _describe_method(self, name: str) -> dict:
        """What its weights depend on, beside rate and seed."""
        recipe, args = self.settings(self.first_run(name))
        described = describe_settings(args, vars(recipe))
        return {field: described[field] for field in OF_THE_WEIGHTS if field in described and field not in NOT_GIVEN}


def _differing(one: dict, other: dict) -> list[str]:
    return [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]


def read_grid(arguments: list[str], nested: dict, types: tuple[type, ...], where) -> Grid:
    """The grid of a YAML file and a command line, as of [`~hpt.cli.read_arguments`].

    Args:
        arguments (`list[str]`): From there.
        nested (`dict`): `methods`, and if the file has it `vary`, as the file has them.
        types (`tuple`): The dataclasses of a run's settings: the recipe's, and [`HPTConfig`].
        where: What messages call the file.

    Raises:
        InputError: for settings that can't be meant, naming the method that they are of.
    """
    given = [argument[2:].partition("=")[0].replace("-", "_") for argument in arguments if argument.startswith("--")]
    _refuse_given(given, NOT_GIVEN, "A comparison")
    methods = _vary(_read_mapping(nested, "methods", where), _read_mapping(nested, "vary", where))
    if not methods:
        raise InputError(
            f"{where} has no methods: write `methods:` into it, with a line for each."
            if where
            else "There are no methods: give a YAML file that has them, by --config."
        )
    if "output_dir" not in given:
        raise InputError("There is no output_dir: give the folder of the comparison.")
    check_names(methods)
    (comparison, *_) = parse_arguments((Comparison, *types), arguments)
    read = {name: _read_method(name, settings, types, comparison) for name, settings in methods.items()}
    return Grid(arguments, read, types)


def _refuse_given(given, forbidden: dict[str, str], where: str) -> None:
    for name in given:
        if name in forbidden:
            raise InputError(f"{where} sets {name}, but {forbidden[name]}: leave it out.")


def _read_mapping(nested: dict, name: str, where) -> dict:
    """A mapping of the YAML file, if it has that."""
    value = nested.get(name) or {}
    if not isinstance(value, dict):
        raise InputError(f"{where}: {name} must be a mapping, with a line `name: ...` for each.")
    return {str(key): inner for key, inner in value.items()}


def _vary(methods: dict, varied: dict) -> dict:
    """The methods with each combination of the fields that vary: `tecoa, attack_steps=2`."""
    for name, values in varied.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"vary: {name} must be a list of values, such as [1, 2].")
        refuse_repetition(f"vary: {name}", values)
    combinations = [dict(zip(varied, values, strict=True)) for values in product(*varied.values())]
    made = {}
    for name, settings in methods.items():
        if not isinstance(settings, dict):
            raise InputError(f"methods: {name} must be a mapping of settings, such as {{objective: tecoa}}.")
        if both := sorted(settings.keys() & varied.keys()):
            raise InputError(f"methods: {name} sets {both[0]}, which vary sets too: give it once.")
        for combination in combinations:
            made[", ".join([name, *(f"{key}={value}" for key, value in combination.items())])] = settings | combination
    return made


def _read_method(name: str, settings: dict, types: tuple[type, ...], comparison: Comparison) -> Method:
    """A method; a list of learning rates of its own takes the place of the comparison's."""
    settings = dict(settings)
    rates = settings.pop("learning_rates", comparison.learning_rates)
    _refuse_given(settings, NOT_GIVEN | NOT_OF_METHODS, f"Method {name!r}")
    try:
        rates = tuple(float(Fraction(rate)) for rate in rates)
    except (TypeError, ValueError):
        raise InputError(f"Method {name!r}: learning_rates are {rates!r}, but must be a list of numbers.") from None
    as_arguments(settings, types, f"method {name!r}")  # refuses unknown fields
    check_rates(list(rates))
    return Method(name, settings, rates)
