"""The command line: ``fmboost COMMAND``."""
