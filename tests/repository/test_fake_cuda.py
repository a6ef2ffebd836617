"""Whole computations on a device that is not the CPU."""

from tests.conftest import REPOSITORY


def test_everything_runs_on_another_device(start_python):
    """In a process of its own: the pretended device changes torch's defaults for good."""
    cases = REPOSITORY / "tests" / "pretended" / "cases.py"
    process = start_python("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", cases)
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, output + errors
