"""Where the time went adds up to the time there was, on made-up spans and on a real run."""

import pytest

from shared.training.profiling import ACTIVE, FETCH, ProfileUpdates, Span, Spans, Unwatched, parts
from tests.shared.training.loop import Setting, train

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
SPANS = [
    Span(FETCH, 1000, 1500),
    Span("Optimizer.step#MuonAdamW.step", 2000, 8000),
    Span("[Strategy]SingleDeviceStrategy.training_step", 2500, 4500),
    Span("[Callback]Gradients.on_before_backward", 4600, 4700),
    Span("[Strategy]SingleDeviceStrategy.backward", 5000, 7000),
    Span("[Callback]WriteLogs.on_train_batch_end", 8000, 9000),
]


def test_a_span_counts_without_those_inside_it():
    spent = parts(SPANS, 0, 10_000)
    optimizer = 6.0 - 2.0 - 0.1 - 2.0
    assert spent == pytest.approx(
        {
            "data": 0.5,
            "forward": 2.0,
            "backward": 2.0,
            "callbacks": 1.1,
            "optimizer": optimizer,
            "loop": 10 - 0.5 - 6 - 1,
        }
    )


def test_the_parts_add_up_whatever_the_order_of_the_spans():
    assert sum(parts(SPANS[::-1], 0, 10_000).values()) == pytest.approx(10.0)
    assert parts(SPANS[::-1], 0, 10_000) == parts(SPANS, 0, 10_000)


def test_what_lies_outside_is_not_counted():
    assert sum(parts(SPANS, 0, 5000).values()) == pytest.approx(5.0)
    assert "backward" not in parts(SPANS, 0, 5000)


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    root, folder = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("profile")
    watch = ProfileUpdates(folder, "toy / nano")
    train(root, "profiled", Setting(updates=11, accumulate=2, validate_every=None, extra=[watch], spans=Spans()))
    return watch


def test_a_profiled_run_leaves_a_summary_and_a_trace(profiled):
    assert profiled.summary == (profiled.folder / "summary.md").read_text()
    assert (profiled.folder / "trace.json").stat().st_size > 1000
    assert profiled.updates == 11, "updates are counted, not micro-batches"


def test_the_summary_names_the_parts_and_the_reads_of_the_host(profiled):
    text = profiled.summary
    for part in ("forward", "backward", "optimizer", "callbacks", "loop", "data"):
        assert f"| {part} |" in text
    assert "aten::_local_scalar_dense" in text, "the loop reads its gradient norm and this module its loss"
    assert "aten::addmm" in text
    assert f"{2 * ACTIVE}" in [word for line in text.splitlines() if "training_step" in line for word in line.split()]


def test_the_terminal_gets_columns_where_the_file_has_markdown(profiled):
    assert "| part | ms per update | share |" in profiled.summary
    assert "|" not in "".join(profiled.lines) and "part       ms per update  share" in profiled.lines
    assert sum(line.startswith(("forward", "backward", "optimizer")) for line in profiled.lines) == 3


def test_watching_nothing_keeps_nothing():
    quiet = Unwatched()
    with quiet.profile("anything"):
        pass
    assert quiet.profile("a") is quiet.profile("b")
