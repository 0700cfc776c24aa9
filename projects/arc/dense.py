"""DenseDenoiser: the network of the earlier system, an encoder over the full 30 x 30 board, empty cells included.

Every example is one sequence [task, time, view labels, 900 input cells, 900 answer cells] that sees all of itself. It
speaks the packed network's language (`prefix`, `frame`, `forward`, size logits), so training, walks, votes and scores
are those of `GridDenoiser`; packed cells are laid out here and read back. Knows boards; not the recipe (`compat.py`).
"""

#   B examples, M answer cells, D width, L length of the sequence, H heads, K = 10 colours

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projects.arc.network import NUM_COLOURS, Question
from projects.arc.packing import Cells
from shared.networks.backends import dense
from shared.processes.schedules import Signal

SIDE = 30
BOARD = SIDE * SIDE
PAD = NUM_COLOURS  # what an empty cell of the input shows
LEVELS = 128  # of the discrete times (i + 1) / 128
AT_ONCE = 64  # sequences of one pass when nothing is learnt
TEMPERATURE = 1.5  # of the log-probabilities that are fed back
FLOOR, RAMP = 0.3, 0.8  # the gain of a belief fed back starts here; share of the way after which it is 1


class Feedback(NamedTuple):
    """An earlier belief and how loudly each example hears it."""

    belief: Tensor  # [M, 10] probabilities
    gain: Tensor  # [B], 0: the example hears nothing


class DenseAttention(nn.Module):
    """Everything sees everything; q, k, v, o are matrices of their own (adapters find them)."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in "qkvo")

    def forward(self, x_BLD: Tensor) -> Tensor:
        q, k, v = (part(x_BLD).unflatten(-1, (self.heads, -1)) for part in (self.q, self.k, self.v))
        return self.o(dense(q, k, v, dropout=self.dropout if self.training else 0.0).flatten(-2))

    def reset_parameters(self) -> None:
        """As torch's own attention starts: q, k, v as one matrix [3 D, D] would, zero biases."""
        bound = math.sqrt(6 / (4 * self.q.in_features))
        for part in (self.q, self.k, self.v):
            nn.init.uniform_(part.weight, -bound, bound)
        for part in (self.q, self.k, self.v, self.o):
            nn.init.zeros_(part.bias)


class FeedForward(nn.Module):
    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.up, self.down, self.drop = nn.Linear(width, 4 * width), nn.Linear(4 * width, width), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.drop(F.relu(self.up(x))))


class PostNormBlock(nn.Module):
    """The encoder layer of Vaswani et al. 2017: equal to `torch.nn.TransformerEncoderLayer` with its defaults."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.attention, self.attention_norm = DenseAttention(width, heads, dropout), nn.LayerNorm(width)
        self.mlp, self.mlp_norm = FeedForward(width, dropout), nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x_BLD: Tensor) -> Tensor:
        x_BLD = self.attention_norm(x_BLD + self.drop(self.attention(x_BLD)))
        return self.mlp_norm(x_BLD + self.drop(self.mlp(x_BLD)))


class LogProbabilities(nn.Module):
    """Belief -> [M, D] from centred log-probabilities, normed, with a learned gate."""

    def __init__(self, width: int):
        super().__init__()
        self.linear, self.norm, self.gate = (
            nn.Linear(NUM_COLOURS, width),
            nn.LayerNorm(width),
            nn.Parameter(torch.ones(())),
        )

    def forward(self, belief: Tensor) -> Tensor:
        log_p = belief.clamp(min=torch.finfo(torch.float32).tiny).log() / TEMPERATURE
        return self.gate * self.norm(self.linear(log_p - log_p.mean(-1, keepdim=True)))

    def reset_parameters(self) -> None:
        nn.init.constant_(self.gate, 0.3)


def feedback(kind: str, width: int) -> nn.Module:
    """What makes [M, D] of an earlier belief [M, 10]."""
    if kind == "log_probabilities":
        return LogProbabilities(width)
    linear = nn.Linear(NUM_COLOURS, width)
    return linear if kind == "probabilities" else nn.Sequential(linear, nn.SiLU(), nn.Linear(width, width))


def ramp(way: Tensor) -> Tensor:
    """The gain of a belief after a share of the way, in training or along a walk: 0.3 rising to 1 after 80 %."""
    return FLOOR + (1 - FLOOR) * (way / RAMP).clamp(max=1)


class ViewLabels(nn.Module):
    """Tokens that tell the view: symmetry (one token, or quarter turn and flip) and colour shift, [B, count, D].

    A symmetry has two spellings as a turn and a flip; training takes either, evaluation the one without a half turn.
    """

    def __init__(self, width: int, labels: Literal["d4", "rotation_flip"]):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(count, width) for count in ((8,) if labels == "d4" else (4, 4)))
        self.shift = nn.Embedding(9, width)

    @property
    def count(self) -> int:
        return len(self.tables) + 1

    def forward(self, d4: Tensor, colours: Tensor) -> Tensor:
        """[B], [B, 10]."""
        names = [d4] if len(self.tables) == 1 else self.spelled(d4)
        tokens = [table(name) for table, name in zip(self.tables, names)]
        return torch.stack([*tokens, self.shift(colours[:, 1] - 1)], 1)

    def spelled(self, d4: Tensor) -> list[Tensor]:
        """Clockwise quarter turns, and the flip that follows (bits: 2 mirrors rows, 1 mirrors columns)."""
        half = torch.randint(2, d4.shape, device=d4.device) if self.training else torch.zeros_like(d4)
        quarter = d4 >> 2  # swapping rows and columns is a quarter turn, then columns mirrored
        return [quarter + 2 * half, (d4 & 3) ^ quarter ^ (3 * half)]


@dataclass
class DensePrefix:
    """Questions embedded, and the belief about the answers' sizes."""

    task: Tensor  # [B, 1, D]
    view: Tensor  # [B, count, D]
    board: Tensor  # [B, 900, D] the input's cells
    size_logits: Tensor  # [B, 900]; class (h - 1) 30 + (w - 1)

    def first(self, count: int) -> DensePrefix:
        """The first `count` examples, cut off from the gradient."""
        return DensePrefix(*(x[:count].detach() for x in (self.task, self.view, self.board, self.size_logits)))


