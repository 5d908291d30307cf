"""The sections of a model card, each from what was recorded of the run and measured on the model."""

import shlex
from pathlib import Path

from hpt.attacks import ATTACKS, Suite
from hpt.evaluation.flags import find_flags
from hpt.evaluation.report import (
    attack_with_step,
    describe_resolution,
    format_accuracy,
    markdown_table,
    percent,
)
from hpt.evaluation.rows import CLEAN, LARGE_EPS, WORST_CASE, Row
from hpt.hub.folder import CURVES, MAY_BE_LOCAL, read_agreement
from hpt.hub.rows import THIS, pair_up, shown_rows
from hpt.radius import describe_norm


NOT_EVALUATED = "It has not been evaluated: nothing is known of its accuracy and robustness."
PAPER = "[arXiv 2601.12865](https://arxiv.org/abs/2601.12865)"


def describe_summary(record: dict | None, architecture: str, rows: list[Row], adapter: bool) -> str:
    """Three sentences: what it is, what it was made from, what was measured."""
    if record is None:
        return f"A `{architecture}` that hpt has measured; how it was trained isn't recorded. {_measured(rows, None)}"
    if record["step"] == 0:
        return f"A `{architecture}` that isn't trained yet. {_measured(rows, None)}"
    what = f"`{architecture}`"
    parts = "both towers were" if record["trainable"] == "all" else "the vision tower was"
    sentences = [
        f"A {'LoRA adapter for a ' if adapter else ''}{what}, of which {parts} fine-tuned by {_method(record)} "
        f"({PAPER}) to withstand small adversarial changes of its input, by learning from a frozen model"
        f"{' of another architecture' if _differ(record['target'], record['proxy']) else ''} "
        f"({_name(record['proxy'])}).",
        "It classifies images by any class names, as the vanilla model does that it was made from "
        f"({_name(record['target'])}).",
        _measured(rows, record["settings"].get("attack_eps", "1/255")),
    ]
    if record["step"] < record["steps"]:
        when = f"after step {record['step']} of {record['steps']}, in the {record['stage']} stage"
        sentences.append(f"**It is a checkpoint {when}.**")
    if record["best_step"]:
        sentences.append(
            f"Of the steps evaluated in training, its weights are those after the best, {record['best_step']}."
        )
    return " ".join(sentences)


def _method(record: dict) -> str:
    """HPT-GPD, or what of it was used."""
    name = "HPT" if record["objective"] == "hpt" else f"the objective `{record['objective']}`"
    gpd = record["schedule"]["anchor_epochs"] > 0
    return f"{name}-GPD" if name == "HPT" and gpd else f"{name} {'with' if gpd else 'without'} GPD"


def _differ(target: dict, proxy: dict) -> bool:
    """Whether two models are of different architecture, as far as it is recorded."""
    return any(target[key] != proxy[key] for key in ("architecture", "image_size", "patch_size", "parameters"))


def _measured(rows: list[Row], eps: str | None) -> str:
    """The clean accuracy and the lowest under attack on the same samples, those that were attacked the most.

    At the radius of training, if it was measured there.
    """
    pairs = [(own, vanilla) for own, vanilla in pair_up(shown_rows(rows)) if own.attacked in (None, THIS)]
    clean = {own.sample_set: own for own, _ in pairs if own.attack == CLEAN}
    attacked = [pair for pair in pairs if pair[0].attack != CLEAN and pair[0].sample_set in clean]
    attacked = [pair for pair in attacked if str(pair[0].radius) == eps] or attacked
    if not attacked:
        largest = max(clean.values(), key=lambda row: row.n, default=None)
        return f"On {_samples(largest)} it is right on {percent(largest)}." if largest else NOT_EVALUATED
    strongest = max(attacked, key=lambda pair: (len(pair[0].parameters.get("attacks", [])), pair[0].n))[0]
    attacked = [pair for pair in attacked if pair[0].sample_set == strongest.sample_set]
    worst, vanilla = min(attacked, key=lambda pair: (pair[0].accuracy, pair[0].attack != WORST_CASE))
    compared = f", where the vanilla model is on {percent(vanilla)}" if vanilla else ""
    attack = f"{attack_with_step(worst)} at {worst.radius.title}"
    right = percent(clean[worst.sample_set])
    return f"On {_samples(worst)} it is right on {right}, and under {attack} on {percent(worst)}{compared}."


