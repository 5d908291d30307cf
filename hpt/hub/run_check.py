"""What `training.json` says of a run, checked to be whole and of the right kinds before a card is written of it."""

from hpt.json_files import check_whole, unsealed


TOWERS = ("vision", "all")
NO_ATTACK = "none: clean images alone"  # what a run says whose objectives need no attack
MODEL = {
    "name": str,
    "hub_id": str | None,
    "revision": str | None,
    "architecture": str,
    "image_size": int,
    "patch_size": int | list[int] | None,
    "parameters": int,
    "dtype": str,
}
# What some versions don't say of a model, and of a proxy
MODEL_SINCE = {"wrapper": str | None, "vision_tower": str, "templates": list[str] | None, "original": bool}
MODEL_SINCE |= {"converted_from": str}
FUNCTION = {"function": str, "parameters": int, "weights": str | None}  # a proxy that is no dual encoder
DATA = {
    "name": str,
    "split": str,
    "source": str | None,
    "images_per_epoch": int,
    "streamed": bool,
    "class_names": list[str],
}
DATA_SINCE = {"geometry": str, "labelled": bool}  # what the data of some runs lack
MIXTURE = {"sets": list[dict], "batches": str}  # beside the rest, of data from several sets
OF_A_MIXTURE = DATA | {"geometry": str, "images": int, "template": str | list[str]}
SCHEDULE = {
    "steps_per_epoch": int,
    "anchor_epochs": int,
    "transfer_epochs": int,
    "anchor_learning_rate": float,
    "learning_rate": float,
    "warmup_steps": float,
    "ema_decay": float,
    "pull_ratio": float,
}
RUN = {
    "target": dict,
    "vanilla_weights": str,
    "data": dict,
    "prompt_template": str | list[str],
    "trainable": str,
    "adapter": str | None,
    "schedule": dict,
    "batch_size": int,
    "processes": int,
    "optimizer": str,
    "precision": str,
    "hardware": str,
    "seed": int,
    "license": str | None,
    "settings": dict,
    "pretrained_by": dict[str, str],
    "versions": dict[str, str | None],
    "attack": str | None,
    "objective": str | None,
    "divergence": str | None,
    "step": int,
    "steps": int,
    "stage": str,
    "seconds": float,
    "best_step": int | None,
    "weights": str,
}
# What runs of some versions lack
SINCE = {
    "trainer": str,
    "proxy": dict | None,
    "proxies": list[dict],
    "proxy_combination": str | None,
    "anchor_objective": str | None,
    "terms": list[str],
    "own_objectives": list[str],
    "papers": list[str],
}


def parse_run(value: object) -> dict:
    """The run that a value of JSON is, without its digest.

    Raises:
        ValueError: saying what of it was altered, is missing or of another kind.
    """
    run = unsealed(value)
    check_whole(run, RUN | {name: kind for name, kind in SINCE.items() if name in run})
    check_whole(
        run["data"], DATA | {name: kind for name, kind in DATA_SINCE.items() if name in run["data"]}, "data's "
    )
    if "sets" in run["data"]:
        check_whole(run["data"], MIXTURE, "data's ")
        for part in run["data"]["sets"]:
            check_whole(part, OF_A_MIXTURE, "a training set's ")
    check_whole(run["schedule"], SCHEDULE | ({"restart": bool} if "restart" in run["schedule"] else {}), "schedule's ")
    check_whole(run["versions"], {"hpt": str, "commit": str | None}, "versions' ")
    if (run["data"].get("labelled", True) and not run["data"]["class_names"]) or not run["prompt_template"]:
        raise ValueError("it has no class_names, or no prompt_template")
    if not {"proxy", "proxies"} & set(run):
        raise ValueError("it lacks proxies")
    for model in (run["target"], *run.get("proxies", filter(None, [run.get("proxy")]))):
        more = {name: kind for name, kind in MODEL_SINCE.items() if name in model}
        check_whole(model, (FUNCTION if "function" in model else MODEL) | more, "a model's ")
    if run["trainable"] not in TOWERS:
        raise ValueError(f"trainable is {run['trainable']!r}, but must be {' or '.join(TOWERS)}")
    return run
