"""The example of a record that reports are tested with."""

from tests.report.run_example import hostile, make_example, make_record  # noqa: F401 - fixtures
