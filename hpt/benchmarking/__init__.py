"""How fast it is: steps, attacks, memory and start-up, measured beside each other in one run."""
