"""Transcoder folders: round trips, the open layout, others' folders, damage."""

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from lit_sparse.transcoders import check_model, describe_transcoder, load_transcoder, save_transcoder

DIGEST = "dense-" + "00" * 32
KINDS = [(activation, cross) for activation in ("topk", "jumprelu") for cross in (True, False)]


@pytest.mark.parametrize("activation, cross_layer", KINDS)
def test_round_trip(make_transcoder, tmp_path, activation, cross_layer):
    transcoder = make_transcoder(activation=activation, cross_layer=cross_layer)
    save_transcoder(
        transcoder, tmp_path / "t", model_name="package:some_model", model_digest=DIGEST, measured={"l0": 3.0}
    )
    loaded = load_transcoder(tmp_path / "t")
    inputs = torch.randn(4, 5, 8)
    assert torch.equal(loaded(inputs), transcoder(inputs))
    for key in ("features", "activation", "cross_layer"):
        assert getattr(loaded.config, key) == getattr(transcoder.config, key)
    description = describe_transcoder(tmp_path / "t")
    assert description["model_kind"] == ("cross_layer_transcoder" if cross_layer else "transcoder_set")
    assert description["lit_sparse"]["measured"] == {"l0": 3.0}


def test_layout(make_transcoder, tmp_path):
    save_transcoder(
        make_transcoder(activation="jumprelu"), tmp_path / "t", model_name="m", model_digest=DIGEST, measured={}
    )
    shapes = {}
    for file in (tmp_path / "t").glob("*.safetensors"):
        shapes |= {name: tuple(tensor.shape) for name, tensor in load_file(file).items()}
    assert shapes == {
        name: shape
        for i in range(4)
        for name, shape in {
            f"W_enc_{i}": (12, 8), f"b_enc_{i}": (12,), f"b_dec_{i}": (8,), f"threshold_{i}": (12,),
            f"W_dec_{i}": (12, 4 - i, 8),
        }.items()
    }  # fmt: skip
    config = yaml.safe_load((tmp_path / "t/config.yaml").read_text())
    assert config["feature_input_hook"] == "mlp.hook_in" and config["feature_output_hook"] == "hook_mlp_out"


@pytest.mark.parametrize("thresholds", [True, False])
def test_a_folder_of_others(make_transcoder, tmp_path, thresholds, caplog):
    """Without our part of the config: thresholds if there are some, else ReLU."""
    transcoder = make_transcoder(activation="jumprelu")
    save_transcoder(transcoder, tmp_path / "t", model_name="m", model_digest=DIGEST, measured={})
    config = yaml.safe_load((tmp_path / "t/config.yaml").read_text())
    del config["lit_sparse"]
    (tmp_path / "t/config.yaml").write_text(yaml.safe_dump(config))
    if not thresholds:
        for file in (tmp_path / "t").glob("W_enc_*"):
            save_file({name: t for name, t in load_file(file).items() if "threshold" not in name}, file)
    inputs = torch.randn(4, 5, 8)
    read = transcoder.preactivate_all(inputs)
    expected = transcoder.activate_all(read) if thresholds else read.relu()
    assert torch.equal(load_transcoder(tmp_path / "t").encode(inputs), expected)
    check_model(tmp_path / "t", "some/model", DIGEST)
    assert "do not record their model: make sure that it was some/model" in caplog.text


