"""Print what a bug report needs: versions, devices, threads and precision; no path, token, host or user.

hpt env
"""

import sys

from hpt.cli import run_recipe
from hpt.environment import describe_environment
from hpt.errors import InputError


def main():
    if "--help" in sys.argv or "-h" in sys.argv:
        return print(f"usage: hpt env\n\n{__doc__.splitlines()[0]}")
    if sys.argv[1:]:
        raise InputError(f"env takes no arguments, but was given {' '.join(sys.argv[1:])}.")
    for name, text in describe_environment().items():
        print(f"{name:<18}{text}")


if __name__ == "__main__":
    run_recipe(main)
