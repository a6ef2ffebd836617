"""Everyday sentences over which a head's mean is taken if there is no task."""

from lit_sparse.circuits.tasks.vocabulary import NotExpressible, Tokenizer, Vocabulary

SENTENCES = (
    "The harbour was quiet in the morning, and only two boats had gone out.",
    "She opened the window because the room had become too warm.",
    "In 1998 the company moved its main office from Boston to Chicago.",
    "Most plants need water, light and a soil that holds enough air.",
    "He said that the train would be late again, and he was right.",
    "If the number is even, divide it by two; otherwise add one.",
    "The committee will meet on Thursday to discuss the new budget.",
    "My grandmother kept her recipes in a small blue box on the shelf.",
    "A function returns the value that follows the word return.",
    "They walked along the river until it was dark and the lamps were lit.",
    "Doctors recommend at least seven hours of sleep for adults.",
    "The team won three of its first five games and lost the others.",
    "Copper conducts electricity better than iron, but silver is better still.",
    "What do you want to do when you have finished school?",
    "The price of wheat rose by four percent during the last quarter.",
    "Once upon a time there was a king who had no children.",
    "Please send the signed form back to us before the end of the month.",
    "The museum is closed on Mondays and on public holidays.",
    "Light from the nearest star takes more than four years to reach us.",
    "He put the keys on the table, took off his coat and sat down.",
    "The results were published in a journal that few people read.",
    "To install the program, copy the folder and run the first file in it.",
    "Winter came early that year, and the roads were covered with snow.",
    "She has lived in Paris, Rome and Vienna, but she was born in Lima.",
)


def everyday_prompts(tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """The sentences that the tokenizer can express, as token ids."""
    vocabulary, found = Vocabulary(tokenizer), []
    for sentence in SENTENCES:
        try:
            found.append(vocabulary.encode(sentence))
        except NotExpressible:
            continue
    return found
