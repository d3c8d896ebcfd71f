"""From settings to a trained file."""

from __future__ import annotations

from pathlib import Path

from .autoencoder import AutoencoderTask
from .lift import LiftTask
from .loop import Loop, make_accelerator
from .settings import RunSettings
from .state import RunState


def train(settings: RunSettings, out: str | Path, *, resume: bool = False) -> Path:
    """Run `settings` in the folder `out`; returns the trained file, the running average of the weights.

    `out` receives ``NAME.safetensors`` (at every save and at the end), ``log.csv``, a picture per validation, and
    ``state/`` from which `resume` continues exactly. Raises ValueError where the loss stops being finite or `out`
    holds another run, another process trains in it, or it cannot be written to; nothing that was saved is lost then.
    """
    out = Path(out)
    state = RunState(settings, out, resume)
    accelerator = make_accelerator(settings.train, out)
    kind = AutoencoderTask if settings.train.objective == "autoencoder" else LiftTask
    task = kind(settings, accelerator, out, fresh=not resume)
    try:
        with state.held(accelerator):
            return Loop(accelerator, task, settings.train, state).run()
    except OSError as error:
        raise ValueError(
            f"{out} could not be written to ({error}): make room and go on from the last save with --resume"
        ) from error
