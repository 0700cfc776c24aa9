"""GridDenoiser: a bidirectional transformer over the real cells of a question and its corrupted answer.

Every example is three streams through one stack of blocks. The prefix [task tokens, view tokens, demo cells, input
cells] sees itself; it has task tokens, demos or both. The size token sees the prefix and is seen by none, so the size
head cannot read the answer's cell count. The body [time token, answer cells] sees prefix and body. The prefix is
computed once for any number of denoising passes; of its last block only keys and values are needed (a prefix that sees
the body: `open_prefix.py`). Knows colours and coordinates; not the process, the loss or the walk.
"""

#   B examples, N tokens of a stream, M answer cells, D width, S largest side, R task rows, m tokens per task, K = 10

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from projects.arc.packing import Cells, filled, repeated, room, to_device, weave
from shared.networks import Block, Head, Layout, LevelEmbedding, RMSNorm, Rotary, initialise
from shared.networks.backends import KeysValues
from shared.networks.rotary import Rotation

NUM_COLOURS = 10
INPUT, OUTPUT, DEMO_INPUT, DEMO_OUTPUT = 0, 1, 2, 3  # roles of cells
MAX_DEMOS = 10  # of one example
NO_ROW = -1  # the row of a task that the network was not trained on


@dataclass
class Marks:
    """What the cells of a prefix are where demos are among them: N cells."""

    role: Tensor  # [N] int64 INPUT, DEMO_INPUT or DEMO_OUTPUT
    pair: Tensor  # [N] int64, 0 the question's own, 1..MAX_DEMOS a demo: equal for the two grids of a pair


@dataclass
class Question:
    """What the network is told before it sees any answer: B examples."""

    task: Tensor  # [B] int64 row, NO_ROW for none
    d4: Tensor  # [B] int64 0..7
    colours: Tensor  # [B, 10] int64, where each colour went
    cells: Cells  # the input grids, each behind the demos shown with it, already in that view
    hidden: Tensor | None = None  # [B] bool, True: the input's colours are withheld
    marks: Marks | None = None  # None: there are no demos
    quantum: int = 1  # tokens; streams are filled up to a multiple of it by a segment that is no example


@dataclass
class Prefix:
    """A question as the body sees it: keys and values of every layer, and the belief about the answer's size."""

    memory: Sequence[KeysValues | None]  # per block [N, heads, head width]; None: the body's stream holds the tokens
    lengths: np.ndarray  # [B] prefix tokens
    size_logits: Tensor  # [B, S * S]; class (h - 1) S + (w - 1)
    quantum: int = 1

    def first(self, count: int) -> Prefix:
        """The first `count` examples, cut off from the gradient: what a pass for self-conditioning sees."""
        n = self.rows(count)
        memory = [kept and (kept[0][:n].detach(), kept[1][:n].detach()) for kept in self.memory]
        return replace(self, memory=memory, lengths=self.lengths[:count], size_logits=self.size_logits[:count].detach())

    def rows(self, count: int) -> int:
        """Tokens of the first `count` examples, filled up with what lies behind them."""
        return room(int(self.lengths[:count].sum()), self.quantum)


@dataclass
class Frame:
    """How the time token and the answer's cells of B examples lie in the body stream."""

    order: Tensor  # [N] into cat(time tokens, cells), N = B + M filled up
    place: Tensor  # [M] where each cell went
    layout: Layout
    rotation: Rotation


class ViewTokens(nn.Module):
    """Tells the network which view it looks at: one D4 token, and one (cycle) or nine (permute) colour tokens."""

    def __init__(self, width: int, colours: Literal["cycle", "permute"]):
        super().__init__()
        self.colours = colours
        self.d4 = nn.Embedding(8, width)
        self.canonical = nn.Embedding(9, width)
        self.shown = nn.Embedding(9, width) if colours == "permute" else None

    @property
    def count(self) -> int:
        return 2 if self.shown is None else 10

    def forward(self, d4: Tensor, colours: Tensor) -> Tensor:
        """[B], [B, 10] -> [B, count, D]."""
        if self.shown is None:
            colour_BCD = self.canonical(colours[:, 1:2] - 1)  # the cyclic shift is where colour 1 went
        else:
            colour_BCD = self.canonical.weight + self.shown(colours[:, 1:] - 1)
        return torch.cat([self.d4(d4)[:, None], colour_BCD], 1)