class DenseDenoiser(nn.Module):
    """(question, x_t, t) -> belief of the clean answer, logits [M, 10].

    rows: task rows R. schedule: survival of t, for `time: log_snr` and the gain of `log_probabilities`. size_hidden:
    width of the size head. size_labels: what the size pass is told of the view; `identity` repeats an old fault.
    input_dropout: of whole inputs, which `Question.hidden` names. Parameters: see `configs/arc/compat`.
    """

    side = SIDE

    def __init__(
        self,
        rows: int,
        schedule: Signal,
        width: int = 384,
        depth: int = 4,
        heads: int = 6,
        size_hidden: int = 256,
        time: Literal["index", "log_snr"] = "index",
        labels: Literal["d4", "rotation_flip"] = "rotation_flip",
        self_condition: Literal["probabilities", "log_probabilities", "mlp"] = "probabilities",
        size_labels: Literal["identity", "true"] = "true",
        dropout: float = 0.1,
        input_dropout: float = 0.05,
    ):
        super().__init__()
        self.schedule, self.time, self.size_labels, self.kept = schedule, time, size_labels, 1 - input_dropout
        self.feeds = self_condition
        self.colour = nn.Embedding(NUM_COLOURS + 1, width, padding_idx=PAD)
        self.row, self.col = nn.Embedding(SIDE, width // 2), nn.Embedding(SIDE, width // 2)
        self.tasks, self.view = nn.Embedding(rows, width), ViewLabels(width, labels)
        self.level = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.belief = feedback(self_condition, width)
        self.blocks = nn.ModuleList(PostNormBlock(width, heads, dropout) for _ in range(depth))
        self.out = nn.Linear(width, NUM_COLOURS)
        self.size_head = SizeHead(width, size_hidden, dropout)
        self.drop = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start the weights anew as torch starts them, from the global generator: parts first, wholes after."""
        for module in reversed(list(self.modules())):
            if module is not self and hasattr(module, "reset_parameters"):
                module.reset_parameters()

    # --- the board

    def places(self) -> Tensor:
        """[900, D]: row half and column half of every place."""
        row, col = (table.weight for table in (self.row, self.col))
        return torch.cat([row.repeat_interleave(SIDE, 0), col.repeat(SIDE, 1)], 1)

    def ask(self, question: Question) -> Tensor:
        """The input's board [B, 900, D]; empty cells show their place and no colour."""
        cells = question.cells
        shown = torch.full((cells.count * BOARD,), PAD, device=cells.colour.device)
        shown = shown.index_copy(0, at(cells), cells.colour).view(cells.count, BOARD)
        board_BLD = self.drop(self.colour(shown) + self.places())
        if question.hidden is None:
            return board_BLD
        return board_BLD * (~question.hidden / (self.kept if self.training else 1.0))[:, None, None]

    # --- what is asked of it

    def prefix(self, question: Question) -> DensePrefix:
        """Embeds the question, and reads the size of its answer in a pass of its own."""
        task, view, board = (
            self.tasks(question.task)[:, None],
            self.view(question.d4, question.colours),
            self.ask(question),
        )
        told = view
        if self.size_labels == "identity":
            plain = torch.arange(NUM_COLOURS, device=task.device).expand_as(question.colours)
            told = self.view(torch.zeros_like(question.d4), plain)
        size_BLD = torch.cat([task, torch.zeros_like(task), told, board], 1)
        return DensePrefix(task, view, board, self.passes(size_BLD, lambda x: self.size_head(x[:, -BOARD:])))

    def frame(self, prefix: DensePrefix, answer: Cells) -> Tensor:
        """Where the answer's cells lie on the boards, end to end [M]."""
        return at(answer)

    def forward(
        self, prefix: DensePrefix, frame: Tensor, answer: Cells, t: Tensor, belief: Tensor | Feedback | None = None
    ) -> Tensor:
        """Belief of the clean answer; t: [B]. Outside of an answer its board is empty, and nothing is read there.

        belief: probabilities of an earlier belief for all cells, heard as loudly as a walk does at t; or with gains.
        """
        count, width = len(prefix.task), prefix.task.shape[-1]
        x_MD = self.drop(self.colour(answer.colour) + self.places()[frame % BOARD])
        if belief is not None:
            seen, gain = belief if isinstance(belief, Feedback) else (belief, self.gain(t))
            x_MD = x_MD + gain[answer.segment, None] * self.belief(seen)
        board_BLD = x_MD.new_zeros(count * BOARD, width).index_copy(0, frame, x_MD).view(count, BOARD, width)
        x_BLD = torch.cat([prefix.task, self.levels(t)[:, None], prefix.view, prefix.board, board_BLD], 1)
        return self.passes(x_BLD, lambda x: self.out(x[:, -BOARD:])).flatten(0, 1).index_select(0, frame)

    def gain(self, t: Tensor) -> Tensor:
        """How loudly an earlier belief is heard at t [B] of a walk."""
        if self.feeds == "log_probabilities":
            return FLOOR + (1 - FLOOR) * self.schedule(t)
        return ramp(1 - t)

    def levels(self, t: Tensor) -> Tensor:
        """The time token [B, D]: of the index 0..127, or of the unscaled log-SNR."""
        alpha = self.schedule(t)
        said = (t * LEVELS).round() - 1 if self.time == "index" else alpha.log() - torch.log1p(-alpha)
        return self.level(sinusoids(said, self.out.in_features))

    def passes(self, x_BLD: Tensor, read) -> Tensor:
        """`read` of the last block's output; in parts where nothing is learnt, so that many views fit into memory."""
        parts = [x_BLD] if torch.is_grad_enabled() else x_BLD.split(AT_ONCE)
        return torch.cat([read(self.encode(part)) for part in parts])

    def encode(self, x_BLD: Tensor) -> Tensor:
        for block in self.blocks:
            x_BLD = block(x_BLD)
        return x_BLD


class SizeHead(nn.Module):
    """Mean over the board, two hidden layers, 30 logits for the height and 30 for the width: joint logits [B, 900]."""

    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, 2 * SIDE),
        )  # fmt: skip

    def forward(self, board_BLD: Tensor) -> Tensor:
        height, width = self.layers(board_BLD.mean(1)).float().unflatten(-1, (2, SIDE)).log_softmax(-1).unbind(1)
        return (height[:, :, None] + width[:, None, :]).flatten(1)


def at(cells: Cells) -> Tensor:
    """Where cells lie on boards of 900 places, end to end [N]."""
    return cells.segment * BOARD + cells.row * SIDE + cells.col


def sinusoids(value: Tensor, width: int) -> Tensor:
    """[B] -> [B, D]: sines and cosines of wavelengths from 2 pi to 10000 times as long."""
    half = width // 2
    frequency = torch.exp(torch.arange(half, device=value.device) * (-math.log(10_000) / half))
    angle = value[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], -1)
