"""bfloat16 where the processor has it, float32 where it would be emulated."""

import pytest
import torch

from lit_sparse.training.precision import multiplies_bfloat16, suited_precision

pytestmark = pytest.mark.usefixtures("unpainted")


def pretend(monkeypatch, **capabilities):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)


@pytest.mark.parametrize(
    ("capabilities", "has_it"),
    [
        ({"architecture": "x86_64", "avx2": True}, False),
        ({"architecture": "x86_64", "avx512_bf16": True}, True),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, True),
        ({"architecture": "aarch64"}, True),
        ({}, True),
    ],
)
def test_what_the_processor_says(monkeypatch, capabilities, has_it):
    pretend(monkeypatch, **capabilities)
    assert multiplies_bfloat16() is has_it


def test_only_mixed_bfloat16_on_a_cpu_without_it_changes(monkeypatch):
    pretend(monkeypatch, architecture="x86_64", avx512_bf16=False)
    assert suited_precision("bf16-mixed", "cpu") == "32-true"
    assert suited_precision("bf16-mixed", "gpu") == "bf16-mixed"
    assert suited_precision("bf16-true", "cpu") == "bf16-true"
    assert suited_precision(None, "cpu") is None
    pretend(monkeypatch, architecture="x86_64", avx512_bf16=True)
    assert suited_precision("bf16-mixed", "cpu") == "bf16-mixed"


def test_a_run_says_that_it_took_float32(monkeypatch, capsys, write_config, tmp_path):
    from lit_sparse.commands.main import main

    pretend(monkeypatch, architecture="x86_64", avx512_bf16=False)
    config = write_config(tmp_path, changes={"trainer.precision": "bf16-mixed"})
    main(["fit", "--config", str(config), "--trainer.fast_dev_run", "1"])
    assert "trainer.precision is 32-true instead of bf16-mixed" in capsys.readouterr().out
