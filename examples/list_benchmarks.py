"""The benchmarks as a table: where each is read from, what it holds, how it is attacked, and its first prompts.

    python examples/list_benchmarks.py                       # from the Hub, without downloading images
    python examples/list_benchmarks.py all=PATH              # from copies, PATH/cifar10 and so on
    python examples/list_benchmarks.py cifar10 dtd=PATH

Ids and licences are the records', and the rows the published ones; classes and prompts are read back from the
datasets, and of copies the rows too.
"""

import sys
from pathlib import Path

from hpt import BENCHMARKS, InputError, load_benchmark
from hpt.cli import run_recipe
from hpt.data.names import expand_all
from hpt.data.records import SIXTEEN
from hpt.evaluation.report import markdown_table
from hpt.prompts import make_prompts
from hpt.references import Reference


HEADER = ["benchmark", "Hub id (configuration)", "split", "rows", "classes", "attacked at (hpt, pmg)", "licence"]
HEADER += ["first prompts"]


def describe(reference: Reference) -> tuple[list[str], str]:
    """A line of the table, and where the published protocols aren't followed."""
    name, record = reference.name, BENCHMARKS[reference.name]
    local = reference.place is not None and Path(reference.place).exists()
    benchmark = load_benchmark(reference, streaming=not local)
    spaces = [
        "own size" if benchmark.split in record.native_splits[protocol] else "224" for protocol in ("hpt", "pmg")
    ]
    hub_id = record.hub_id + (f" ({record.config})" if record.config else "") + (", gated" if record.gated else "")
    rows = f"{len(benchmark)} of {record.num_rows}" if local else str(record.num_rows)
    line = [name, hub_id, record.splits[benchmark.split], rows, str(len(benchmark.class_names))]
    prompts = make_prompts(benchmark.template, benchmark.class_names[:3])
    return [*line, ", ".join(dict.fromkeys(spaces)), record.licence, "; ".join(prompts)], record.deviation


def main():
    lines, notes, references = [HEADER], [], expand_all(sys.argv[1:] or ["all"])
    for reference in references:
        if reference.name not in SIXTEEN:
            raise InputError(f"{str(reference)!r} is none of the sixteen: {', '.join(SIXTEEN)}.")
    for reference in references:
        try:
            line, deviation = describe(reference)
        except InputError as error:
            notes.append(f"Missing: {error}")
            continue
        lines.append(line)
        if deviation:
            notes.append(f"{line[0]}: {deviation}")
    if len(lines) > 1:
        print(markdown_table(lines))
    print("".join(f"\n- {note}" for note in notes))
    if any(note.startswith("Missing: ") for note in notes):
        sys.exit(1)


if __name__ == "__main__":
    run_recipe(main)