def test_a_folder_says_which_model_it_belongs_to(make_transcoder, tmp_path):
    save_transcoder(make_transcoder(), tmp_path / "t", model_name="mine", model_digest=DIGEST, measured={})
    check_model(tmp_path / "t", "mine", DIGEST)
    with pytest.raises(
        ValueError, match=r"trained on another model \(mine\) than other; name or train transcoders of other"
    ):
        check_model(tmp_path / "t", "other", "dense-" + np.ones(8, ">f4").tobytes().hex())
    config = yaml.safe_load((tmp_path / "t/config.yaml").read_text())
    del config["lit_sparse"]["model_digest"]
    (tmp_path / "t/config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=r"older version.*make it again"):
        check_model(tmp_path / "t", "mine")


def test_bfloat16_weights_load_as_float32(make_transcoder, tmp_path):
    transcoder = make_transcoder()
    save_transcoder(transcoder, tmp_path / "t", model_name="m", model_digest=DIGEST, measured={}, dtype=torch.bfloat16)
    loaded = load_transcoder(tmp_path / "t")
    assert loaded.W_enc.dtype == torch.float32
    torch.testing.assert_close(loaded.W_dec[0], transcoder.W_dec[0], rtol=2**-8, atol=0)  # bfloat16 has 8 bits
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        save_transcoder(
            transcoder, tmp_path / "u", model_name="m", model_digest=DIGEST, measured={}, dtype=torch.float16
        )


def test_only_a_transcoder_folder_is_replaced(make_transcoder, tmp_path):
    for k in (2, 3):
        save_transcoder(make_transcoder(k=k), tmp_path / "t", model_name="m", model_digest=DIGEST, measured={})
    assert load_transcoder(tmp_path / "t").config.k == 3
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other/precious.txt").write_text("mine")
    with pytest.raises(ValueError, match="no transcoder folder"):
        save_transcoder(make_transcoder(), tmp_path / "other", model_name="m", model_digest=DIGEST, measured={})
    assert (tmp_path / "other/precious.txt").read_text() == "mine"


def damaged(folder, kind):
    if kind == "no config":
        (folder / "config.yaml").unlink()
    elif kind == "no kind":
        (folder / "config.yaml").write_text("model_name: m")
    elif kind == "not YAML":
        (folder / "config.yaml").write_text("a: [")
    elif kind == "missing decoder":
        (folder / "W_dec_2.safetensors").unlink()
    elif kind == "no weights":
        for file in folder.glob("*.safetensors"):
            file.unlink()
    elif kind == "cut off":
        file = folder / "W_enc_1.safetensors"
        file.write_bytes(file.read_bytes()[:40])
    elif kind == "unknown part":
        file = folder / "W_enc_1.safetensors"
        save_file(load_file(file) | {"W_skip_1": torch.eye(8)}, file)
    elif kind == "negative threshold":
        file = folder / "W_enc_1.safetensors"
        save_file(load_file(file) | {"threshold_1": torch.full((12,), -0.1)}, file)
    elif kind == "other place":
        description = yaml.safe_load((folder / "config.yaml").read_text())
        description["feature_input_hook"] = "ln2.hook_normalized"
        (folder / "config.yaml").write_text(yaml.safe_dump(description))
    elif kind == "wrong shape":
        save_file({"W_dec_1": torch.zeros(12, 4, 8)}, folder / "W_dec_1.safetensors")


@pytest.mark.parametrize(
    "kind, words",
    [
        ("no config", "no config.yaml"),
        ("no kind", "must say model_kind"),
        ("not YAML", "no readable YAML"),
        ("missing decoder", "cannot read W_dec_2"),
        ("no weights", "holds no W_enc_0"),
        ("unknown part", "has W_skip_1, which is no part"),
        ("negative threshold", "thresholds below 0"),
        ("other place", r"transcoders of ln2\.hook_normalized are not supported"),
        ("cut off", "cannot read W_enc_1"),
        ("wrong shape", r"W_dec_1 is \(12, 4, 8\), expected \(12, 3, 8\)"),
    ],
)
def test_damaged_folders(make_transcoder, tmp_path, kind, words):
    transcoder = make_transcoder(activation="jumprelu" if kind == "negative threshold" else "topk")
    save_transcoder(transcoder, tmp_path / "t", model_name="m", model_digest=DIGEST, measured={})
    damaged(tmp_path / "t", kind)
    with pytest.raises(ValueError, match=words):
        load_transcoder(tmp_path / "t")
