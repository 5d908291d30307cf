"""HPT-GPD as a `Trainer`: settings, objectives, schedule, and runs that survive being killed."""
