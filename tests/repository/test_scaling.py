"""docs/performance/scaling.md says what its script computes, and the script what is known."""

import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "performance"


@pytest.fixture(scope="module")
def scaling():
    spec = importlib.util.spec_from_file_location("scaling", FOLDER / "scaling.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_document_is_up_to_date(scaling):
    document = scaling.DOCUMENT.read_text()
    assert scaling.filled(document) == document, "run `python docs/performance/scaling.py --write`"
    for make in scaling.TABLES.values():
        assert "\n".join(make()) in document


def test_a_table_without_its_place_is_an_error(scaling):
    with pytest.raises(ValueError, match="table: assumptions"):
        scaling.filled("nothing")


def test_weights_are_the_published_ones(scaling):
    published = [1.236e9, 6.888e9, 70.55e9]
    assert [model.weights for model in scaling.MODELS] == pytest.approx(published, rel=1e-3)
    assert scaling.MIXTURE.weights == pytest.approx(46.7e9, rel=1e-3)
    assert scaling.MIXTURE.active == pytest.approx(12.9e9, rel=0.02)  # the card's figure has the input embeddings


def test_operations_of_full_training_are_palms_and_a_teacher(scaling):
    model = scaling.SEVEN
    flops = model.flops(length=1024, checkpointing=False)
    attention = model.layers * model.heads * model.head_dim * 1024
    assert flops.model == 8 * model.active + 16 * attention


def test_volumes_are_those_of_the_zero_paper(scaling):
    """arXiv 1910.02054, section 7: ZeRO-2 sends 2 elements a weight, ZeRO-3 1.5 times that; a teacher adds one."""
    model = scaling.SEVEN
    zero2, zero3 = (scaling.volume(model, name, 1024) / (2 * model.weights) for name in ("zero2", "zero3"))
    assert zero2 == pytest.approx(2, rel=2e-3)
    assert zero3 - 1 == pytest.approx(3, rel=2e-3)


def test_limits_are_limits(scaling):
    for model in scaling.MODELS:
        for strategy in scaling.TRAFFIC:
            last = scaling.scales_to(model, strategy)
            assert scaling.network_seconds(model, strategy, last) <= scaling.compute_seconds(model, last)
            if last < scaling.BATCH // scaling.LENGTH:
                assert scaling.network_seconds(model, strategy, 2 * last) > scaling.compute_seconds(model, 2 * last)
    assert scaling.fits_from(scaling.MODELS[2], "ddp") is None
    assert scaling.fits_from(scaling.MODELS[2], "zero3") <= 64