def describe_results(folder: Path, rows: list[Row], pictures: set[str]) -> str:
    """The table against the vanilla model, pictures over eps, and how far the saved processor is from all that."""
    if not any(row.model == THIS for row in rows):
        return NOT_EVALUATED
    tables: dict[tuple, list[tuple[Row, Row | None]]] = {}
    for pair in sorted(pair_up(shown_rows(rows)), key=_order):
        tables.setdefault(pair[0].sample_set, []).append(pair)
    parts = [
        "Accuracy in %, with its 95 % Wilson interval; a dash was not measured. Every row, with all that it depends "
        "on, is in `evaluation.jsonl`, and those of this model are in the metadata."
    ]
    titles = [_title(pairs[0][0]) for pairs in tables.values()]
    for title, pairs in zip(titles, tables.values(), strict=True):
        which = f" (samples {pairs[0][0].samples})" if titles.count(title) > 1 else ""
        parts += [f"{title}{which}:", _table(pairs)]
    names = sorted(name for name in pictures if name.startswith("robustness_"))
    parts += [f"![Accuracy over eps](figures/{name})" for name in names]
    if not names:
        parts.append("It was attacked at too few radii for a picture of accuracy over eps.")
    return "\n\n".join([*parts, *_describe_agreement(folder)])


def _table(pairs: list[tuple[Row, Row | None]]) -> str:
    """What was measured on the same samples, with the attacks of the worst case below it."""
    compared = any(vanilla for _, vanilla in pairs)
    lines, notes = [["attack", *(["vanilla"] if compared else []), "this model"]], []
    for own, vanilla in pairs:
        radius = "" if own.eps is None else f", {own.radius.title}"
        attack = "none (clean)" if own.attack == CLEAN else f"{attack_with_step(own)}{radius}"
        lines.append([attack, *([format_accuracy(vanilla)] if compared else []), format_accuracy(own)])
        if own.attack == WORST_CASE:
            notes.append(f"Worst case per sample{radius}: over {', '.join(own.parameters['attacks'])}.")
    return "\n\n".join([markdown_table(lines), *notes])


def _title(row: Row) -> str:
    return f"**{row.benchmark}** ({row.split}, n = {row.n}), attacked at {describe_resolution(row)}"


def _order(pair: tuple[Row, Row | None]) -> tuple:
    own = pair[0]
    place = own.benchmark, own.split, -own.n, own.norm or "", own.eps or 0
    return *place, own.attack == WORST_CASE, own.attacked != own.model, own.attack


def _describe_agreement(folder: Path) -> list[str]:
    found = read_agreement(folder)
    if found is None:
        return []
    own, theirs, same = (
        f"{100 * found[key]:.1f} %" for key in ("accuracy", "accuracy_by_processor", "same_prediction")
    )
    return [
        f"Through the saved processor, which resizes by PIL, {theirs} of {found['n']} images of {found['benchmark']} "
        f"({found['split']}) are right, and {own} of the same ones as hpt resizes them: {same} of the predictions are "
        f"the same, and logits, which span {found['logit_range']:.1f}, differ by {found['mean_difference']:.2g} on "
        f"average and by {found['largest_difference']:.2g} at most."
    ]


def describe_training(record: dict, pictures: set[str]) -> str:
    """Models, data, both stages, hardware and time as a table; and the training curves."""
    settings, data, proxy = record["schedule"], record["data"], record["proxy"]
    trained = {"vision": "vision tower and its projection", "all": "both towers"}[record["trainable"]]
    lines = [
        ["target", f"{_origin(record['target'])}, {_shape(record['target'])}"],
        ["proxy", f"{_origin(proxy)}, {_shape(proxy)}, {proxy['dtype']}"],
        ["trained", record["adapter"] or trained],
        ["data", _data(data)],
        ["prompts", f"`{record['prompt_template']}`"],
        ["objective", f"{record['objective']} ({record['divergence']})"],
        *_stages(settings),
        ["attack in training", record["attack"]],
        ["batch", f"{record['batch_size']} images, {record['optimizer']}"],
        ["precision", record["precision"]],
        ["hardware", record["hardware"]],
        ["time", f"{_duration(record['seconds'])} for {record['step']} of {record['steps']} steps"],
    ]
    parts = [markdown_table([["", ""], *lines])]
    if CURVES in pictures:
        parts.append(f"![Training curves](figures/{CURVES})")
    return "\n\n".join(parts)


