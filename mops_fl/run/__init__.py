"""All that a run leaves and how it is read: folder, recorder, results, plots, provenance."""
