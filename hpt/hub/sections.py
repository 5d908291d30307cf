"""The sections of a model card: each a function of what was recorded of the run and measured on the model."""

from collections.abc import Callable
from dataclasses import dataclass

from hpt.data.subsets import list_part
from hpt.escaping import address, code, markdown, shell
from hpt.evaluation.report import describe_resolution, markdown_table
from hpt.hub.card_text import loaded_by
from hpt.hub.choice import again, describe_place, interpolation
from hpt.hub.folder import CURVES, FIGURES, MAY_BE_LOCAL, RUN_FILE, ModelFolder
from hpt.hub.measurements import guesses, limits, results, strongest_result
from hpt.hub.origin import conversion, describe_origin
from hpt.hub.run_check import NO_ATTACK
from hpt.hub.usage import usage
from hpt.prompts import list_templates


HPT_GPD = "2601.12865"  # on arXiv
TRAINER = "HPTTrainer"
CITATION = """\
```bibtex
@article{fu2026proxy,
  title={Proxy Robustness in Vision Language Models is Effortlessly Transferable},
  author={Fu, X. and Huang, F. and Zhang, L.},
  journal={arXiv preprint arXiv:2601.12865},
  year={2026},
  eprint={2601.12865},
  archivePrefix={arXiv},
  url={https://arxiv.org/abs/2601.12865}
}
```"""


def summary(folder: ModelFolder, model_id: str) -> str:
    """The name as heading; that it only guesses, if so; what it is, what it was made from, what was measured."""
    text = _of_trained(folder) if folder.run and folder.run["step"] > 0 else _of_untrained(folder)
    heading = f"{loaded_by(model_id)}\n# {markdown(model_id.split('/')[-1])}"
    return "\n\n".join(filter(None, [heading, guesses(folder.rows), text]))


def _of_untrained(folder: ModelFolder) -> str:
    state = "isn't trained yet" if folder.run else "hpt has measured; how it was trained isn't recorded"
    if folder.conversion is not None and folder.run is None:
        state = f"was converted from {describe_origin(folder.conversion)}, and not trained here"
    sentences = [f"A {code(folder.model['architecture'])} that {state}.", describe_place(folder.choice)]
    return " ".join(filter(None, [*sentences, strongest_result(folder.rows, None)]))


def _of_trained(folder: ModelFolder) -> str:
    run = folder.run
    parts = "both towers were" if run["trainable"] == "all" else "the vision tower was"
    purpose = f" {_purpose(run)}{_taught_by(run)}" if run["objective"] else ""
    unknown = [] if run["objective"] else ["What that step minimises, and how it attacks images, isn't recorded."]
    sentences = [
        f"{_adapters(run) if folder.is_adapter else 'A'} {code(folder.model['architecture'])}, of which {parts} "
        f"fine-tuned by {_method(run)}{_cited(run)}{purpose}.",
        *unknown,
        "It classifies images by any class names, as the vanilla model does that it was made from "
        f"({_name(run['target'])}).",
        *filter(None, [describe_place(folder.choice)]),
        strongest_result(folder.rows, run["settings"].get("attack_eps", "1/255")),
    ]
    if folder.is_unfinished:
        place = f"after step {run['step']} of {run['steps']}, in the {run['stage']} stage"
        sentences.append(f"**It is a checkpoint {markdown(place)}.**")
    if run["best_step"]:
        best = markdown(str(run["best_step"]))
        sentences.append(f"Of the steps evaluated in training, its weights are those after the best, {best}.")
    return " ".join(sentences)


def _purpose(run: dict) -> str:
    """What training was for, as far as what it saw can serve it."""
    if run["attack"] == NO_ATTACK:
        return "on clean images alone, without any attack"
    return "to withstand small adversarial changes of its input"


def _adapters(run: dict) -> str:
    """`LoRA adapters for a`, of a run that trained LoRA adapters."""
    return f"{markdown(run['adapter'].partition(' ')[0])} adapters for a"


def is_hpt_gpd(run: dict) -> bool:
    """Whether a run was of the paper's method, with its objectives in both stages and the restart between them."""
    whole = run["schedule"]["anchor_epochs"] > 0 and _restarts(run["schedule"])
    return run["objective"] == "hpt" and whole and _anchor(run) == "anchor"


def _restarts(schedule: dict) -> bool:
    """Whether the transfer stage began at the vanilla weights, as in every run of hpt 0.4.0 or before."""
    return schedule.get("restart", True)


