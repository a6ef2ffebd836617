"""Text that a model writes itself."""

import json

import pytest
import torch

from lit_sparse.commands.main import main
from lit_sparse.commands.sample import sample
from lit_sparse.data import TextData
from lit_sparse.models.base import load_model, load_tokenizer


@pytest.fixture
def arguments(llama_folder, tmp_path):
    out = tmp_path / "folder" / "samples.jsonl"
    sizes = ["--tokens", "70", "--length", "12", "--batch_size", "3", "--dtype", "float32"]
    return out, ["sample", "--model", str(llama_folder), "--out", str(out), *sizes]


def stopped(*_):
    raise KeyboardInterrupt


def texts(path):
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_an_interrupted_command_goes_on_to_the_same_file(arguments, capsys):
    out, command = arguments
    main(command)
    assert "6 documents of 12 tokens" in capsys.readouterr().out
    whole = out.read_bytes()
    assert len(texts(out)) == 6 and len(set(texts(out))) == 6
    for cut in (len(whole) - 5, whole.index(b"\n") + 1, 0):
        out.unlink()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lit_sparse.commands.sample.os.replace", stopped)
            with pytest.raises(KeyboardInterrupt):
                main(command)
        assert not out.exists()
        (part,) = out.parent.iterdir()
        part.write_bytes(whole[:cut])
        main([*command, "--seed", "1"])
        assert out.read_bytes() != whole, "other settings do not go on with it"
        out.unlink()
        main(command)
        assert out.read_bytes() == whole
        assert not part.exists()


def test_samples_follow_the_model(llama_folder):
    """The first token's frequencies are its probabilities, by chi squared, and only of the top_k."""
    model = load_model(str(llama_folder))
    with torch.no_grad():
        probability = (2 * model(torch.tensor([[3]])).logits[0, -1]).softmax(-1).double()
        model.lm_head.weight.mul_(2)  # far from uniform
    torch.manual_seed(0)
    drawn = torch.tensor(sample(model, 3, 5000, 1, top_k=10**6)).flatten()
    count = torch.bincount(drawn, minlength=len(probability)).double()
    expected = 5000 * probability
    often = expected > 5
    chi = ((count - expected).square() / expected)[often].sum()
    degrees = int(often.sum())
    assert degrees > 5
    assert chi < degrees + 5 * (2 * degrees) ** 0.5  # five standard deviations
    likeliest = torch.tensor(sample(model, 3, 500, 1, top_k=4)).flatten()
    assert set(likeliest.tolist()) == set(probability.topk(4).indices.tolist())


def test_each_token_follows_all_before(llama_folder):
    """With the likeliest token only, a document is the model's own greedy continuation without a cache."""
    model, ids = load_model(str(llama_folder)), torch.tensor([[3]])
    drawn = sample(model, 3, 2, 9, top_k=1)
    with torch.no_grad():
        for _ in range(9):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    assert drawn == [ids[0, 1:].tolist()] * 2


def test_text_data_reads_them(arguments, llama_folder):
    out, command = arguments
    main([*command, "--tokens", "400"])
    data = TextData([str(out)], load_tokenizer(str(llama_folder)), sequence_length=8, val_sequences=1, test_sequences=1)
    data.setup()
    assert len(data.splits.train) > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--out", "a.txt"], "must end in .jsonl"),
        (["--tokens", "0"], "at least 1"),
        (["--top_k", "0"], "at least 1"),
        (["--dtype", "int8"], "no float type"),
        (["--start", "two words"], "name one"),
        (["--model", "./nowhere"], "there is no folder ./nowhere"),
    ],
)
def test_mistakes_end_in_one_line(arguments, capsys, changes, words):
    out, command = arguments
    with pytest.raises(SystemExit) as stopped:
        main([*command, *changes])
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("content", ["my notes\n", '{"text": "my own text"}\n'])
def test_a_file_that_exists_is_left_alone(arguments, capsys, content):
    out, command = arguments
    out.parent.mkdir()
    out.write_text(content)
    with pytest.raises(SystemExit):
        main(command)
    assert "exists" in capsys.readouterr().err
    assert out.read_text() == content
