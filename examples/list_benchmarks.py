"""The benchmarks as a table: where each is read from, what it holds, how it is attacked, and its first prompts.

    python examples/list_benchmarks.py                       # from the Hub, without downloading images
    python examples/list_benchmarks.py all=PATH              # from copies, PATH/cifar10 and so on
    python examples/list_benchmarks.py cifar10 dtd=PATH

Ids, splits and rows are the records'; classes and prompts are read back from the datasets themselves.
"""

import sys

from hpt import BENCHMARKS, InputError, load_benchmark
from hpt.benchmarks import SIXTEEN, expand_all, parse_benchmark
from hpt.config import run_recipe
from hpt.modeling import DEFAULT_TEMPLATE
from hpt.report import markdown_table


HEADER = ["benchmark", "Hub id (configuration)", "split", "rows", "classes", "attacked at (hpt, pmg)", "licence"]
HEADER += [f"first prompts: {DEFAULT_TEMPLATE.format('...')}"]


def describe(text: str) -> tuple[list[str], str]:
    """A line of the table, and where the published protocols aren't followed."""
    name = parse_benchmark(text)[0]
    if name not in SIXTEEN:
        raise InputError(f"{name} is none of the sixteen: {', '.join(SIXTEEN)}.")
    record, benchmark = BENCHMARKS[name], load_benchmark(text, streaming=True)
    spaces = ["own size" if "test" in record.native_splits[protocol] else "224" for protocol in ("hpt", "pmg")]
    hub_id = record.hub_id + (f" ({record.config})" if record.config else "") + (", gated" if record.gated else "")
    classes = benchmark.class_names
    line = [name, hub_id, record.splits["test"], str(record.num_rows), str(len(classes))]
    return [*line, ", ".join(dict.fromkeys(spaces)), record.licence, "; ".join(classes[:3])], record.deviation


def main():
    lines, notes = [HEADER], []
    for text in expand_all(sys.argv[1:] or ["all"]):
        try:
            line, deviation = describe(text)
        except InputError as error:
            notes.append(f"Missing: {error}")
            continue
        lines.append(line)
        if deviation:
            notes.append(f"{line[0]}: {deviation}")
    print(markdown_table(lines))
    print("".join(f"\n- {note}" for note in notes))


if __name__ == "__main__":
    run_recipe(main)
