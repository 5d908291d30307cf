"""Images on their way to a model: benchmarks by record or from any files, loaded through `datasets`."""