def _anchor(run: dict) -> str | None:
    """The anchor stage's objective, which was HPT-GPD's where a run of hpt 0.1.0 doesn't say it."""
    return run.get("anchor_objective", "anchor")


def _method(run: dict) -> str:
    """HPT-GPD, or what of it was used."""
    if is_hpt_gpd(run):
        return "HPT-GPD"
    if run["objective"] is not None:
        name = "HPT" if run["objective"] == "hpt" else f"the objective {code(run['objective'])}"
    else:
        name = f"a training step of its own, that of {code(run['trainer'])},"
    if run["schedule"]["anchor_epochs"] == 0:
        return f"{name} without GPD"
    restart = "" if _restarts(run["schedule"]) else " without its restart"
    anchor = f", anchored by {code(_anchor(run))}" if _anchor(run) not in (None, "anchor") else ""
    return f"{name} with GPD{restart}{anchor}"


def _papers(run: dict) -> list[str]:
    """Numbers on arXiv of what it was trained by, which was HPT-GPD where a run of hpt 0.1.0 doesn't say it."""
    return run.get("papers", [HPT_GPD])


def _cited(run: dict) -> str:
    links = ", ".join(map(_paper, _papers(run)))
    return f" ({links})" if links else ""


def _paper(number: str) -> str:
    return f"[arXiv {markdown(number)}](https://arxiv.org/abs/{address(number)})"


def _taught_by(run: dict) -> str:
    """Which frozen models it learned from, if it did."""
    proxies = _proxies(run)
    if not proxies:
        return ""
    other = " of another architecture" * all(_differ(run["target"], proxy) for proxy in proxies)
    models = "a frozen model" if len(proxies) == 1 else "frozen models"
    return f", by learning from {models}{other} ({', '.join(map(_proxy_name, proxies))})"


def _proxies(run: dict) -> list[dict]:
    """The frozen models; runs of hpt 0.1.0 and 0.2.0 had one at most."""
    return run["proxies"] if "proxies" in run else list(filter(None, [run["proxy"]]))


def _proxy_name(proxy: dict) -> str:
    if "function" in proxy:
        return f"{code(proxy['function'])}, a function of images"
    if proxy.get("original"):
        return "its own vanilla copy"
    return f"{code(proxy['wrapper'])} around {_name(proxy)}" if proxy.get("wrapper") else _name(proxy)


def _differ(target: dict, proxy: dict) -> bool:
    """Whether two models are of different architecture, as far as it is recorded."""
    shape = ("architecture", "image_size", "patch_size", "parameters")
    return "function" not in proxy and any(target[key] != proxy[key] for key in shape)


def training(folder: ModelFolder, model_id: str) -> str:
    """Models, data, both stages, hardware and time as a table; and the training curves."""
    run = folder.run
    if run is None:
        return "How it was trained isn't recorded here."
    towers = {"vision": "vision tower and its projection", "all": "both towers"}[run["trainable"]]
    lines = [
        ["target", f"{_origin(run['target'])}, {_shape(run['target'])}{_resized(run['settings'])}"],
        *([_proxy_title(run, proxy), _proxy_cell(proxy)] for proxy in _proxies(run)),
        *([["proxies together", markdown(run["proxy_combination"])]] if run.get("proxy_combination") else []),
        ["trained", markdown(run["adapter"] or towers)],
        *_data_rows(run["data"]),
        *_augmentation(run["settings"]),
        ["prompts", _prompts(run)],
        ["objective", markdown(f"{run['objective']} ({run['divergence']})") if run["objective"] else "not recorded"],
        *_other_anchor(run),
        *_stages(run["schedule"], "HPT" if run["objective"] == "hpt" else "transfer"),
        ["attack in training", markdown(run["attack"] or "not recorded")],
        ["batch", markdown(f"{run['batch_size']} images, {run['optimizer']}")],
        ["precision", markdown(run["precision"])],
        ["hardware", markdown(run["hardware"])],
        ["time", f"{_duration(run['seconds'])} for {run['step']} of {run['steps']} steps"],
    ]
    table = markdown_table([["", ""], *lines])
    return f"{table}\n\n![Training curves]({FIGURES}/{CURVES})" if CURVES in folder.pictures else table


def _other_anchor(run: dict) -> list[list[str]]:
    """The anchor stage's objective, where it isn't HPT-GPD's."""
    return [["objective of the anchor stage", markdown(_anchor(run))]] if _anchor(run) not in (None, "anchor") else []