def _stage(settings: dict, stage: str) -> str:
    epochs = settings[f"{stage}_epochs"]
    if epochs == 0:
        return "none"
    rate = settings["anchor_learning_rate" if stage == "anchor" else "learning_rate"]
    steps, warmup = epochs * settings["steps_per_epoch"], settings["warmup_steps"]
    warmup = f"{warmup:g} warm-up steps" if warmup >= 1 else f"a warm-up of {100 * warmup:g} %"
    counted = f"{epochs} epoch{'s' * (epochs > 1)}, {steps} steps"
    return f"{counted}, peak learning rate {rate:g}, cosine after {warmup}"


def _stages(settings: dict) -> list[list[str]]:
    """Both stages of GPD with what acts on the weights, or the only one without it."""
    if settings["anchor_epochs"] == 0:
        return [["stages", f"one, {_stage(settings, 'transfer')}"]]
    return [
        ["generalization-anchored warm-up", _stage(settings, "anchor")],
        ["generalization-pulled HPT", _stage(settings, "transfer")],
        ["EMA decay, pull ratio", f"{settings['ema_decay']:g}, {settings['pull_ratio']:g}"],
    ]


def describe_limits(rows: list[Row]) -> str:
    """What the numbers don't say."""
    own = [row for row in rows if row.model == THIS]
    lines = []
    attacked = [row for row in own if row.eps and row.attack != LARGE_EPS]
    meanings = {
        "linf": "each value of a pixel may change by so much of its range, 255 levels",
        "l2": "the change of all pixels in [0, 1] together is at most so long",
    }
    for norm in sorted({row.norm for row in attacked}):
        radii = map(str, sorted({row.radius for row in attacked if row.norm == norm}))
        lines.append(
            f"{describe_norm(norm)} eps {', '.join(radii)}: {meanings[norm]}, before the image is resized and "
            "normalised. Of larger changes nothing is said."
        )
    if own and not attacked:
        lines.append("It was not attacked: nothing is known of its robustness.")
    lines += _describe_untried(attacked)
    sets = sorted({row.benchmark for row in own})
    where = f"on {', '.join(sets)}" if sets else "on nothing yet"
    lines.append(f"It was measured {where}; what it does on other images, classes and prompts isn't known.")
    lines.append("Other perturbations, such as patches, rotations, blur or changed texts, were not tried.")
    lines.append("Nothing is certified: a proxy gives no guarantee, and an attack that fails proves nothing.")
    for flag in find_flags(own):
        radius = "" if flag.radius is None else f" at {flag.radius.title}"
        lines.append(f"Doubt (`{flag.name}`) on {flag.benchmark}{radius}: {flag.message}")
    return "\n".join(f"- {line}" for line in dict.fromkeys(lines))


def _describe_untried(attacked: list[Row]) -> list[str]:
    """Which attacks weren't tried, and where there is no worst case over several, by samples and radius."""
    untried: dict[tuple, list[Row]] = {}
    no_worst_case = []
    for rows in _by_radius(attacked):
        tried = {"fgsm", *_tried(rows)}  # the weakest of all isn't missed
        names = tuple(name for name, kind in ATTACKS.items() if rows[0].norm in kind.norms and name not in tried)
        untried.setdefault(names, []).append(rows[0])
        if not any(row.attack == WORST_CASE and len(row.parameters["attacks"]) > 1 for row in rows):
            no_worst_case.append(rows[0])
    lines = []
    for names, rows in untried.items():
        how = f"not attacked by {', '.join(names)}" if names else "attacked by all that hpt has, FGSM aside"
        lines.append(f"At {_places(rows)} it was {how}.")
    if no_worst_case:
        lines.append(
            f"At {_places(no_worst_case)} no worst case over several attacks was measured: stronger ones find more, "
            "so robust accuracy is overstated. Models distilled by KL are known for that."
        )
    return lines


