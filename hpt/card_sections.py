"""The sections of a model card, each from what was recorded of the run and measured on the model."""

from pathlib import Path

from hpt.attacks import ATTACKS, Suite
from hpt.planning import describe_eps, describe_norm, describe_radius
from hpt.processor_check import read_agreement
from hpt.provenance import MODELS
from hpt.published_rows import THIS, pair_up, shown_rows
from hpt.reliability import find_flags
from hpt.report import attack_label, describe_resolution, format_accuracy, markdown_table
from hpt.results import CLEAN, LARGE_EPS, WORST_CASE, Row


NOT_EVALUATED = "It has not been evaluated: nothing is known of its accuracy and robustness."
PAPER = "[arXiv 2601.12865](https://arxiv.org/abs/2601.12865)"
CURVES = "training_curves.png"


def describe_summary(record: dict | None, architecture: str, rows: list[Row], adapter: bool) -> str:
    """Three sentences: what it is, what it was made from, what was measured."""
    if record is None:
        return f"A `{architecture}` that hpt has measured, and not trained. {_measured(rows, None)}"
    what = f"`{architecture}`"
    parts = "both towers were" if record["trainable"] == "all" else "the vision tower was"
    sentences = [
        f"A {'LoRA adapter for a ' if adapter else ''}{what}, of which {parts} fine-tuned by HPT-GPD ({PAPER}) to "
        "withstand small adversarial changes of its input, by learning from a frozen model of another architecture "
        f"that isn't robust itself ({_name(record['proxy'])}).",
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


def _measured(rows: list[Row], eps: str | None) -> str:
    """The clean accuracy and the lowest under attack, at the radius of training if it was measured there."""
    pairs = [(own, vanilla) for own, vanilla in pair_up(shown_rows(rows)) if own.attacked in (None, THIS)]
    clean = next((own for own, _ in pairs if own.attack == CLEAN), None)
    attacked = [
        (own, vanilla)
        for own, vanilla in pairs
        if clean is not None and own.attack != CLEAN and (own.benchmark, own.n) == (clean.benchmark, clean.n)
    ]
    trained_at = [pair for pair in attacked if describe_eps(pair[0].eps, pair[0].norm) == eps]
    attacked = trained_at or attacked
    if not attacked:
        return NOT_EVALUATED if clean is None else f"On {_samples(clean)} it is right on {_percent(clean)}."
    worst, vanilla = min(attacked, key=lambda pair: (pair[0].accuracy, pair[0].attack != WORST_CASE))
    compared = f", where the vanilla model is on {_percent(vanilla)}" if vanilla else ""
    attack = f"{attack_with_step(worst)} at {describe_radius(worst.eps, worst.norm)}"
    return f"On {_samples(clean)} it is right on {_percent(clean)}, and under {attack} on {_percent(worst)}{compared}."


def describe_results(folder: Path, rows: list[Row], pictures: set[str]) -> str:
    """The table against the vanilla model, pictures over eps, and how far the saved processor is from all that."""
    if not any(row.model == THIS for row in rows):
        return NOT_EVALUATED
    tables: dict[str, list[list[str]]] = {}
    for own, vanilla in sorted(pair_up(shown_rows(rows)), key=_order):
        title = f"**{own.benchmark}** ({own.split}, n = {own.n}), attacked at {describe_resolution(own)}:"
        radius = "" if own.eps is None else f", {describe_radius(own.eps, own.norm)}"
        attack = "none (clean)" if own.attack == CLEAN else f"{attack_with_step(own)}{radius}"
        lines = tables.setdefault(title, [["attack", "vanilla", "this model"]])
        lines.append([attack, format_accuracy(vanilla), format_accuracy(own)])
    parts = [
        "Accuracy in %, with its 95 % Wilson interval; a dash was not measured. Every row, with all that it depends "
        "on, is in `evaluation.jsonl`, and those of this model are in the metadata."
    ]
    for title, lines in tables.items():
        parts += [title, markdown_table(lines)]
    over = {", ".join(row.parameters["attacks"]) for row in shown_rows(rows) if row.attack == WORST_CASE}
    parts += [f"Worst case per sample over {one}." for one in sorted(over)]
    names = sorted(name for name in pictures if name.startswith("robustness_"))
    parts += [f"![Accuracy over eps](figures/{name})" for name in names]
    if not names:
        parts.append("It was attacked at too few radii for a picture of accuracy over eps.")
    return "\n\n".join([*parts, *_describe_agreement(folder)])


def _order(pair: tuple[Row, Row | None]) -> tuple:
    own = pair[0]
    return own.benchmark, own.eps or 0, own.attack == WORST_CASE, own.attacked != own.model, own.attack


def _describe_agreement(folder: Path) -> list[str]:
    found = read_agreement(folder)
    if found is None:
        return []
    own, theirs, same = (
        f"{100 * found[key]:.1f} %" for key in ("accuracy", "accuracy_by_processor", "same_prediction")
    )
    return [
        f"Through the saved processor, which resizes by PIL, {theirs} of {found['n']} images of {found['benchmark']} "
        f"({found['split']}) are right, and {own} of the same ones as measured above: {same} of the predictions are "
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
        ["generalization-anchored warm-up", _stage(settings, "anchor")],
        ["generalization-pulled HPT", _stage(settings, "transfer")],
        ["EMA decay, pull ratio", f"{settings['ema_decay']:g}, {settings['pull_ratio']:g}"],
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
    if settings[f"{stage}_epochs"] == 0:
        return "none"
    rate = settings["anchor_learning_rate" if stage == "anchor" else "learning_rate"]
    steps = settings[f"{stage}_epochs"] * settings["steps_per_epoch"]
    return f"{settings[f'{stage}_epochs']} epochs, {steps} steps, peak learning rate {rate:g}, cosine"


def describe_limits(rows: list[Row]) -> str:
    """What the numbers don't say."""
    own = [row for row in rows if row.model == THIS]
    lines = []
    attacked = [row for row in own if row.eps and row.attack != LARGE_EPS]
    for norm in sorted({row.norm for row in attacked}):
        lines += _describe_norm(norm, [row for row in attacked if row.norm == norm])
    if own and not attacked:
        lines.append("It was not attacked: nothing is known of its robustness.")
    if own and not any(row.attack == WORST_CASE for row in own):
        lines.append(
            "No worst case over several attacks was measured: stronger ones find more, so robust accuracy is "
            "overstated. Models distilled by KL are known for that."
        )
    sets = sorted({row.benchmark for row in own})
    where = f"on {', '.join(sets)}" if sets else "on nothing yet"
    lines.append(f"It was measured {where}; what it does on other images, classes and prompts isn't known.")
    lines.append("Other perturbations, such as patches, rotations, blur or changed texts, were not tried.")
    lines.append("Nothing is certified: a proxy gives no guarantee, and an attack that fails proves nothing.")
    lines += [f"Doubt (`{flag.name}`) on {flag.benchmark}: {flag.message}" for flag in find_flags(own)]
    return "\n".join(f"- {line}" for line in lines)


def _describe_norm(norm: str, rows: list[Row]) -> list[str]:
    """What a radius means, and which attacks weren't tried at which."""
    radii = sorted({row.eps for row in rows})
    meaning = {
        "linf": "each value of a pixel may change by so much of its range, 255 levels",
        "l2": "the change of all pixels in [0, 1] together is at most so long",
    }
    lines = [
        f"{describe_norm(norm)} eps {_listed(radii, norm)}: {meaning[norm]}, before the image is resized and "
        "normalised. Of larger changes nothing is said."
    ]
    untried: dict[tuple, list[float]] = {}
    for eps in radii:
        tried = _tried([row for row in rows if row.eps == eps])
        names = tuple(name for name, kind in ATTACKS.items() if name not in tried and norm in kind.norms)
        untried.setdefault(names, []).append(eps)
    for names, where in untried.items():
        how = f"not attacked by {', '.join(names)}" if names else "attacked by all that hpt has"
        lines.append(f"At {describe_norm(norm)} eps {_listed(where, norm)} it was {how}.")
    return lines


def _listed(radii: list[float], norm: str) -> str:
    return ", ".join(describe_eps(eps, norm) for eps in radii)


def _tried(rows: list[Row]) -> set[str]:
    """Names of the attacks that a model had to withstand, with the parts of suites and what they make needless."""
    names = {row.attack.partition(":")[0] for row in rows if row.attacked == row.model} | {"transfer"}
    names |= {"fgsm"} if "pgd" in names else set()  # of which it is one step
    for name in names & set(ATTACKS):
        if issubclass(ATTACKS[name], Suite):
            names = names | set(ATTACKS[name].parts)
    return names


def describe_reproduction(record: dict) -> str:
    """The command, what it needs, and the versions that it ran with."""
    settings, versions = record["settings"], record["versions"]
    commit = versions["commit"]
    checkout = f"at commit `{commit}`" if commit else f"of version {versions['hpt']}"
    listed = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "commit")
    if "target" not in settings:
        return (
            f"It was trained in Python, by `HPTTrainer` of hpt {checkout}, with the models and data above and the "
            f"`HPTConfig` of `run.yaml`, which has all that differs from the defaults. It ran with {listed}."
        )
    pretrained = record["pretrained_by"].items()
    local = [name for name in MODELS if str(settings.get(name, "")).startswith("PATH/")]
    local += ["train_dataset"] if "PATH/" in str(settings.get("train_dataset", "")) else []
    given = "".join(f" --{name} {'NAME=PATH' if name == 'train_dataset' else 'PATH'}" for name in local)
    text = (
        f"In a checkout of hpt {checkout}, with `run.yaml` from here (seed {record['seed']}):\n\n```bash\n"
        f"accelerate launch recipes/hpt_gpd.py --config run.yaml --output_dir outputs/again{given}\n```\n\n"
    )
    if local:
        made = {name: f" (made by `recipes/pretrain_clip.py --config recipes/{file}`)" for name, file in pretrained}
        names = ", ".join(f"{name}{made.get(name, '')}" for name in local)
        text += f"Local when it ran, and to be given by a path: {names}.\n\n"
    return f"{text}It ran with {listed}."


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
    return f"{seconds / 3600:.1f} hours" if seconds > 3600 else f"{seconds / 60:.1f} minutes"


def _data(data: dict) -> str:
    source = data["source"] or "not read from the Hub"
    way = ", streamed" if data["streamed"] else ""
    return f"{data['name']} ({data['split']}; {source}), {data['images_per_epoch']:,} images an epoch{way}"


def _samples(row: Row) -> str:
    return f"{row.n} images of {row.benchmark} ({row.split})"


def attack_with_step(row: Row) -> str:
    """What a card and a leaderboard call the attack of a row, with its step size and whom it was made against."""
    if row.attack == WORST_CASE:
        return "the worst case"
    label = attack_label(row)
    label += f" (steps of {describe_eps(row.step_size, row.norm)})" if row.step_size else ""
    made = f" on images made against the {row.attacked} model"
    return label if row.attacked == row.model or row.attack.startswith("transfer") else label + made


def _percent(row: Row) -> str:
    return f"{100 * row.accuracy:.1f} % [{100 * row.low:.1f}, {100 * row.high:.1f}]"