def _proxy_title(run: dict, proxy: dict) -> str:
    """What is said of a proxy: of a step that isn't hpt's, nobody knows whether it learns from it."""
    title = "proxy" if run["objective"] else "proxy that was given"
    return f"{title}, in {code(proxy['wrapper'])}" if proxy.get("wrapper") else title


def _proxy_cell(proxy: dict) -> str:
    if "function" in proxy:
        size = f", {proxy['parameters'] / 1e6:,.3g} M parameters" if proxy["parameters"] else ""
        weights = f", weights {proxy['weights']}" if proxy["weights"] else ""
        return f"{_proxy_name(proxy)} to logits{markdown(size + weights)}"
    prompts = f", prompts {', '.join(map(code, proxy['templates']))}" if proxy.get("templates") else ""
    origin = "the target's own vanilla copy" if proxy.get("original") else _origin(proxy)
    return f"{origin}, {_shape(proxy)}, {markdown(proxy['dtype'])}{prompts}"


def _augmentation(settings: dict) -> list[list[str]]:
    """What was done to the training images at random, if anything was."""
    return [["augmentation", code(settings["augmentation"])]] if "augmentation" in settings else []


def _stage(settings: dict, stage: str) -> str:
    epochs = settings[f"{stage}_epochs"]
    if epochs == 0:
        return "none"
    rate = settings["anchor_learning_rate" if stage == "anchor" else "learning_rate"]
    steps, warmup = epochs * settings["steps_per_epoch"], settings["warmup_steps"]
    warmup = f"{warmup:g} warm-up steps" if warmup >= 1 else f"a warm-up of {100 * warmup:g} %"
    counted = f"{epochs} epoch{'s' * (epochs > 1)}, {steps} steps"
    return f"{counted}, peak learning rate {rate:g}, cosine after {warmup}"


def _stages(settings: dict, transfer: str) -> list[list[str]]:
    """Both stages of GPD with what acts on the weights, or the only one without it."""
    if settings["anchor_epochs"] == 0:
        return [["stages", f"one, {_stage(settings, 'transfer')}"]]
    return [
        ["generalization-anchored warm-up", _stage(settings, "anchor")],
        [f"generalization-pulled {transfer}", _stage(settings, "transfer")],
        ["EMA decay, pull ratio", f"{settings['ema_decay']:g}, {settings['pull_ratio']:g}"],
        *([] if _restarts(settings) else [["restart", "none: the second stage goes on from the first"]]),
    ]


def reproduction(folder: ModelFolder, model_id: str) -> str:
    """The command, what it needs, and the versions that it ran with."""
    run = folder.run
    if run is None:
        return ""
    own = run.get("trainer", TRAINER) != TRAINER
    text = _by_recipe(run) if "target" in run["settings"] and not own else _in_python(run)
    if names := run.get("own_objectives"):
        text += f"Not part of hpt: {', '.join(map(code, names))}. "
    listed = ", ".join(f"{name} {version}" for name, version in run["versions"].items() if name != "commit")
    return f"{text}{again(folder.choice)}It ran with {markdown(listed)}."


def _in_python(run: dict) -> str:
    name = run.get("trainer", TRAINER)
    own = "" if name == TRAINER else f"{code(name)}, a subclass of "
    return (
        f"It was trained in Python, by {own}`{TRAINER}` of hpt {_checkout(run)}, with the models and data above and "
        f"the `HPTConfig` of `{RUN_FILE}`, which has all that differs from the defaults. "
    )


def _by_recipe(run: dict) -> str:
    needed = [name for name in MAY_BE_LOCAL if _proxies(run) or name not in ("proxy", "proxies")]
    local = {name: value for name, value in run["settings"].items() if name in needed and "PATH/" in str(value)}
    processes = f"--num_processes {run['processes']} " if run["processes"] > 1 else ""
    given = "".join(f" \\\n    --{name} {_as_arguments(value)}" for name, value in local.items())
    seed = markdown(str(run["seed"]))
    text = (
        f"In a checkout of hpt {_checkout(run)}, with `{RUN_FILE}` from here (seed {seed}):\n\n```bash\n"
        f"accelerate launch {processes}recipes/hpt_gpd.py --config {RUN_FILE} --output_dir outputs/again{given}\n"
        "```\n\n"
    )
    if local:
        text += "`PATH` stands for folders of the machine that it ran on: put yours there.\n\n"
    for name in filter(needed.__contains__, run["pretrained_by"]):
        file = code(run["pretrained_by"][name])
        text += f"The {markdown(name)} was made by `recipes/pretrain_clip.py` from {file}.\n\n"
    return text


