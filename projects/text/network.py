"""One bidirectional trunk that names the tokens under noise: noised rows x_t and t in, logits of every position out.

What it gives may be a belief of x0 instead (Li et al. 2022, Diffusion-LM); `logits` and `believe` read either.
Ideas: adaLN (Peebles & Xie 2023), logits tied to the rows (Dieleman et al. 2022, CDCD), the context-free likelihood
added to them (Gulrajani & Hashimoto 2023, Plaid), an earlier belief as an input (Chen et al. 2022). It reads the level
off the schedule of the process that trains it, so both see one alpha and one sigma. Knows no corpus and no sampler.
Legend: B batch, L length, E embedding width, D model width, K level width, V vocabulary.
"""

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor, nn

from projects.text.rounding import Rows
from shared.networks import Block, Head, LevelEmbedding, RMSNorm, Rotary, flops, initialise
from shared.processes.schedules import Schedule, spread
from shared.training.errors import Mistake

Prediction = Literal["logits", "x0"]
OF_ENCODER = ("level_hidden", "level_into", "places", "dropout")


@dataclass
class Trunk:
    """Config group `model.network`. kind: denoiser, or the older `Encoder`. hidden: of the feed-forward layers; level:
    width of the noise level's embedding. head: tied reads with the rows, untied with a matrix of its own. logit_bias:
    the likelihood of each row given x_t alone is added to its logit, growing from nothing over the first
    bias_ramp_updates.

    Of the denoiser: conditioning: how the level is told, to every norm and gate, or by an addition to the stream that
    starts from nothing. gate_init: start of the gates, 0 for long runs, 1 for short ones. positional: rotary sees
    differences only, learned adds a row per place, both does both. Of the encoder: see there.
    """

    kind: Literal["denoiser", "encoder"] = "denoiser"
    width: int = 128
    depth: int = 6
    heads: int = 4
    hidden: int = 384
    level: int = 64
    conditioning: Literal["adaln_zero", "additive"] = "adaln_zero"
    gate_init: float = 0.0
    positional: Literal["rotary", "learned", "both"] = "rotary"
    head: Literal["tied", "untied"] = "tied"
    logit_bias: bool = True
    bias_ramp_updates: int = 5000
    level_hidden: int = 512
    level_into: Literal["stream", "rows"] = "stream"
    places: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        wrong = [f.name for f in fields(self) if f.name in OF_ENCODER and getattr(self, f.name) != f.default]
        if wrong and self.kind == "denoiser":
            raise ValueError(
                f"model.network.{wrong[0]} is set, which the encoder alone has; leave it out, or set kind encoder."
            )


