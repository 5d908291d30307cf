"""The recipes, which `pip install` brings along as `hpt.recipes` and the command `hpt` runs."""
