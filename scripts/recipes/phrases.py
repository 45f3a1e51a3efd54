"""Random texts of the target domain: names spelled, digits, numbers, serial numbers, dates, commands.

Each template gets a `random.Random` and returns groups of lower-case spoken words; a speaker may pause between groups.
"""

from __future__ import annotations

import random

LETTERS = "abcdefghijklmnopqrstuvwxyz"
DIGITS = "one two three four five six seven eight nine".split()
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
TWO_DIGITS = [*TEENS, *(f"{ten} {one}".strip() for ten in TENS for one in ("", *DIGITS))]
BELOW_HUNDRED = ["", *DIGITS, *TWO_DIGITS]
MONTHS = "january february march april may june july august september october november december".split()
WEEKDAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"
).split()
ORDINALS += [f"twenty {word}" for word in ORDINALS[:9]] + ["thirtieth", "thirty first"]
COMMANDS = (
    "yes no stop go help start repeat enter erase rubout up down left right on off bed bird cat dog happy house "
    "marvin sheila tree wow backward forward follow learn visual zero one two three four five six seven eight nine"
).split()
NAMES = (
    "adam alan alice amy andrea andrew angela anna anthony barbara barry ben bill bob brian carl carol charles "
    "chris cindy claire daniel david deborah dennis diane donna edward elizabeth emily eric fiona frank fred gary "
    "george grace harry heather helen henry howard ian isaac jack jacob james jane janet jason jeff jessica jim "
    "joan john joseph judy julia karen kate keith kelly ken kevin kim laura linda lisa louise lucy margaret maria "
    "mark mary matthew max michael nancy neil nick nora oliver olivia oscar pamela patrick paul peter philip "
    "quentin rachel ralph rebecca richard robert roger ruth sally sam sarah scott simon sophie stephen steve susan "
    "thomas tim tom tony ursula valerie victor vincent virginia walter wendy william xavier yvonne zach zoe abbott "
    "adams allen anderson baker barnes bell bennett brooks brown burke butler campbell carter clark cohen cole "
    "collins cook cooper cox cruz davis diaz dixon dunn ellis evans ferguson fisher fleming ford foster fox garcia "
    "gibson gonzalez graham grant gray green griffin hall hamilton harris hayes hernandez hill hoffman holmes "
    "hughes hunt jackson jenkins jensen johnson jones kaplan kelley kennedy khan king klein knight kowalski kumar "
    "larson lee lewis lopez lynch marshall martinez mason mcdonald meyer miller mitchell moore morgan murphy murray "
    "myers nelson nguyen novak obrien olson owens parker patel perez perry phillips porter powell price quinn "
    "ramirez reed reynolds rivera roberts robinson rodriguez rogers rossi russell sanchez sanders schmidt schultz "
    "shaw silva simpson singh smith snyder stewart sullivan taylor turner vargas vasquez wagner walker wallace ward "
    "watson weaver webb wells west white wilson wong wood wright yang young zhang zimmerman albany atlanta austin "
    "baltimore berlin boston buffalo calgary chicago cleveland dallas denver detroit dublin erie fresno geneva "
    "glasgow hartford houston jacksonville kansas leeds lisbon london madison memphis miami montreal nashville "
    "newark oakland omaha orlando oxford paris phoenix portland princeton quebec raleigh richmond rochester rome "
    "salem seattle sydney syracuse tampa toledo toronto tucson venice vienna warsaw york zurich avenue street road "
    "drive lane court boulevard broadway highland forbes squirrel maple walnut chestnut apple yellow zebra jazz "
    "pixel quiz box hexagon jigsaw wizard voyage vivid query fuzzy physics rhythm oxygen buzz"
).split()


def spelled_name(draw: random.Random) -> list[str]:
    return [" ".join(draw.choice(NAMES))]


def spelled_letters(draw: random.Random) -> list[str]:
    return [" ".join(draw.choices(LETTERS, k=draw.randint(1, 7)))]


def digit_string(draw: random.Random) -> list[str]:
    zero = draw.choice(("zero", "oh"))
    return [" ".join(draw.choices([*DIGITS, zero], k=draw.randint(1, 12)))]


def phone_number(draw: random.Random) -> list[str]:
    zero = draw.choice(("zero", "oh"))
    parts = draw.choice(((3, 4), (3, 3, 4), (3, 3, 2, 2), (5,)))
    groups = [" ".join(draw.choices([*DIGITS, zero], k=count)) for count in parts]
    return ["area code", *groups] if len(parts) == 3 and draw.random() < 0.2 else groups


def below_thousand(number: int, joint: str) -> str:
    hundreds, rest = divmod(number, 100)
    words = [f"{BELOW_HUNDRED[hundreds]} hundred"] if hundreds else []
    if rest:
        words += [joint] * bool(hundreds and joint) + [BELOW_HUNDRED[rest]]
    return " ".join(words)


def number(draw: random.Random) -> list[str]:
    """A whole number below a million: "four thousand three hundred and eighty six"."""
    value = draw.randint(1, 10 ** draw.randint(1, 6) - 1)
    joint = draw.choice(("", "and"))
    thousands, rest = divmod(value, 1000)
    groups = [below_thousand(thousands, joint) + " thousand"] if thousands else []
    if rest:
        groups.append((f"{joint} " if groups and joint and rest < 100 else "") + below_thousand(rest, joint))
    return groups


