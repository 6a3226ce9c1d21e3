"""The formats of other tasks, on which settings are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from benchmarks.few_shot.task import Draw, Invention, Pair, notation, renaming


def file_entry(rng: Random) -> Draw:
    """A file in words becomes an entry of a listing."""
    rights = renaming(rng, ("read only", "writable", "locked"))
    form = notation(rng, ("owner", "file", "size", "right"))
    names = ("report", "invoice", "slides", "notes", "budget", "minutes", "draft", "survey")
    owners = ("mara", "otto", "pia", "quinn", "rosa", "stefan")

    def draw(rng: Random, number: int) -> Pair:
        right, owner = list(rights)[number % len(rights)], rng.choice(owners)
        file = f"{rng.choice(names)}.{rng.choice(('pdf', 'txt', 'csv'))}"
        size = rng.randrange(2, 900)
        answer = form.format(owner=owner, file=file, size=size, right=rights[right])
        return Pair(f"{file}, {size} KB, owned by {owner}, {right}", answer)

    return draw


def match(rng: Random) -> Draw:
    """The result of a match becomes an invented notation."""
    outcomes = renaming(rng, ("beat", "lost to", "drew with"))
    form = notation(rng, ("home", "outcome", "guest", "score"))
    teams = ("Reds", "Blues", "Eagles", "Wolves", "Sharks", "Comets", "Rovers", "Lions")

    def draw(rng: Random, number: int) -> Pair:
        outcome = list(outcomes)[number % len(outcomes)]
        home, guest = rng.sample(teams, 2)
        low, high = sorted(rng.sample(range(8), 2))
        goals = {"beat": (high, low), "lost to": (low, high), "drew with": (low, low)}[outcome]
        score = f"{goals[0]}-{goals[1]}"
        answer = form.format(home=home, outcome=outcomes[outcome], guest=guest, score=score)
        return Pair(f"The {home} {outcome} the {guest} {goals[0]} to {goals[1]}.", answer)

    return draw


def ingredient(rng: Random) -> Draw:
    """An ingredient becomes a line with codes of its preparation."""
    preparations = renaming(rng, ("sifted", "chopped", "melted", "peeled"))
    form = notation(rng, ("preparation", "grams", "food"))
    foods = ("flour", "butter", "carrots", "almonds", "sugar", "apples", "cheese", "ginger")

    def draw(rng: Random, number: int) -> Pair:
        preparation = list(preparations)[number % len(preparations)]
        grams, food = rng.randrange(1, 60) * 10, rng.choice(foods)
        answer = form.format(preparation=preparations[preparation], grams=grams, food=food)
        return Pair(f"{grams} grams of {food}, {preparation}", answer)

    return draw


def opinion(rng: Random) -> Draw:
    """A review gets the label of its opinion, a word without meaning."""
    adjectives = {
        "good": ("wonderful", "excellent", "delightful", "superb", "lovely", "great"),
        "bad": ("terrible", "awful", "disappointing", "dreadful", "horrible", "poor"),
    }
    labels = renaming(rng, tuple(adjectives))
    subjects = ("The hotel", "The film", "This phone", "The service", "Our guide", "The meal")

    def draw(rng: Random, number: int) -> Pair:
        name = list(adjectives)[number % len(adjectives)]
        question = f"{rng.choice(subjects)} was {rng.choice(adjectives[name])}."
        return Pair(question, labels[name])

    return draw


def meeting(rng: Random) -> Draw:
    """A meeting in words becomes a line of a calendar."""
    days = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
    form, case = notation(rng, ("day", "time", "who", "room")), rng.choice((str.upper, str.lower))
    people = ("Olga", "Pavel", "Rita", "Samir", "Tanja", "Umberto", "Vera", "Walter")

    def draw(rng: Random, number: int) -> Pair:
        day, who, room = days[number % len(days)], rng.choice(people), rng.randrange(1, 30)
        hour, minute = rng.randrange(8, 19), rng.choice((0, 15, 30, 45))
        answer = form.format(
            day=case(day[:2]), time=f"{hour:02}{minute:02}", who=who, room=f"r{room}"
        )
        return Pair(f"Meet {who} on {day} at {hour}:{minute:02} in room {room}.", answer)

    return draw


def moves(rng: Random) -> Draw:
    """Two moves in words become a line of codes."""
    directions = renaming(rng, ("north", "east", "south", "west"))
    form, joint = notation(rng, ("direction", "steps")), rng.choice((" ", ";", ", "))
    numbers = ("two", "three", "four", "five", "six", "seven", "eight", "nine")

    def draw(rng: Random, number: int) -> Pair:
        asked: list[str] = []
        written: list[str] = []
        for turn in (0, rng.randrange(1, len(directions))):
            direction = list(directions)[(number + turn) % len(directions)]
            steps = rng.randrange(len(numbers))
            asked.append(f"{numbers[steps]} steps {direction}")
            written.append(form.format(direction=directions[direction], steps=steps + 2))
        return Pair(f"Go {' and then '.join(asked)}.", joint.join(written))

    return draw


CHOOSING: Mapping[str, Invention] = {
    "file entry": file_entry,
    "match": match,
    "ingredient": ingredient,
    "opinion": opinion,
    "meeting": meeting,
    "moves": moves,
}
