"""ComfyUI's front door."""

WEB_DIRECTORY = "./web"

try:
    import comfy_api.latest  # noqa: F401
except ModuleNotFoundError as error:
    # Outside ComfyUI (tests, tools) the folder is importable and offers nothing; any other failure is real.
    if error.name not in {"comfy_api", "comfy_api.latest"}:
        raise
else:
    from .nodes import comfy_entrypoint

    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
