"""The tiny model with a circuit."""

from tests.circuits.copier import copier, letters  # noqa: F401 - fixtures
