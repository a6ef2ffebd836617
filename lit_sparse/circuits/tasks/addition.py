"""Addition of two numbers of n digits, one digit of the sum at a time (the toy of arXiv 2512.05865, Figure 1)."""

from collections.abc import Iterator, Mapping
from random import Random

from lit_sparse.circuits.tasks.task import Draft, Task, Template
from lit_sparse.circuits.tasks.vocabulary import NotExpressible, Vocabulary

SHOTS = 2
"""Number of solved sums before the one that is asked, in text."""
_PLACES = ("ones", "tens", "hundreds")


class Addition(Task):
    """One digit of a sum. There is a template for each digit.

    A vocabulary without line breaks (`AdditionTokenizer`) gets the toy's format, `12+34=046`: all numbers are padded
    with zeros, and the sum is one digit longer. Others get `12+34=46`, without padding and with sums of n digits, after
    two solved sums, one per line. The prompt ends right before the digit asked for. The corruption changes one digit of
    one summand so that, of the sum up to the digit asked, only that digit changes. Its new value is the wrong answer.

    Args:
        digits: n.

    Raises:
        ValueError: `digits` is below 1.
    """

    name = "addition"
    description = "12+34=04 -> 6, not 9 (corrupted 12+37=04)"

    def __init__(self, digits: int = 2) -> None:
        if digits < 1:
            raise ValueError(f"digits must be at least 1, not {digits}")
        self.digits = digits

    def templates(self, vocabulary: Vocabulary) -> Mapping[str, Template]:
        vocabulary.encode("1+2=3")  # raises where the signs are unknown
        in_text = vocabulary.knows("\n")
        if not vocabulary.splits_digits():
            raise NotExpressible("digits are not tokens of their own, so there is no digit of a sum to ask for")
        places = self.digits if in_text else self.digits + 1
        return {_place_name(place): self._template(place, in_text) for place in reversed(range(places))}

    def _template(self, place: int, in_text: bool) -> Template:
        low = 10 ** (self.digits - 1) if in_text else 0
        high = 10**self.digits
        largest = high - 1 if in_text else 2 * high - 2
        width = self.digits if in_text else self.digits + 1

        def summands(random: Random) -> tuple[int, int]:
            while True:
                first, second = random.randrange(low, high), random.randrange(low, high)
                if first + second <= largest:
                    return first, second

        def prompt(first: int, second: int) -> str:
            return f"{first:0{self.digits}}+{second:0{self.digits}}={first + second:0{width}}"

        def draft(random: Random) -> Draft:
            shots = "".join(prompt(*summands(random)) + "\n" for _ in range(SHOTS)) if in_text else ""
            while True:
                first, second = summands(random)
                others = [
                    pair
                    for pair in self._neighbours(first, second)
                    if min(pair) >= low
                    and sum(pair) <= largest
                    and (first + second) // 10 ** (place + 1) == sum(pair) // 10 ** (place + 1)
                    and (first + second) // 10**place != sum(pair) // 10**place
                ]
                if others:
                    break
            clean, corrupted = prompt(first, second), prompt(*random.choice(others))
            end = len(clean) - place - 1
            return Draft(shots + clean[:end], shots + corrupted[:end], answers=[clean[end]], wrong=[corrupted[end]])

        return draft

    def _neighbours(self, first: int, second: int) -> Iterator[tuple[int, int]]:
        """Pairs of summands, of which one differs from the given one in one digit."""
        for place in range(self.digits):
            for digit in range(10):
                for number, changed in ((first, lambda n: (n, second)), (second, lambda n: (first, n))):
                    other = number + (digit - number // 10**place % 10) * 10**place
                    if other != number:
                        yield changed(other)


def _place_name(place: int) -> str:
    return _PLACES[place] if place < len(_PLACES) else f"10^{place}"
