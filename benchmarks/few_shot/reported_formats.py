"""The formats of the tasks that are reported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from random import Random

from benchmarks.few_shot.task import Draw, Invention, Pair, notation, renaming

_MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
_PEOPLE = ("Ada", "Bruno", "Clara", "Dmitri", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jonas")
_CITIES = ("Bern", "Cairo", "Dublin", "Izmir", "Lagos", "Lima", "Oslo", "Porto", "Riga", "Turin")


def log_line(rng: Random) -> Draw:
    """A log line becomes a JSON object with invented keys."""
    fields = ["service", "level", "milliseconds", "time"]
    keys, order = renaming(rng, fields), rng.sample(fields, len(fields))
    services = ("auth", "billing", "cache", "gateway", "mailer", "scheduler", "search", "uploads")

    def draw(rng: Random, number: int) -> Pair:
        level = ("DEBUG", "INFO", "WARN", "ERROR")[number % 4]
        hour, minute, second = rng.randrange(24), rng.randrange(60), rng.randrange(60)
        milliseconds, service = rng.randrange(10, 5000), rng.choice(services)
        values = {
            "service": service,
            "level": level[0].lower(),
            "milliseconds": milliseconds,
            "time": f"{hour:02}:{minute:02}",
        }
        line = (
            f"2031-04-{rng.randrange(1, 31):02} {hour:02}:{minute:02}:{second:02} {level} "
            f"[{service}] request {rng.randrange(1000, 9999)} took {milliseconds} ms"
        )
        return Pair(line, json.dumps({keys[field]: values[field] for field in order}))

    return draw


def command(rng: Random) -> Draw:
    """A wish for the house becomes a command in an invented language."""
    verbs = renaming(rng, ("Switch on", "Switch off", "Lock", "Check", "Reset"))
    form = notation(rng, ("verb", "device", "room"))
    devices = ("lamp", "fan", "heater", "camera", "door", "radio", "window", "alarm")
    rooms = ("kitchen", "office", "garage", "hall", "attic", "cellar", "bathroom", "nursery")

    def draw(rng: Random, number: int) -> Pair:
        verb = list(verbs)[number % len(verbs)]
        device, room = rng.choice(devices), rng.choice(rooms)
        question = f"{verb} the {device} in the {room}."
        return Pair(question, form.format(verb=verbs[verb], device=device, room=room))

    return draw


def date(rng: Random) -> Draw:
    """A date in words becomes an odd short form."""
    form = notation(rng, ("day", "month", "year"))
    case = rng.choice((str.upper, str.lower, str.title))

    def draw(rng: Random, number: int) -> Pair:
        day, month, year = rng.randrange(1, 29), rng.choice(_MONTHS), rng.randrange(1950, 2050)
        ordinal = {1: "st", 2: "nd", 3: "rd"}.get(day % 10 if day // 10 != 1 else 0, "th")
        answer = form.format(day=f"{day:02}", month=case(month[:3]), year=f"{year % 100:02}")
        return Pair(f"the {day}{ordinal} of {month} {year}", answer)

    return draw


def topic(rng: Random) -> Draw:
    """A sentence gets the label of its topic, a word without meaning."""
    sentences = {
        "food": (
            ("The soup", "This bread", "Her curry", "The salad", "His cake", "The stew"),
            ("needs more salt", "tastes of lemon", "was still warm", "is made with onions"),
        ),
        "weather": (
            ("The storm", "Heavy rain", "Thick fog", "The frost", "A cold wind", "The heat"),
            ("will last until noon", "comes from the north", "is unusual in May", "may clear soon"),
        ),
        "sport": (
            ("The goalkeeper", "Our striker", "The referee", "Her coach", "The runner", "His team"),
            (
                "trained all week",
                "was cheered by fans",
                "missed the final",
                "left at half-time",
            ),
        ),
    }
    labels = renaming(rng, tuple(sentences))

    def draw(rng: Random, number: int) -> Pair:
        name = list(sentences)[number % len(sentences)]
        subjects, predicates = sentences[name]
        return Pair(f"{rng.choice(subjects)} {rng.choice(predicates)}.", labels[name])

    return draw


def order(rng: Random) -> Draw:
    """An order in words becomes a line with the codes of sizes."""
    sizes = renaming(rng, ("small", "medium", "large"))
    form, joint = notation(rng, ("count", "size", "product")), rng.choice((" + ", ", ", " "))
    products = ("coffee", "tea", "juice", "soup", "salad", "pizza", "cocoa", "lemonade")
    numbers = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

    def draw(rng: Random, number: int) -> Pair:
        asked: list[str] = []
        written: list[str] = []
        for product in rng.sample(products, 2):
            count = rng.randrange(1, 10)
            size = list(sizes)[(number + len(asked)) % len(sizes)]
            asked.append(f"{numbers[count - 1]} {size} {product}")
            written.append(form.format(count=count, size=sizes[size], product=product))
        return Pair(f"I would like {' and '.join(asked)}, please.", joint.join(written))

    return draw


def query(rng: Random) -> Draw:
    """A search in words becomes a query in an invented language."""
    orders = renaming(rng, ("cheapest first", "newest first", "best rated first"))
    kinds = renaming(rng, ("books", "films", "games", "records"))
    form = notation(rng, ("kind", "limit", "order"))
    field, sign = renaming(rng, ("price",))["price"], rng.choice(("<", "=<", "?", "-"))

    def draw(rng: Random, number: int) -> Pair:
        kind, by = list(kinds)[number % len(kinds)], list(orders)[number % len(orders)]
        price = rng.randrange(5, 200)
        answer = form.format(kind=kinds[kind], limit=f"{field}{sign}{price}", order=orders[by])
        return Pair(f"Find {kind} under {price} euros, {by}.", answer)

    return draw


def quantity(rng: Random) -> Draw:
    """A quantity in two units becomes an invented notation."""
    units = ("hours", "minutes"), ("metres", "centimetres"), ("kilograms", "grams")
    symbols = renaming(rng, [large for large, _ in units])
    form = notation(rng, ("symbol", "large", "small"))

    def draw(rng: Random, number: int) -> Pair:
        large_unit, small_unit = units[number % len(units)]
        large, small = rng.randrange(2, 90), rng.randrange(2, 60)
        answer = form.format(symbol=symbols[large_unit], large=large, small=small)
        return Pair(f"{large} {large_unit} and {small} {small_unit}", answer)

    return draw


def record(rng: Random) -> Draw:
    """A record of fields in any order becomes one with other keys in a fixed order."""
    keys = renaming(rng, ("name", "age", "city"))
    fixed, joint, sign = rng.sample(list(keys), 3), rng.choice(" ,/|"), rng.choice((":", "->", "."))

    def draw(rng: Random, number: int) -> Pair:
        values = {
            "name": rng.choice(_PEOPLE),
            "age": str(rng.randrange(18, 90)),
            "city": rng.choice(_CITIES),
        }
        shuffled = rng.sample(list(values), len(values))
        question = "; ".join(f"{field}={values[field]}" for field in shuffled)
        return Pair(question, joint.join(f"{keys[field]}{sign}{values[field]}" for field in fixed))

    return draw


REPORTED: Mapping[str, Invention] = {
    "log line": log_line,
    "command": command,
    "date": date,
    "topic": topic,
    "order": order,
    "query": query,
    "quantity": quantity,
    "record": record,
}