class Network(nn.Module):
    """What a trunk is to the rest of the line. forward(x_t [B, L, E], t [B], belief, valid) -> out; `logits` and
    `believe` say what that means, `rows` is the table.

    schedule: of the process. length: the longest row of tokens. prediction: what out is, logits [B, L, V] or x0
    [B, L, E].
    """

    belief: nn.Linear | None  # hears an earlier belief
    ramp: Tensor  # [] share of the bias that is added

    def __init__(
        self, schedule: Schedule, rows: Rows, length: int, head: str, logit_bias: bool, prediction: Prediction
    ):
        super().__init__()
        if prediction == "x0" and head != "tied":
            raise Mistake(
                f"model.network.head is {head}, and the objective wants x0, which the rows read; set head tied."
            )
        self.schedule, self.rows, self.length, self.prediction = schedule, rows, length, prediction
        self.warp = getattr(schedule, "cdf", None)  # its state is saved with the network; None: it has none
        self.tied, self.logit_bias = head == "tied", logit_bias and prediction == "logits"
        count, dim = rows.rows.shape
        self.read = dim if self.tied else count  # width of what the last matrix gives
        self.common = nn.Parameter(torch.empty(count))
        self.register_buffer("ramp", torch.empty(()))

    def settle(self, depth: int) -> None:
        if self.belief is not None:
            nn.init.zeros_(self.belief.weight)
        nn.init.zeros_(self.common)
        nn.init.ones_(self.ramp)

    def scales(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """alpha, sigma, and what brings x_t to rms 1, each [B]."""
        alpha_B, sigma_B = self.schedule.alpha(t), self.schedule.sigma(t)
        return alpha_B, sigma_B, (alpha_B.square() * self.rows.rms**2 + sigma_B.square()).rsqrt()

    def hearing(self, x_BLD: Tensor, belief: Tensor | None) -> Tensor:
        """The stream with what was believed of the first b <= B samples, [b, L, E]."""
        if belief is None or self.belief is None:
            return x_BLD
        seen = self.belief(belief)
        return torch.cat([x_BLD[: len(seen)] + seen, x_BLD[len(seen) :]])

    def named(self, h: Tensor, x: Tensor, alpha_B: Tensor, sigma_B: Tensor) -> Tensor:
        """out, in float32, from what the last matrix gives."""
        if self.prediction == "x0":
            return h.float()
        with torch.autocast(x.device.type, enabled=False):
            logits_BLV = (h.float() @ self.rows.rows.T if self.tied else h.float()) + self.common
            if self.logit_bias:
                logits_BLV = logits_BLV + self.ramp * self.rows.bias(x, alpha_B, sigma_B)
            return logits_BLV

    def logits(self, out: Tensor) -> Tensor:
        """Logits [B, L, V] of the tokens; of x0, or any x [B, L, E], by what it has in common with the rows."""
        if self.prediction == "logits":
            return out
        with torch.autocast(out.device.type, enabled=False):
            return out.float() @ self.rows.rows.T + self.common

    def believe(self, out: Tensor, temperature: float = 1.0) -> Tensor:
        """x0 as it is believed [B, L, E], float32: of logits over the temperature, the mean row."""
        if self.prediction == "x0":
            return out
        with torch.autocast(out.device.type, enabled=False):
            return self.rows.mean(torch.softmax(out / temperature, -1))

    def flops(self, samples: int, tokens: int) -> int:
        """Of a forward pass that reads its tokens, which x0 does to be rounded."""
        count, dim = self.rows.rows.shape
        return self.trunk_flops(samples, tokens) + 2 * tokens * count * dim * (self.tied + self.logit_bias)

    def trunk_flops(self, samples: int, tokens: int) -> int:
        raise NotImplementedError


class Denoiser(Network):
    """causal: no position sees a later one. hears: a belief can be heard. The rest as in `Trunk`."""

    def __init__(
        self,
        schedule: Schedule,
        rows: Rows,
        length: int,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        level: int,
        conditioning: str = "adaln_zero",
        gate_init: float = 0.0,
        positional: str = "rotary",
        head: str = "tied",
        logit_bias: bool = True,
        causal: bool = False,
        hears: bool = True,
        prediction: Prediction = "logits",
    ):
        super().__init__(schedule, rows, length, head, logit_bias, prediction)
        dim, modulated = rows.embedding_dim, conditioning == "adaln_zero"
        self.input = nn.Linear(dim, width)
        self.belief = nn.Linear(dim, width, bias=False) if hears else None
        self.level = LevelEmbedding(level if modulated else width, features=level, of="log_snr", hidden=level)
        self.gain = None if modulated else RMSNorm(width)  # bounds what is added
        self.place = nn.Embedding(length, width) if positional != "rotary" else None
        self.rotary = Rotary((width // heads,)) if positional != "learned" else None
        self.blocks = nn.ModuleList(
            Block(
                width,
                heads,
                hidden=hidden,
                modulated=modulated,
                gate_init=gate_init,
                condition_width=level,
                causal=causal,
            )
            for _ in range(depth)
        )
        self.norm = RMSNorm(width)
        self.last = Head(level, 2 * width) if modulated else None  # shift and scale of the last norm
        self.out = Head(width, self.read, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start the weights anew, from the global generator."""
        initialise(self, len(self.blocks))

    def settle(self, depth: int) -> None:
        super().settle(depth)
        nn.init.normal_(self.input.weight, std=self.input.in_features**-0.5)  # the stream starts at rms 1
        if self.gain is not None:
            nn.init.zeros_(self.gain.weight)

    def forward(self, x: Tensor, t: Tensor, belief: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """Logits [B, L, V], or x0 [B, L, E], in float32.

        belief: an earlier one, x0 as it was believed [b, L, E] of the first b <= B samples; None adds nothing.
        valid: bool [B, L], False where nothing stands; None: everywhere something does.
        """
        with torch.autocast(x.device.type, enabled=False):
            alpha_B, sigma_B, scale_B = self.scales(x, t)
            level_BK = self.level(self.schedule.log_snr(t))
        x_BLD = self.hearing(self.input(x * spread(scale_B, x)), belief)
        x_BLD, rotation = self.placed(x_BLD)
        if self.gain is not None:
            x_BLD, level_BK = x_BLD + self.gain(level_BK).unsqueeze(1), None
        for block in self.blocks:
            x_BLD = block(x_BLD, level_BK, rotation=rotation, mask=valid)
        return self.named(self.out(self.normed(x_BLD, level_BK)), x, alpha_B, sigma_B)

    def normed(self, x_BLD: Tensor, level_BK: Tensor | None) -> Tensor:
        """The stream as the last matrix reads it."""
        if self.last is None or level_BK is None:
            return self.norm(x_BLD)
        shift, scale = self.last(nn.functional.silu(level_BK)).unsqueeze(1).chunk(2, dim=-1)
        return self.norm(x_BLD, shift, scale)

    def placed(self, x_BLD: Tensor):
        """The stream told its places, and the rotation of the blocks."""
        place_L = torch.arange(x_BLD.shape[1], device=x_BLD.device)
        if self.place is not None:
            x_BLD = x_BLD + self.place(place_L)
        return x_BLD, self.rotary and self.rotary.rotation(place_L.unsqueeze(-1))

    def trunk_flops(self, samples: int, tokens: int) -> int:
        pairs = tokens * self.length
        blocks = sum(flops.block(block, tokens, pairs, conditions=samples) for block in self.blocks)
        ends = sum(flops.matrices(part, tokens) for part in (self.input, self.belief, self.out) if part is not None)
        told = sum(flops.matrices(part, samples) for part in (self.level, self.last) if part is not None)
        return blocks + ends + told
