"""Pictures on disk and as tensors."""