def _checkout(run: dict) -> str:
    commit, plus, _ = (run["versions"]["commit"] or "").partition("+")
    version = f"at commit {code(commit)}" if commit else f"of version {markdown(run['versions']['hpt'])}"
    return f"{version}, from which files differed when it ran" if plus else version


def _as_arguments(value: str | list[str]) -> str:
    return " ".join(map(shell, [value] if isinstance(value, str) else value))


def citation(folder: ModelFolder, model_id: str) -> str:
    """The papers that a model was trained by, the one of HPT-GPD as BibTeX."""
    papers = _papers(folder.run) if folder.run else []
    others = "\n".join(f"- {_paper(number)}" for number in papers if number != HPT_GPD)
    return "\n\n".join(filter(None, [CITATION if HPT_GPD in papers else "", others]))


# Words and cells


def _name(model: dict) -> str:
    if model["hub_id"]:
        return f"[{markdown(model['name'])}](https://huggingface.co/{address(model['hub_id'])})"
    converted = f", converted from {code(model['converted_from'])}" if "converted_from" in model else ""
    return f"{code(model['name'])}, a local model{converted}" if model["name"] else "a local model"


def _origin(model: dict) -> str:
    if model["hub_id"] is None:
        return _name(model)
    return f"{_name(model)} at {markdown(model['revision'] or 'a revision that was not recorded')}"


def _shape(model: dict) -> str:
    patches = f", {model['patch_size']}-pixel patches" if model["patch_size"] else ""
    return markdown(f"{model['parameters'] / 1e6:,.3g} M parameters, {model['image_size']} pixels{patches}")


def _resized(settings: dict) -> str:
    """That the target had another input size before it was trained, if so."""
    return ", its input size changed before training" if "image_size" in settings else ""


def _duration(seconds: float) -> str:
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds > length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def _prompts(run: dict) -> str:
    """The templates of the class prompts, unless there were no classes."""
    return ", ".join(map(code, _templates(run))) if run["data"]["class_names"] else "none"


def _templates(run: dict) -> list[str]:
    """The prompt templates of the training classes, of all training sets."""
    sets = run["data"].get("sets", [{"template": run["prompt_template"]}])
    return list(dict.fromkeys(template for part in sets for template in list_templates(part["template"])))


def _data_rows(data: dict) -> list[list[str]]:
    """What was trained on, with a row for each set of a mixture."""
    if "sets" not in data:
        return [["data", _data(data)]]
    batches = {"one_set": "each step on images of one set", "mixed": "batches of all sets, over all classes"}
    kind = batches.get(data["batches"], data["batches"])
    title = markdown(f"{data['name']}: {data['images_per_epoch']:,} images an epoch, {kind}")
    parts = [f"{_data(part)}, of {part['images']:,}" for part in data["sets"]]
    return [["data", title], *(["", part] for part in parts)]


def _data(data: dict) -> str:
    source = data["source"] or "not read from the Hub"
    way = ", streamed" if data["streamed"] else ""
    if "geometry" in data:  # as it isn't in a run of hpt 0.1.0
        way += f", at {describe_resolution(data['geometry'])}"
    further = [list_part(data["name"], data["class_names"])]
    further += [] if data.get("labelled", True) else ["images alone, without labels or captions"]
    images = f"{data['images_per_epoch']:,} images an epoch{way}"
    return markdown(", ".join([f"{data['name']} ({data['split']}; {source})", images, *filter(None, further)]))


# The list


@dataclass(frozen=True)
class Section:
    """A part of a card that is written anew each time.

    Args:
        name (`str`): Marks it in the card, where it is found again: it never changes.
        title (`str`): Heading; `None` for a text that begins with one.
        write (`Callable`): From a [`ModelFolder`] and the id that the model is loaded by to the text; an empty one
            leaves the section out.
    """

    name: str
    title: str | None
    write: Callable[[ModelFolder, str], str]


SECTIONS = [
    Section("summary", None, summary),
    Section("use", "How to use it", usage),
    Section("results", "Results", results),
    Section("conversion", "What it was converted from", conversion),
    Section("training", "How it was trained", training),
    Section("interpolation", "Where its weights lie, and why", interpolation),
    Section("limits", "Limits", limits),
    Section("reproduce", "How to reproduce it", reproduction),
    Section("citation", "Citation", citation),
]
