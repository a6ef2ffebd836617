from io import StringIO

import pytest
from rich.console import Console

from lit_sparse.common.formatting import duration, percent, signed, visible, visible_token
from lit_sparse.records.run_summary import RunSummary
from lit_sparse.report.run.table import summary_table
from lit_sparse.report.run.wording import summary_rows

KEYS = [
    "model",
    "base_ce",
    "ce",
    "kl",
    "constraint",
    "tolerance",
    "satisfied",
    "edges_per_query_start",
    "edge_fraction_start",
    "edges_per_query",
    "edge_fraction",
    "sequence_length",
    "exact_match",
    "steps",
    "tokens",
    "seconds",
]


def printed(summary: RunSummary) -> str:
    output = StringIO()
    Console(width=80, file=output).print(summary_table(summary))
    return output.getvalue()


def test_table_fits_80_columns(make_record):
    text = printed(make_record(model="an/organisation-" + "x" * 90).summary.model_copy(update={"exact_match": 1.0}))
    assert max(map(len, text.splitlines())) <= 80
    assert "measured on the test split" in text
    for part in ("2.861 -> 2.884 (+0.023)", "43.84 (34.1 %)", "4.77 (3.71 % of the allowed ones, T = 256)",
                 "0.098 <= 0.100", "60 steps, 82,000 tokens", "12 min 3 s", "100 %", "yes"):  # fmt: skip
        assert part in text


@pytest.mark.parametrize("summary", [{}, dict.fromkeys(KEYS), {"constraint": "kl", "satisfied": False}])
def test_table_bears_missing_values(summary):
    assert "Model" in printed(RunSummary.model_validate(summary))


def test_a_start_on_another_split_is_not_shown_beside_the_end():
    """Older summaries have the start's share on the validation split, and no edges per query of it."""
    rows = dict(summary_rows(RunSummary(edge_fraction_start=0.191, edge_fraction=0.0223, edges_per_query=2.59)))
    assert rows["Open edges per query and head"] == "2.59 (2.23 % of the allowed ones)"
    assert rows["… at the start of training"] == "-"


def test_model_name_is_not_markup():
    assert "[red]name[/red]" in printed(RunSummary(model="[red]name[/red]"))


def test_constraint_may_be_a_name_or_a_value():
    rows = dict(summary_rows(RunSummary(constraint="kl", constraint_value=0.2, tolerance=0.1)))
    assert rows["Constraint (kl)"] == "0.200 > 0.100 (tolerance)"
    assert dict(summary_rows(RunSummary(constraint_value=0.2)))["Constraint"] == "0.200 (tolerance -)"


def test_numbers_as_people_read_them():
    assert [percent(value) for value in (1, 0.341, 0.00041, None, float("nan"))] == [
        "100 %",
        "34.1 %",
        "0.041 %",
        "-",
        "-",
    ]
    assert [signed(value) for value in (0.0234, -0.0001, -0.5)] == ["+0.023", "+0.000", "-0.500"]
    assert [duration(value) for value in (0.25, 59.7, 60, 3725, None)] == [
        "0.2 s",
        "1 min 0 s",
        "1 min 0 s",
        "1 h 2 min",
        "-",
    ]
    assert visible("a\nb\x00\x1b") == "a↵b\ufffd\ufffd"
    assert visible("a\u2028b\u2029\x85") == "a↵b↵\ufffd"
    assert visible("\u202etxet\u2066\u2069") == "\ufffdtxet\ufffd\ufffd"
    assert visible("שלום é 👩\u200d🔬") == "שלום é 👩\u200d🔬"
    assert [visible_token(token, 4) for token in (" cat", "", "  ", "\n", "long word")] == [
        "cat",
        "␣",
        "␣",
        "↵",
        "lon…",
    ]
