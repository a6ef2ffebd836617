"""Makes the questions of the shipped tasks: `python -m lit_sparse.downstream.make_tasks [FOLDER]`."""

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

_NOUNS = ("key", "author", "picture", "report", "bridge", "teacher", "letter", "road", "song", "farmer", "machine")
_ATTRACTORS = ("cabinet", "senator", "village", "student", "house", "window", "garden", "museum", "manager", "table")
_PREPOSITIONS = ("near", "beside", "behind", "next to")
_VERBS = (("is", "are"), ("was", "were"), ("has", "have"))


class Question(TypedDict):
    """A question. `answer` is the index of the right one of `choices`."""

    context: str
    choices: list[str]
    answer: int


def agreement() -> Iterator[Question]:
    """Questions such as "The keys near the cabinet", continued by "are" or "is". The verb agrees with the subject, not
    with the nearer noun (Linzen et al. 2016, arXiv 1611.01368). Half of the subjects are plural."""
    generator = random.Random(0)
    seen: set[str] = set()
    while len(seen) < 100:
        plural = len(seen) % 2
        subject, attractor = generator.choice(_NOUNS) + "s" * plural, generator.choice(_ATTRACTORS) + "s" * (1 - plural)
        context = f"The {subject} {generator.choice(_PREPOSITIONS)} the {attractor}"
        choices = generator.choice(_VERBS)
        if context not in seen:
            seen.add(context)
            yield Question(context=context, choices=list(choices), answer=plural)


def addition() -> Iterator[Question]:
    """All sums of two digits, each after four other sums. The choices have as many digits as the answer."""
    generator = random.Random(0)
    pairs = [(a, b) for a in range(10) for b in range(10)]
    for a, b in generator.sample(pairs, len(pairs)):
        shown = generator.sample([pair for pair in pairs if pair != (a, b)], 4)
        alike = range(10) if a + b < 10 else range(10, 19)
        choices = generator.sample([number for number in alike if number != a + b], 3)
        answer = generator.randrange(4)
        choices.insert(answer, a + b)
        lines = [f"{x} + {y} = {x + y}" for x, y in shown]
        yield Question(
            context="\n".join([*lines, f"{a} + {b} ="]), choices=[str(number) for number in choices], answer=answer
        )


def main(folder: Path) -> None:
    """Writes a .jsonl file for each task."""
    for task in (agreement, addition):
        lines = "".join(json.dumps(question) + "\n" for question in task())
        (folder / f"{task.__name__}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "tasks")
