"""Print what a bug report needs: versions, devices, threads and precision; no path, token, host or user.

hpt env
"""

from hpt.cli import run_recipe
from hpt.environment import describe_environment


def main():
    for name, text in describe_environment().items():
        print(f"{name:<18}{text}")


if __name__ == "__main__":
    run_recipe(main)
