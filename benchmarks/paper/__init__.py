"""The paper's experiments (arXiv 2312.07360), each one command: ``python -m benchmarks.paper tab1 --config small``."""
