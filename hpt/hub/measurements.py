"""What was measured on a model, as its card says it: the strongest attack in a sentence, all in tables, and limits."""

from collections import Counter

from hpt.attacks import ATTACKS, NamedAttack, Suite
from hpt.data.subsets import name_for_command
from hpt.escaping import address, code, markdown, shell
from hpt.evaluation.flags import GUESSING, UNSEEN, find_flags
from hpt.evaluation.report import (
    attack_with_step,
    describe_resolution,
    format_accuracy,
    markdown_table,
    percent,
)
from hpt.evaluation.rows import CASCADE, CLEAN, LARGE_EPS, Row
from hpt.hub.folder import EVALUATION_FILE, FIGURES, ModelFolder
from hpt.hub.rows import THIS, pair_up, shown_rows
from hpt.radius import describe_norm


NOT_EVALUATED = "It has not been evaluated: nothing is known of its accuracy and robustness on test images."


def guesses(rows: list[Row]) -> str:
    """A line for each benchmark on which the model is no better than guessing; empty if there is none."""
    flags = [flag for flag in find_flags([row for row in rows if row.model == THIS]) if flag.name in GUESSING]
    lines = [f"On {flag.benchmark} this model is no better than guessing. {flag.message}" for flag in flags]
    return "\n\n".join(f"**{markdown(line)}**" for line in dict.fromkeys(lines))


def strongest_result(rows: list[Row], eps: str | None) -> str:
    """The clean accuracy and the lowest under attack on the same samples, those that were attacked the most.

    At the radius of training, if it was measured there.
    """
    pairs = [(own, vanilla) for own, vanilla in pair_up(shown_rows(rows)) if own.attacked in (None, THIS)]
    clean = {own.sample_set: own for own, _ in pairs if own.attack == CLEAN}
    attacked = [pair for pair in pairs if pair[0].attack != CLEAN and pair[0].sample_set in clean]
    attacked = [pair for pair in attacked if str(pair[0].radius) == eps] or attacked
    if not attacked:
        largest = max(clean.values(), key=lambda row: row.n, default=None)
        return markdown(f"On {_samples(largest)} it is right on {percent(largest)}." if largest else NOT_EVALUATED)
    strongest = max(attacked, key=lambda pair: (len(pair[0].parameters.get("attacks", [])), pair[0].n))[0]
    attacked = [pair for pair in attacked if pair[0].sample_set == strongest.sample_set]
    worst, vanilla = min(attacked, key=lambda pair: (pair[0].accuracy, not pair[0].is_worst_case))
    compared = f", where the vanilla model is on {percent(vanilla)}" if vanilla else ""
    attack = f"{attack_with_step(worst)} at {worst.radius.title}"
    right = percent(clean[worst.sample_set])
    return markdown(f"On {_samples(worst)} it is right on {right}, and under {attack} on {percent(worst)}{compared}.")


def results(folder: ModelFolder, model_id: str) -> str:
    """The table against the vanilla model, pictures over eps, and how far the saved processor is from all that."""
    rows = folder.rows
    if not any(row.model == THIS for row in rows):
        return NOT_EVALUATED
    tables: dict[tuple, list[tuple[Row, Row | None]]] = {}
    for pair in sorted(pair_up(shown_rows(rows)), key=_order):
        tables.setdefault(pair[0].sample_set, []).append(pair)
    parts = [
        "Accuracy in %, with its 95 % Wilson interval; a dash was not measured. Every row, with all that it depends "
        f"on, is in `{EVALUATION_FILE}`, and those of this model are in the metadata."
    ]
    titles = [_title(pairs[0][0]) for pairs in tables.values()]
    several = Counter(titles)
    for title, pairs in zip(titles, tables.values(), strict=True):
        which = f" (samples {markdown(str(pairs[0][0].samples))})" if several[title] > 1 else ""
        parts += [f"{title}{which}:", _comparison_table(pairs)]
    parts += [f"![Accuracy over eps]({FIGURES}/{address(name)})" for name in folder.robustness_pictures]
    if not folder.robustness_pictures:
        attacked = any(row.attack != CLEAN for row in rows)
        how = "It was attacked at too few radii" if attacked else "It was not attacked"
        parts.append(f"{how}: there is no picture of accuracy over eps.")
    if folder.agreement is not None:
        parts.append(markdown(_agreement(folder.agreement)))
    return "\n\n".join(parts)


def _comparison_table(pairs: list[tuple[Row, Row | None]]) -> str:
    """What was measured on the same samples, with the attacks of the worst case below it."""
    compared = any(vanilla for _, vanilla in pairs)
    lines, notes = [["attack", *(["vanilla"] if compared else []), "this model"]], []
    for own, vanilla in pairs:
        radius = "" if own.eps is None else f", {own.radius.title}"
        attack = "none (clean)" if own.attack == CLEAN else f"{attack_with_step(own)}{radius}"
        lines.append([markdown(attack), *([format_accuracy(vanilla)] if compared else []), format_accuracy(own)])
        if own.is_worst_case:
            notes.append(markdown(f"Worst case per sample{radius}: over {', '.join(own.parameters['attacks'])}."))
    return "\n\n".join([markdown_table(lines), *notes])


