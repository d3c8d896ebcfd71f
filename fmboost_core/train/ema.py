"""The running average of the weights, which is what ships."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EMA:
    """Exponential moving average of a network's state; early on the decay follows (1 + n) / (10 + n)."""

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.live = list(net.state_dict().values())  # the weights themselves, which training changes in place
        self.state = {k: v.detach().clone().float() for k, v in net.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the network's present weights into the average."""
        self.updates += 1
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.state.values()), [v.float() for v in self.live], weight)

    def state_dict(self) -> dict[str, Tensor]:
        return {"updates": torch.tensor(self.updates), **{f"net.{k}": v for k, v in self.state.items()}}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.updates = int(state["updates"])
        for k, v in self.state.items():
            v.copy_(state[f"net.{k}"])