class GridDenoiser(nn.Module):
    """(question, x_t, t) -> belief of the clean answer, logits [M, 10].

    rows: task rows R, 0 without task tokens. side: largest grid side S. task_tokens: m per task. demos: it reads them;
    with rows, too, it learns a row for tasks that have none. mlp_multiple: the SwiGLU width is 8/3 of the width rounded
    up to it. mask: x_t may hold id 10, which has a row of its own. Parameters: see `configs/arc`, where every count is
    stated and held by a test.
    """

    def __init__(
        self,
        rows: int,
        side: int = 30,
        colours: Literal["cycle", "permute"] = "permute",
        width: int = 384,
        depth: int = 4,
        heads: int = 6,
        task_tokens: int = 4,
        mlp_multiple: int = 64,
        dropout: float = 0.0,
        embedding_std: float = 0.3,
        demos: bool = False,
        mask: bool = False,
    ):
        super().__init__()
        self.side, self.task_tokens = side, task_tokens if rows else 0
        self.colour = nn.Embedding(NUM_COLOURS + mask, width)
        self.withheld = nn.Embedding(1, width)
        self.role = nn.Embedding(4 if demos else 2, width)
        self.row = nn.Embedding(side, width // 2)
        self.col = nn.Embedding(side, width // 2)
        self.tasks = nn.Embedding(rows, task_tokens * width) if rows else None
        self.no_row = nn.Embedding(1, task_tokens * width) if rows and demos else None
        self.pair = nn.Embedding(1 + MAX_DEMOS, width) if demos else None
        self.view = ViewTokens(width, colours)
        self.size_token = nn.Embedding(1, width)
        self.time = LevelEmbedding(width, features=256)
        self.belief = nn.Linear(NUM_COLOURS, width, bias=False)
        self.belief_gate = nn.Parameter(torch.empty(1))
        blocks = (Block(width, heads, mlp_multiple=mlp_multiple, dropout=dropout) for _ in range(depth))
        self.blocks = nn.ModuleList(blocks)
        self.rotary = Rotary((width // heads // 2,) * 2)
        self.norm = RMSNorm(width)
        self.out = Head(width, NUM_COLOURS, bias=False)
        self.size = Head(width, side * side, bias=False)
        self.embedding_std = embedding_std
        self.reset_parameters()

    def settle(self, depth: int) -> None:
        nn.init.constant_(self.belief_gate, 0.3)

    def reset_parameters(self) -> None:
        """Start the weights anew, from the global generator."""
        initialise(self, len(self.blocks), embedding_std=self.embedding_std)

    def embed(self, cells: Cells, colour_ND: Tensor, role: int | Tensor) -> Tensor:
        """Colour + place + role -> [N, D]. role: of all cells, or [N]."""
        place_ND = torch.cat([self.row(cells.row), self.col(cells.col)], 1)
        return colour_ND + place_ND + self.role.weight[role]

    def stand(self, before: int, cells: Cells) -> Tensor:
        """Where tokens turn to: cells to (row, col), the `before` others of every example to 0. [before * B + N, 2]"""
        place_N2 = torch.stack([cells.row, cells.col], 1)
        return torch.cat([place_N2.new_zeros(before * cells.count, 2), place_N2])

    def named(self, task: Tensor) -> Tensor:
        """The task tokens of rows [B] -> [B, task_tokens * D]."""
        if self.no_row is None:
            return self.tasks(task)
        return torch.where((task == NO_ROW)[:, None], self.no_row.weight, self.tasks(task.clamp(min=0)))

    def told(self, question: Question) -> Tensor:
        """Task and view [B, T, D]."""
        view_BTD = self.view(question.d4, question.colours)
        if self.tasks is None:
            return view_BTD
        return torch.cat([self.named(question.task).unflatten(1, (self.task_tokens, -1)), view_BTD], 1)

    def shown(self, question: Question) -> Tensor:
        """Demo and input cells [N, D]."""
        cells, marks, hidden_B = question.cells, question.marks, question.hidden
        colour_ND = self.colour(cells.colour)
        if hidden_B is not None:
            hidden_N = hidden_B[cells.segment]
            hidden_N = hidden_N if marks is None else hidden_N & (marks.role == INPUT)
            colour_ND = torch.where(hidden_N[:, None], self.withheld.weight, colour_ND)
        if marks is None:
            return self.embed(cells, colour_ND, INPUT)
        return self.embed(cells, colour_ND, marks.role) + self.pair(marks.pair)

    def prefix(self, question: Question) -> Prefix:
        """Reads the question once."""
        return self.sealed(question, *self.asked(question))

    def asked(self, question: Question) -> tuple[Tensor, Tensor, np.ndarray]:
        """The prefix before any block: tokens [N, D], where they stand [N, 2], and how many each example has [B]."""
        cells, said_BTD = question.cells, self.told(question)
        before = said_BTD.shape[1]
        order = to_device(repeated(weave(before, cells.lengths)[0], question.quantum), said_BTD.device)
        x_ND = torch.cat([said_BTD.flatten(0, 1), self.shown(question)]).index_select(0, order)
        return x_ND, self.stand(before, cells).index_select(0, order), cells.lengths + before

    def sealed(self, question: Question, x_ND: Tensor, place_N2: Tensor, lengths: np.ndarray) -> Prefix:
        """What is remembered of a question that sees itself only, and the answer's size read off it."""
        seen = filled(lengths, question.quantum)
        memory = self.remember(x_ND, Layout.of(seen, x_ND.device), self.rotary.rotation(place_N2))
        return Prefix(memory, lengths, self.size_logits(memory, seen)[: len(lengths)], question.quantum)

    def remember(self, x_ND: Tensor, layout: Layout, rotation: Rotation) -> list[KeysValues]:
        """Keys and values of every block for a stream that sees itself only."""
        memory: list[KeysValues] = []
        for block in self.blocks[:-1]:
            x_ND = block(x_ND, layout=layout, rotation=rotation, keep=(kept := []))
            memory += kept
        return [*memory, self.blocks[-1].keys_values(x_ND, rotation)]

    def size_logits(self, memory: list[KeysValues], lengths: np.ndarray) -> Tensor:
        """Belief of the answer's size [B, S * S], read off the prefix."""
        x_BD = self.size_token.weight.repeat(len(lengths), 1)  # rows of their own: strides as in the other streams
        layout = Layout.of(np.ones_like(lengths), x_BD.device, prefix_lengths=lengths)
        for block, seen in zip(self.blocks, memory):
            x_BD = block(x_BD, layout=layout, prefix=seen)
        return self.size(self.norm(x_BD))

    def frame(self, prefix: Prefix, answer: Cells) -> Frame:
        """Where the answer's cells stand: made once, for any number of passes over cells in these places."""
        order, place = weave(1, answer.lengths)
        own, seen = (filled(x, prefix.quantum) for x in (answer.lengths + 1, prefix.lengths))
        return self.framed(repeated(order, prefix.quantum), place, self.stand(1, answer), own, seen)

    def framed(
        self, order: np.ndarray, place: np.ndarray, stand: Tensor, own: np.ndarray, seen: np.ndarray | None
    ) -> Frame:
        """A frame of segments of `own` lengths, their tokens gathered by `order`, behind a prefix of `seen` lengths."""
        order_N, place_M = (to_device(x, stand.device) for x in (order, place))
        layout = Layout.of(own, stand.device, prefix_lengths=seen)
        return Frame(order_N, place_M, layout, self.rotary.rotation(stand.index_select(0, order_N)))

    def forward(
        self,
        prefix: Prefix,
        frame: Frame,
        answer: Cells,
        t: Tensor,
        belief: Tensor | None = None,
        layers: list[Tensor] | None = None,
    ) -> Tensor:
        """Belief of the clean answer.

        answer: M cells holding x_t. t: [B]. belief: an earlier belief's probabilities for all cells, or for the first
        ones only, [<= M, 10]; None adds no term. layers: a list that receives what the head reads off every block but
        the last. Returns logits [M, 10].
        """
        x_ND = self.tokens(prefix, answer, t, belief).index_select(0, frame.order)
        for block, memory in zip(self.blocks, prefix.memory):
            x_ND = block(x_ND, layout=frame.layout, rotation=frame.rotation, prefix=memory)
            if layers is not None and block is not self.blocks[-1]:
                layers.append(self.read_off(x_ND, frame))
        return self.read_off(x_ND, frame)

    def tokens(self, prefix: Prefix, answer: Cells, t: Tensor, belief: Tensor | None) -> Tensor:
        """What a frame gathers the stream of a pass from: time tokens, answer cells [B + M, D]."""
        colour_MD = self.colour(answer.colour)
        if belief is not None:
            seen_MD = self.belief_gate * self.belief(belief)
            colour_MD = torch.cat([colour_MD[: len(belief)] + seen_MD, colour_MD[len(belief) :]])
        return torch.cat([self.time(t), self.embed(answer, colour_MD, OUTPUT)])

    def read_off(self, x_ND: Tensor, frame: Frame) -> Tensor:
        """Logits [M, 10] of the answer's cells in a body stream."""
        return self.out(self.norm(x_ND.index_select(0, frame.place)))