def _title(row: Row) -> str:
    samples = f"({row.split}, n = {row.n}), attacked at {describe_resolution(row.attack_space)}"
    return f"**{markdown(row.benchmark)}** {markdown(samples)}"


def _order(pair: tuple[Row, Row | None]) -> tuple:
    own = pair[0]
    place = own.benchmark, own.split, -own.n, own.norm or "", own.eps or 0
    return *place, own.is_worst_case, own.attacked != own.model, own.attack


def _agreement(agreement: dict) -> str:
    own, theirs, same = (
        f"{100 * agreement[key]:.1f} %" for key in ("accuracy", "accuracy_by_processor", "same_prediction")
    )
    return (
        f"Through the saved processor, which resizes by PIL, {theirs} of {agreement['n']} images of "
        f"{agreement['benchmark']} ({agreement['split']}) are right, and {own} of the same ones as hpt resizes them: "
        f"{same} of the predictions are the same, and logits, which span {agreement['logit_range']:.1f}, differ by "
        f"{agreement['mean_difference']:.2g} on average and by {agreement['largest_difference']:.2g} at most."
    )


def limits(folder: ModelFolder, model_id: str) -> str:
    """What the numbers don't say."""
    own = [row for row in folder.rows if row.model == THIS]
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
    distilled = folder.run is not None and str(folder.run["divergence"]).startswith("KL")
    lines += _untried(attacked, model_id, distilled)
    sets = sorted({row.benchmark for row in own})
    where = f"on {', '.join(sets)}" if sets else "on nothing yet"
    lines.append(markdown(f"It was measured {where}; what it does on other images, classes and prompts isn't known."))
    lines.append("Other perturbations, such as patches, rotations, blur or changed texts, were not tried.")
    lines.append("Nothing is certified: a proxy gives no guarantee, and an attack that fails proves nothing.")
    for flag in find_flags(own):
        if flag.name == UNSEEN:
            lines.append(markdown(f"On {flag.benchmark}, {flag.message}"))
            continue
        radius = "" if flag.radius is None else f" at {flag.radius.title}"
        lines.append(f"Doubt (`{flag.name}`) on {markdown(f'{flag.benchmark}{radius}: {flag.message}')}")
    return "\n".join(f"- {line}" for line in dict.fromkeys(lines))


def _untried(attacked: list[Row], model_id: str, distilled: bool) -> list[str]:
    """Which attacks weren't tried, and where there is no worst case over several, by samples and radius.

    `distilled` says whether the model learned by KL.
    """
    untried: dict[tuple, list[Row]] = {}
    no_worst_case = []
    for rows in _by_radius(attacked):
        tried = {"fgsm", *_tried(rows)}  # the weakest of all isn't missed
        names = tuple(name for name, kind in ATTACKS.items() if rows[0].norm in kind.norms and name not in tried)
        untried.setdefault(names, []).append(rows[0])
        if not any(row.is_worst_case and len(row.parameters["attacks"]) > 1 for row in rows):
            no_worst_case.append(rows[0])
    lines = []
    for names, rows in untried.items():
        attacks = f"not attacked by {', '.join(names)}" if names else "attacked by all that hpt has, FGSM aside"
        lines.append(markdown(f"At {_places(rows)} it was {attacks}."))
    if no_worst_case:
        where = markdown(f"At {_places(no_worst_case)}")
        lines.append(
            f"{where} no worst case over several attacks was measured: stronger ones find more, so robust accuracy is "
            f"overstated.{' Models distilled by KL are known for that.' * distilled} To attack it so: "
            f"{' and '.join(_commands(no_worst_case, model_id))}."
        )
    return lines


def _commands(rows: list[Row], model_id: str) -> list[str]:
    """What attacks a model by several attacks on the benchmarks and at the radii of rows, a command per norm."""
    commands = []
    for norm in dict.fromkeys(row.norm for row in rows):
        own = [row for row in rows if row.norm == norm]
        names = dict.fromkeys(name_for_command(row.benchmark) for row in own)
        eps = dict.fromkeys(str(row.radius) for row in own)
        given = "" if norm == "linf" else f" --norm {norm}"
        more = (
            f"--benchmarks {' '.join(map(shell, names))} --eps {' '.join(eps)}{given} --output_dir outputs/evaluation"
        )
        commands.append(code(f"hpt evaluate --models {shell(model_id)} {more}"))
    return commands


def _by_radius(rows: list[Row]) -> list[list[Row]]:
    groups: dict[tuple, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.benchmark, row.norm, row.eps)):
        groups.setdefault((row.sample_set, row.eps, row.norm), []).append(row)
    return list(groups.values())


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
        named = map(NamedAttack.parse, row.parameters["attacks"]) if row.attack == CASCADE else [row.named_attack]
        for attack in named:
            if row.attacked == row.model or attack.is_transfer:
                parts = attack.kind.parts if attack.is_known and issubclass(attack.kind, Suite) else ()
                tried |= {attack.name, *(part.name for part in parts)} - set(row.left_out)
    return tried


def _samples(row: Row) -> str:
    return f"{row.n} images of {row.benchmark} ({row.split})"
