"""A check for the mistakes that numbers of robustness were published with; `check` is where it begins."""
