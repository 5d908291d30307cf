"""What models are worth under attack: rows with intervals, comparisons, rankings, flags, tables and pictures."""
