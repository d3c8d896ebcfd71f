"""Files that hold models: our own format, the authors' checkpoints, and how both are read safely."""
