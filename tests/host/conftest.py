"""A real ComfyUI server in its own process, with an empty base folder that holds this pack alone.

ComfyUI is found through COMFYUI_PATH, or around this folder where it is installed as a pack, or at ~/comfy/ComfyUI.
It is run by its own .venv, or by COMFYUI_PYTHON.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import small_models

PACK = Path(__file__).parents[2]


def _load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where dataclasses look for the module of a class
    spec.loader.exec_module(module)
    return module


run_api = _load(PACK / "workflows" / "api" / "run.py")


def find_comfyui() -> Path | None:
    candidates = [os.environ.get("COMFYUI_PATH"), PACK.parents[1], Path.home() / "comfy" / "ComfyUI"]
    return next((Path(c) for c in candidates if c and (Path(c) / "comfy" / "sd.py").is_file()), None)


def comfy_python(comfy: Path) -> str:
    own = [comfy / ".venv" / "bin" / "python", comfy / ".venv" / "Scripts" / "python.exe"]
    return os.environ.get("COMFYUI_PYTHON") or next((str(p) for p in own if p.is_file()), sys.executable)


class Server:
    """ComfyUI with --cpu on a free port; `base` is its base directory, `log` all it printed, `pack` this one."""

    def __init__(self, comfy: Path, base: Path, *flags: str, pack: Path = PACK) -> None:
        self.comfy, self.base, self.flags, self.log_file = comfy, base, flags, base / "server.log"
        for folder in ("custom_nodes", "models/latent_upscale_models", "models/vae_approx", "models/checkpoints"):
            (base / folder).mkdir(parents=True, exist_ok=True)
        (base / "custom_nodes" / "FMBoost").symlink_to(pack, target_is_directory=True)
        (base / "custom_nodes" / "probe").symlink_to(PACK / "tests" / "host" / "probe", target_is_directory=True)
        for file in (comfy / "models" / "vae_approx").glob("*.safetensors"):
            shutil.copy(file, base / "models" / "vae_approx")
        self.models = base / "models" / "latent_upscale_models"
        self.process: subprocess.Popen | None = None

    def start(self) -> Server:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [comfy_python(self.comfy), "main.py", "--cpu", "--port", str(port), "--base-directory", self.base]
        command += ["--database-url", "sqlite:///:memory:", *self.flags]
        with self.log_file.open("w") as log:
            self.process = subprocess.Popen(command, cwd=self.comfy, stdout=log, stderr=log)
        self.url = f"http://127.0.0.1:{port}"
        client, deadline = self.client(), time.monotonic() + 900
        while True:
            try:
                client.get("/system_stats")
                return self
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"ComfyUI did not start:\n{self.log[-3000:]}") from None
                time.sleep(0.3)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def client(self):
        return run_api.Client(self.url)

    def run(self, graph, progress=None, **extra):
        return self.client().run(graph, progress, **extra)


@pytest.fixture(scope="session")
def comfy() -> Path:
    found = find_comfyui()
    if found is None:
        pytest.skip("no ComfyUI found: set COMFYUI_PATH to its folder to run these tests")
    return found


@pytest.fixture(scope="session")
def server(comfy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(comfy, tmp_path_factory.mktemp("comfy"))
    small_models.write_all(server.models)
    try:
        yield server.start()
    finally:
        server.stop()
