"""Handbook: documents of an invented institute, and questions that one of them answers.

The prose and the questions are in `handbook.txt`. Names of people, places, codes and numbers are
drawn, each of them once in the handbook, so that none can be known or guessed; each document has
several of a kind, of which a question asks for one.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from selection.ingest.ingest import Document

PROSE = Path(__file__).with_name("handbook.txt")
_SEED = 0
# A place in the prose whose value is drawn: its kind, and a number within the document.
_SLOT = re.compile(r"\{(([a-z]+)\d+)\}")
_QUESTION = re.compile(r"^\? (.+\?) = (\w+)$", re.MULTILINE)
_FIRST_NAMES = (
    "Ada Alba Anton Bela Birgit Boris Carla Cato Clemens Dagny Doris Edgar Elin Emil Esther Fabian",
    "Flora Frieda Gerd Greta Hanno Helga Henrik Ida Ines Ivo Jana Jonas Judith Karin Kaspar Lars",
    "Lena Linus Lotte Magnus Marta Mats Mina Nadia Nils Nora Olaf Oskar Paula Petra Ralf Rosa",
    "Ruben Selma Silas Sonja Svea Tessa Tilda Tobias Ulla Vera Viktor Wanda",
)
# Surnames and places have a part of each line.
_SURNAMES = (
    "Bram Cald Dorr Fenn Gorst Hask Kelm Lorn Mard Osk Pell Quen Rusk Stav Thorl Vask Wex Yarl",
    "anby arden eck eddow elius ersen eswick igan imore inge itter oby offer omond orra ulver",
)
_PLACES = (
    "Alder Birken Crane Drift Elver Fallow Grind Heron Jarn Kestrel Linden Mussel Norrin Otter",
    "beck dale firth haven holm minster ness stead thwaite wick wold",
)
_LETTERS = "ABCDEFGHJKLMNPRSTUVWXZ"


@dataclass(frozen=True)
class Question:
    """A question with one short answer.

    Attributes:
        text: the question.
        answer: the answer; of a person, the surname.
        document: name of the only document that has it.
    """

    text: str
    answer: str
    document: str


@dataclass(frozen=True)
class Handbook:
    """Documents, and questions on them: in turn one of each document."""

    documents: tuple[Document, ...]
    questions: tuple[Question, ...]


def make_handbook(seed: int = _SEED) -> Handbook:
    """The handbook with the values that a seed draws."""
    generator = random.Random(seed)  # noqa: S311
    values = _values(generator)
    documents: list[Document] = []
    questions: list[list[Question]] = []
    for section in PROSE.read_text().split("# ")[1:]:
        title, _, rest = section.partition("\n")
        prose, _, _ = rest.partition("\n? ")
        slots = dict.fromkeys(_SLOT.findall(prose))
        drawn = {slot: next(values[kind]) for slot, kind in slots}
        name = f"handbook/{title.lower().replace(' ', '-')}.txt"
        text = _filled(f"{title}\n{prose}", drawn)
        documents.append(Document(name, text, {"domain": "handbook"}))
        questions.append(
            [
                Question(asked, _short(slot, drawn[slot]), name)
                for asked, slot in _QUESTION.findall(rest)
            ]
        )
    generator.shuffle(questions)
    most = max(map(len, questions))
    in_turn = [each[n] for n in range(most) for each in questions if n < len(each)]
    return Handbook(tuple(documents), tuple(in_turn))


def is_right(line: str, answer: str) -> bool:
    """Whether a line has the answer in it, word by word, whatever stands beside it.

    Only letters and digits count, in upper or lower case: "kv 4471." has the answer "KV-4471", and
    "4417" has not the answer "441".
    """
    return f" {normalised(answer)} " in f" {normalised(line)} "


def normalised(text: str) -> str:
    """The words of a text, each of letters and digits in lower case, with a blank between them."""
    return " ".join(re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold()))


def _values(generator: random.Random) -> Mapping[str, Iterator[str]]:
    """Values by kind, of which none comes twice."""

    def shuffled(values: list[str]) -> list[str]:
        return generator.sample(values, len(values))

    surnames, places = (
        shuffled(["".join(parts) for parts in product(*map(str.split, syllables))])
        for syllables in (_SURNAMES, _PLACES)
    )
    people = zip(shuffled(" ".join(_FIRST_NAMES).split()), surnames, strict=False)
    codes = (
        "".join(generator.sample(_LETTERS, 2)) + f"-{number}"
        for number in generator.sample(range(1000, 10_000), 9000)
    )
    # Round numbers could be guessed.
    numbers = [str(number) for number in range(101, 1000) if number % 10]
    return {
        "person": map(" ".join, people),
        "place": iter(places),
        "code": codes,
        "number": iter(shuffled(numbers)),
    }


def _filled(text: str, drawn: Mapping[str, str]) -> str:
    """The text with its values, each paragraph on one line."""
    paragraphs = (" ".join(each.split()) for each in text.strip().split("\n\n"))
    return _SLOT.sub(lambda slot: drawn[slot[1]], "\n\n".join(paragraphs)) + "\n"


def _short(slot: str, value: str) -> str:
    """A value as an answer: the surname of a person."""
    return value.split()[-1] if slot.startswith("person") else value