def _by_radius(rows: list[Row]) -> list[list[Row]]:
    found: dict[tuple, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.benchmark, row.norm, row.eps)):
        found.setdefault((row.sample_set, row.eps, row.norm), []).append(row)
    return list(found.values())


def _places(rows: list[Row]) -> str:
    """Radii and samples of rows: `l_inf eps 4/255, 8/255 on 360 images of digits (test)`."""
    radii: dict[tuple, list[str]] = {}
    for row in rows:
        radii.setdefault((_samples(row), row.norm), []).append(str(row.radius))
    places = [f"{describe_norm(norm)} eps {', '.join(eps)} on {samples}" for (samples, norm), eps in radii.items()]
    return "; ".join(places)


def _tried(rows: list[Row]) -> set[str]:
    """Names of the attacks that the model had to withstand, with the parts of suites that ran."""
    tried = set()
    for row in rows:
        attack = row.named_attack
        if row.attacked == row.model or attack.is_transfer:
            parts = attack.kind.parts if attack.is_known and issubclass(attack.kind, Suite) else ()
            tried |= {attack.name, *(part.name for part in parts)} - set(row.left_out)
    return tried


def describe_reproduction(record: dict) -> str:
    """The command, what it needs, and the versions that it ran with."""
    settings, versions = record["settings"], record["versions"]
    commit, plus, _ = (versions["commit"] or "").partition("+")
    checkout = f"at commit `{commit}`" if commit else f"of version {versions['hpt']}"
    checkout += ", from which files differed when it ran" if plus else ""
    listed = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "commit")
    if "target" not in settings:
        return (
            f"It was trained in Python, by `HPTTrainer` of hpt {checkout}, with the models and data above and the "
            f"`HPTConfig` of `run.yaml`, which has all that differs from the defaults. It ran with {listed}."
        )
    local = {name: value for name, value in settings.items() if name in MAY_BE_LOCAL and "PATH/" in str(value)}
    processes = f"--num_processes {record['processes']} " if record["processes"] > 1 else ""
    given = "".join(f" \\\n    --{name} {_as_arguments(value)}" for name, value in local.items())
    text = (
        f"In a checkout of hpt {checkout}, with `run.yaml` from here (seed {record['seed']}):\n\n```bash\n"
        f"accelerate launch {processes}recipes/hpt_gpd.py --config run.yaml --output_dir outputs/again{given}\n"
        "```\n\n"
    )
    if local:
        text += "`PATH` stands for folders of the machine that it ran on: put yours there.\n\n"
    for name, file in record["pretrained_by"].items():
        text += f"The {name} was made by `recipes/pretrain_clip.py` from `{file}`.\n\n"
    return f"{text}It ran with {listed}."


def _as_arguments(value: str | list[str]) -> str:
    return shlex.join([value] if isinstance(value, str) else value)


# Words and cells


def _name(model: dict) -> str:
    link = f"[{model['name']}](https://huggingface.co/{model['hub_id']})"
    local = f"`{model['name']}`, a local model" if model["name"] else "a local model"
    return link if model["hub_id"] else local


def _origin(model: dict) -> str:
    if model["hub_id"] is None:
        return _name(model)
    return f"{_name(model)} at {model['revision'] or 'a revision that was not recorded'}"


def _shape(model: dict) -> str:
    patches = f", {model['patch_size']}-pixel patches" if model["patch_size"] else ""
    return f"{model['parameters'] / 1e6:,.3g} M parameters, {model['image_size']} pixels{patches}"


def _duration(seconds: float) -> str:
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds > length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def _data(data: dict) -> str:
    source = data["source"] or "not read from the Hub"
    way = ", streamed" if data["streamed"] else ""
    return f"{data['name']} ({data['split']}; {source}), {data['images_per_epoch']:,} images an epoch{way}"


def _samples(row: Row) -> str:
    return f"{row.n} images of {row.benchmark} ({row.split})"
