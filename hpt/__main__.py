"""`hpt COMMAND ...` and `python -m hpt COMMAND ...`: the recipes by name, from any folder.

    hpt --help                                            # the commands
    hpt train                                             # recipes/hpt_gpd.py: the quickstart
    hpt train --config vit_b32_eps1 --num_processes 4     # four processes, launched by accelerate
    hpt evaluate --help                                   # a command's fields

A recipe is imported when it is asked for, so that nothing else costs time.
"""

import difflib
import sys
import textwrap
from functools import partial
from importlib import import_module

import hpt


# Command: module in recipes/, whether several processes can share the work, and what it does
COMMANDS = {
    "train": ("hpt_gpd", True, "make a CLIP robust by HPT-GPD; without settings, the quickstart on embedded digits"),
    "pretrain": ("pretrain_clip", True, "pretrain a small CLIP or SigLIP, as target or proxy"),
    "evaluate": ("evaluate", True, "attack models on benchmarks: table, flags and pictures"),
    "compare": (
        "compare",
        False,
        "compare methods at equal budget: tuned on held-out images, tested in the worst case",
    ),
    "rank-proxies": ("rank_proxies", True, "find out which proxy to take for a target"),
    "interpolate": ("interpolate", True, "choose a point between a vanilla and a trained model, by a rule"),
    "convert": ("convert", False, "convert checkpoints of open_clip and OpenAI's format, or write for open_clip"),
    "publish": ("publish", False, "push a finished run to the Hub, with its model card"),
    "leaderboard": ("leaderboard", False, "compare checkpoints by their model cards"),
    "benchmark": ("benchmark", False, "measure steps, attacks, memory and start-up at real size"),
    "env": ("env", False, "print versions and devices, for a bug report"),
}


def main() -> None:
    """Run the command in `sys.argv`; exit codes are [`hpt.cli.run_recipe`]'s."""
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in ("--help", "-h"):
        print(describe_commands())
    elif command == "--version":
        print(f"hpt {hpt.__version__}")
    elif command in COMMANDS:
        from hpt.cli import run_recipe

        run_recipe(partial(run, command, arguments))
    else:
        (closest, *_) = difflib.get_close_matches(command, [*COMMANDS, "--help", "--version"], n=1, cutoff=0)
        print(f"error: Unknown command {command!r}: did you mean {closest}? `hpt --help` lists them.", file=sys.stderr)
        sys.exit(2)


def describe_commands() -> str:
    """What `hpt --help` prints."""
    lines = [f"  {command:<14}{does}" for command, (_, _, does) in COMMANDS.items()]
    shared = ", ".join(command for command, (_, can_share, _) in COMMANDS.items() if can_share)
    return "\n".join(
        [
            "usage: hpt COMMAND [--config NAME] [--FIELD VALUE ...]\n",
            "Adversarially robust CLIP without a robust teacher, by HPT-GPD.\n",
            *lines,
            "\n`hpt COMMAND --help` lists a command's fields.",
            textwrap.fill(f"--num_processes N, for {shared}: N processes share the work.", 100),
        ]
    )


def run(command: str, arguments: list[str]) -> None:
    """Run a command in this process, or launch as many as `--num_processes` says."""
    from hpt.cli import split_option

    module, can_share, _ = COMMANDS[command]
    number, arguments = split_option(arguments, "num_processes", "a number") if can_share else (None, arguments)
    if number not in (None, "1"):
        from hpt.processes import launch

        sys.exit(launch(["hpt", command, *arguments], number))
    sys.argv = [f"hpt {command}{' [--num_processes N]' * can_share}", *arguments]  # the first for the usage line
    import_module(f"hpt.recipes.{module}").main()


if __name__ == "__main__":
    main()