def loose_number(draw: random.Random) -> list[str]:
    """Two to four small numbers in a row, as people read house numbers and codes: "six thirty five", "one oh six"."""
    words = [draw.choice((*DIGITS, "oh", "zero") if draw.random() < 0.5 else TWO_DIGITS) for _ in range(3)]
    return [" ".join(words[: draw.randint(1, 3)])]


def serial(draw: random.Random) -> list[str]:
    """A command, letters and a number, in the manner of "rubout g m e f three nine"."""
    command = draw.choice(("", "", "enter", "erase", "rubout"))
    letters = " ".join(draw.choices(LETTERS, k=draw.randint(3, 6)))
    if command == "enter" and draw.random() < 0.7:
        return [f"enter {loose_number(draw)[0]}"]
    return [f"{command} {letters} {loose_number(draw)[0]}".strip()]


def code(draw: random.Random) -> list[str]:
    """Letters and digits in any order, as in a reservation or a license plate, without the ambiguous "oh"."""
    words = [draw.choice(LETTERS) if draw.random() < 0.5 else draw.choice([*DIGITS, "zero"]) for _ in range(10)]
    return [" ".join(words[: draw.randint(2, 10)])]


def year(draw: random.Random) -> str:
    century = draw.choice(("nineteen", "nineteen", "nineteen", "eighteen", "twenty"))
    if century == "twenty" and draw.random() < 0.5:
        return "two thousand" + draw.choice((" ", " and ")) + BELOW_HUNDRED[draw.randint(1, 29)]
    value = draw.randint(1, 99)
    return f"{century} {'oh ' if value < 10 else ''}{BELOW_HUNDRED[value]}"


def date(draw: random.Random) -> list[str]:
    month, day = draw.choice(MONTHS), draw.randint(1, 31)
    ordinal = ORDINALS[day - 1]
    said = draw.choice(
        (f"{month} {BELOW_HUNDRED[day]}", f"{month} {ordinal}", f"{month} the {ordinal}", f"the {ordinal} of {month}")
    )
    front = [draw.choice(WEEKDAYS)] if draw.random() < 0.15 else []
    return [*front, said, *([year(draw)] if draw.random() < 0.6 else [])]


def time_of_day(draw: random.Random) -> list[str]:
    hour = BELOW_HUNDRED[draw.randint(1, 12)]
    minute = draw.choice((0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, draw.randint(1, 59)))
    if minute == 0:
        return [f"{hour} o'clock" if draw.random() < 0.6 else f"{hour} {draw.choice('ap')} m"]
    if draw.random() < 0.25:
        return [draw.choice((f"half past {hour}", f"quarter to {hour}", f"quarter past {hour}", f"ten to {hour}"))]
    said = f"{hour} {'oh ' if minute < 10 else ''}{BELOW_HUNDRED[minute]}"
    return [said + (f" {draw.choice('ap')} m" if draw.random() < 0.4 else "")]


def command(draw: random.Random) -> list[str]:
    return draw.choices(COMMANDS, k=draw.choice((1, 1, 1, 1, 2, 3, 4)))


def phrase(draw: random.Random) -> list[str]:
    """A short sentence around something spelled or counted."""
    name = draw.choice(NAMES)
    spelled = " ".join(name)
    return draw.choice(
        (
            lambda: ["my name is", name, "spelled", spelled],
            lambda: [f"my name is spelled {spelled}"],
            lambda: [f"that is spelled {spelled}"],
            lambda: [name, spelled],
            lambda: ["the number is", *phone_number(draw)],
            lambda: ["my phone number is", *phone_number(draw)],
            lambda: ["please call", *phone_number(draw)],
            lambda: [f"call {name}"],
            lambda: [f"call {name} at", *phone_number(draw)],
            lambda: [f"the code is {code(draw)[0]}"],
            lambda: ["the date is", *date(draw)],
            lambda: ["i was born on", *date(draw)],
            lambda: [f"meet me at {time_of_day(draw)[0]}"],
            lambda: [f"room {loose_number(draw)[0]}"],
            lambda: [f"{loose_number(draw)[0]} {name} {draw.choice(('street', 'road', 'avenue', 'drive'))}"],
        )
    )()


LONE_WORDS = [*3 * COMMANDS, *MONTHS, *WEEKDAYS, *TEENS, *TENS]  # isolated words, commands most often
LONE_WORDS += "enter erase rubout repeat start help hundred thousand alexa computer jarvis snowboy".split()
LONE_WORDS += ["view glass", "smart mirror"]


TEMPLATES = {
    spelled_name: 0.22, spelled_letters: 0.10, digit_string: 0.14, phone_number: 0.06, number: 0.05, loose_number: 0.06,
    serial: 0.12, code: 0.06, date: 0.06, time_of_day: 0.02, command: 0.06, phrase: 0.05,
}  # fmt: skip


def draw_text(draw: random.Random) -> list[str]:
    """Sample a template by its share, then a text of it."""
    return draw.choices(list(TEMPLATES), list(TEMPLATES.values()))[0](draw)
