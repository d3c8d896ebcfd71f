"""The node's progress bar, and the picture on it."""

from __future__ import annotations

import logging
from typing import Any

import comfy.model_management as mm
import comfy.utils
import latent_preview
import torch
import torch.nn.functional as F
from comfy_execution.utils import get_executing_context
from torch import Tensor

from ...fmboost_core import LatentSpace
from .latents import LatentFormat

log = logging.getLogger(__name__)

PREVIEW_SIZE = 128  # latent pixels


class Progress:
    """Progress over lifts, of which some run together, with the first one's current estimate as its picture."""

    def __init__(
        self, device: torch.device, space: LatentSpace, lifts: int, evaluations: int | None, passes: int
    ) -> None:
        """A lift has `passes` of a VAE and then `evaluations` of the network; None where the solver chooses them:
        progress is then time in the flow."""
        self.passes, self.per_lift = passes, passes + (evaluations or 1000)
        self.evaluations, self.begun, self.together = 0, 0, 1
        self.bar = comfy.utils.ProgressBar(lifts * self.per_lift)
        self.format = LatentFormat(space)
        self.previewer = latent_preview.get_previewer(device, self.format.host)

    def begin(self, number: int, together: int) -> None:
        """What is reported from now on is of lift `number` and those after it, `together` in all."""
        self.begun, self.together = number, together

    def update(self, evaluation: int, total: int | None, t: float, estimate: Tensor) -> None:
        """Report evaluation number `evaluation`; `estimate` (together, C, h, w), scaled."""
        self.evaluations += self.together
        done = evaluation if total else round(t * (self.per_lift - self.passes))
        self._advance(self.passes + done, self._picture(estimate[:1]))

    def passed(self, number: int) -> None:
        """Report that pass `number` of the VAE is done; a cancel stops the run here."""
        mm.throw_exception_if_processing_interrupted()  # the bar of newer hosts looks only now and then
        self._advance(number, None)

    def _advance(self, done: int, picture: Any) -> None:
        self.bar.update_absolute(self.begun * self.per_lift + self.together * done, self.bar.total, picture)

    def show(self, text: str) -> None:
        """Write `text` on the node, in the browser that queued the prompt."""
        running = get_executing_context()
        if running is None:
            return
        from server import PromptServer  # here, because it brings the whole web server with it

        # Without a client the host writes to every tab, on whatever node has this number there.
        client = PromptServer.instance.client_id
        if client is not None:
            PromptServer.instance.send_progress_text(text, running.node_id, client)

    def _picture(self, estimate: Tensor) -> Any:
        if self.previewer is None:
            return None
        try:
            factor = PREVIEW_SIZE / max(estimate.shape[2:])
            if factor < 1:  # a preview is shown small: decoding all of a large latent would cost more than a step
                fold = self.format.side
                size = [fold * max(1, round(side * factor / fold)) for side in estimate.shape[2:]]
                estimate = F.interpolate(estimate, size, mode="area")
            return self.previewer.decode_latent_to_preview_image("JPEG", self.format.fold(estimate))
        except mm.InterruptProcessingException:
            raise
        except Exception:
            log.exception("FMBoost: no preview in this run, its picture could not be made")
            self.previewer = None
            return None
