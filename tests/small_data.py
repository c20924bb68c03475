"""Word problems of our own in GSM8K's form, and an archive like level-1's, made in memory and in temporary folders.

Twenty-one kinds of problems, each with names and numbers that are drawn. What is known of each is exact:
the numbers, every step's result, the kind."""
import json, random, re, zipfile
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache

import pandas as pd

WHO = "Nora Emil Tessa Oskar Paula Viktor Greta Linus".split()


@dataclass(frozen=True)
class Kind:
    "One kind of problem: a question, the values to draw its numbers from, and the steps of its solution."
    question: str  # with {who} and the numbers' names
    numbers: dict  # name -> values to draw from
    steps: tuple  # (name of the result, expression in names, sentence with {left} and {note})
    derived: dict = field(default_factory=dict)  # name -> expression, for a factor such as 0.2 for 20 %


BAKERY = Kind(
    "{who} bakes {trays} trays with {each} rolls on every tray. The cafe takes {sold} rolls. The others go into "
    "bags of {bag} rolls. How many bags are there?",
    dict(trays=range(6, 30), each=range(8, 25), sold=range(13, 90), bag=range(3, 10)),
    (("rolls", "trays * each", "{who} bakes {left} = {note} rolls."),
     ("over", "rolls - sold", "After the cafe there are {left} = {note} rolls."),
     ("bags", "over / bag", "That makes {left} = {note} bags.")))
PUMP = Kind(
    "A pump moves {litres} liters of water in a minute. {who} lets it run for {hours} hours and then uses {used} "
    "liters. How many liters does {who} have at the end?",
    dict(litres=range(5, 40), hours=range(2, 9), used=range(110, 290, 10)),
    (("minutes", "hours * 60", "The pump runs for {left} = {note} minutes."),
     ("total", "minutes * litres", "It moves {left} = {note} liters."),
     ("left", "total - used", "At the end there are {left} = {note} liters.")))
COAT = Kind(
    "A winter coat costs ${price}. This week its price is lowered by {percent}%. How much does {who} pay for "
    "{count} such coats?",
    dict(price=range(40, 300, 20), percent=(10, 15, 20, 30, 40, 60), count=range(3, 9)),
    (("less", "price * share", "The price falls by {left} = ${note}."),
     ("now", "price - less", "A coat now costs {left} = ${note}."),
     ("paid", "now * count", "{who} pays {left} = ${note}.")),
    dict(share="percent / 100"))
BOOK = Kind(
    "A novel has {pages} pages. {who} reads {monday} pages on Monday, {tuesday} pages on Tuesday and {friday} pages "
    "on Friday. How many evenings with {evening} pages does the rest take?",
    dict(pages=range(250, 600), monday=range(15, 60), tuesday=range(15, 60), friday=range(15, 60), evening=range(6,
         14)),
    (("read", "monday + tuesday + friday", "{who} has read {left} = {note} pages."),
     ("rest", "pages - read", "There remain {left} = {note} pages."),
     ("evenings", "rest / evening", "They take {left} = {note} evenings.")))
DRIVE = Kind(
    "A lorry covers {miles} miles in {hours} hours. At the same speed it goes on for {more} hours. How many miles "
    "has it covered in all?",
    dict(miles=range(120, 480, 6), hours=range(3, 9), more=range(2, 12)),
    (("speed", "miles / hours", "Its speed is {left} = {note} miles in an hour."),
     ("further", "speed * more", "It goes on for {left} = {note} miles."),
     ("total", "miles + further", "In all it covers {left} = {note} miles.")))
CINEMA = Kind(
    "A cinema ticket costs ${ticket} and a bag of popcorn ${popcorn}. {who} buys {tickets} tickets and {bags} bags "
    "of popcorn with a note of ${note}. How much money is returned?",
    dict(ticket=(Fraction(15, 2), Fraction(35, 4), Fraction(25, 2)), popcorn=(Fraction(9, 4), Fraction(7, 2)),
         tickets=range(3, 8), bags=range(2, 9, 2), note=(150, 200)),
    (("seats", "tickets * ticket", "The tickets cost {left} = ${note}."),
     ("corn", "bags * popcorn", "The popcorn costs {left} = ${note}."),
     ("cost", "seats + corn", "Together that is {left} = ${note}."),
     ("back", "note - cost", "{who} gets back {left} = ${note}.")))
HENS = Kind(
    "{who} keeps {hens} hens. Each of them lays {eggs} eggs in a week. A carton holds a dozen eggs and sells for "
    "${price}. What do the cartons of {weeks} weeks bring?",
    dict(hens=range(12, 50, 2), eggs=range(4, 7), price=range(3, 9), weeks=range(6, 15)),
    (("laid", "hens * eggs * weeks", "The hens lay {left} = {note} eggs."),
     ("cartons", "laid / 12", "They fill {left} = {note} cartons."),
     ("money", "cartons * price", "The cartons bring {left} = ${note}.")))
SAVINGS = Kind(
    "{who} earns ${wage} a month, pays ${rent} for a room and ${food} for food, and saves what remains. How many "
    "dollars are saved in {years} years?",
    dict(wage=range(1500, 3600, 50), rent=range(450, 900, 25), food=range(200, 420, 10), years=range(3, 9)),
    (("saved", "wage - rent - food", "Each month {left} = ${note} remain."),
     ("months", "years * 12", "There are {left} = {note} months."),
     ("total", "saved * months", "In that time {who} saves {left} = ${note}.")))
CHOIR = Kind(
    "A choir has {singers} singers, and {percent}% of them are children. Every child brings {songs} songs and every "
    "grown singer {more} songs. How many songs are brought?",
    dict(singers=range(40, 260, 20), percent=(15, 30, 40, 45, 60), songs=range(3, 7), more=range(7, 12)),
    (("children", "share * singers", "There are {left} = {note} children."),
     ("grown", "singers - children", "There are {left} = {note} grown singers."),
     ("young", "children * songs", "The children bring {left} = {note} songs."),
     ("old", "grown * more", "The grown singers bring {left} = {note} songs."),
     ("all", "young + old", "In all there are {left} = {note} songs.")),
    dict(share="percent / 100"))
FENCE = Kind(
    "A garden is {length} meters long and {width} meters wide. {who} puts a fence around it for ${price} a meter. "
    "How much does the fence cost?",
    dict(length=range(14, 60), width=range(9, 40), price=range(6, 25)),
    (("around", "2 * (length + width)", "It is {left} = {note} meters around the garden."),
     ("cost", "around * price", "The fence costs {left} = ${note}.")))
FARE = Kind(
    "Last year a bus pass cost ${old}. This year it costs {percent}% more. How much do {riders} passes cost this year?",
    dict(old=range(40, 200, 20), percent=(5, 10, 15, 20, 25), riders=range(13, 60)),
    (("new", "old * grown", "A pass now costs {left} = ${note}."),
     ("cost", "new * riders", "The passes cost {left} = ${note}.")),
    dict(grown="1 + percent / 100"))
CRATES = Kind(
    "A ship carries {stacks} stacks of {crates} crates. In every crate there are {boxes} boxes. {damaged} boxes are "
    "damaged. How many boxes are whole?",
    dict(stacks=range(6, 20), crates=range(5, 15), boxes=range(4, 13), damaged=range(13, 99)),
    (("all", "stacks * crates * boxes", "There are {left} = {note} boxes."),
     ("whole", "all - damaged", "Of these {left} = {note} are whole.")))
SCORES = Kind(
    "In three rounds {who} scores {one}, {two} and {three} points. The winner's mean score is {ahead} points "
    "higher. How many points did the winner score over ten rounds?",
    dict(one=range(21, 90), two=range(21, 90), three=range(21, 90), ahead=range(5, 20)),
    (("mean", "(one + two + three) / 3", "{who} scores {left} = {note} points in the mean."),
     ("best", "mean + ahead", "The winner has {left} = {note} points in the mean."),
     ("sum", "best * 10", "That is {left} = {note} points.")))
RIBBON = Kind(
    "A roll of ribbon is {feet} feet long. {who} needs {piece} inches for a bow and makes {bows} bows. How many "
    "inches of ribbon are left?",
    dict(feet=range(30, 90), piece=range(5, 11), bows=range(14, 36)),
    (("inches", "feet * 12", "The roll has {left} = {note} inches."),
     ("used", "piece * bows", "The bows take {left} = {note} inches."),
     ("left", "inches - used", "There are {left} = {note} inches left.")))
TEAMS = Kind(
    "{children} children and {parents} parents come to a sports day. They form teams of {size}. Each team pays "
    "${fee} and the town adds ${gift}. How much money is collected?",
    dict(children=range(40, 140), parents=range(13, 60), size=range(5, 12), fee=range(14, 40), gift=range(150, 400,
         25)),
    (("people", "children + parents", "There are {left} = {note} people."),
     ("teams", "people / size", "They form {left} = {note} teams."),
     ("fees", "teams * fee", "The teams pay {left} = ${note}."),
     ("money", "fees + gift", "With the gift it is {left} = ${note}.")))
STAMPS = Kind(
    "{who} owns {stamps} stamps. A cousin owns {times} times as many. Together they sell {sold} stamps and put the "
    "others into albums with {album} stamps. How many albums do they fill?",
    dict(stamps=range(60, 220), times=range(3, 7), sold=range(20, 95), album=range(8, 25)),
    (("cousin", "stamps * times", "The cousin owns {left} = {note} stamps."),
     ("both", "stamps + cousin", "Together they own {left} = {note} stamps."),
     ("kept", "both - sold", "They keep {left} = {note} stamps."),
     ("albums", "kept / album", "They fill {left} = {note} albums.")))
PAINT = Kind(
    "A wall needs {cans} cans of paint at ${can} a can. A painter works {hours} hours for ${wage} an hour. How much "
    "do {walls} such walls cost?",
    dict(cans=range(3, 9), can=range(14, 40), hours=range(5, 12), wage=range(17, 45), walls=range(6, 15)),
    (("paint", "cans * can", "The paint costs {left} = ${note}."),
     ("work", "hours * wage", "The work costs {left} = ${note}."),
     ("wall", "paint + work", "One wall costs {left} = ${note}."),
     ("cost", "wall * walls", "The walls cost {left} = ${note}.")))
FLOUR = Kind(
    "A mill grinds {tons} sacks of grain a day, and each sack gives {kilos} kilograms of flour. After {days} days, "
    "{lost} kilograms are spoiled. How many kilograms are good?",
    dict(tons=range(13, 40), kilos=range(21, 60), days=range(5, 25), lost=range(110, 460, 10)),
    (("sacks", "tons * days", "The mill grinds {left} = {note} sacks."),
     ("flour", "sacks * kilos", "They give {left} = {note} kilograms of flour."),
     ("good", "flour - lost", "Of that, {left} = {note} kilograms are good.")))
STUDY = Kind(
    "{who} studies {minutes} minutes every morning and {evening} minutes every evening. How many minutes of study "
    "are there in {weeks} weeks?",
    dict(minutes=range(15, 55, 5), evening=range(20, 90, 5), weeks=range(5, 12)),
    (("day", "minutes + evening", "A day has {left} = {note} minutes of study."),
     ("week", "day * 7", "A week has {left} = {note} minutes of study."),
     ("all", "week * weeks", "In all there are {left} = {note} minutes.")))
SHELVES = Kind(
    "A shop sells {first} lamps in spring, {second} lamps in summer and {third} lamps in autumn. A lamp costs "
    "${price} and the shop keeps {percent}% of the money. How many dollars does it keep?",
    dict(first=range(20, 90), second=range(20, 90), third=range(20, 90), price=range(20, 80, 5), percent=(20, 30,
         40, 70)),
    (("lamps", "first + second + third", "The shop sells {left} = {note} lamps."),
     ("money", "lamps * price", "They bring {left} = ${note}."),
     ("kept", "money * percent / 100", "The shop keeps {left} = ${note}.")))
BOXES = Kind(
    "{who} folds {boxes} boxes in {minutes} minutes. How many boxes does {who} fold in {longer} minutes, when "
    "{torn} of them tear?",
    dict(boxes=(20, 40, 50, 80, 100, 125), minutes=(4, 5, 8, 10), longer=range(60, 240, 20), torn=range(2, 4)),
    (("rate", "boxes / minutes", "{who} folds {left} = {note} boxes in a minute."),
     ("folded", "rate * longer", "In the longer time it is {left} = {note} boxes."),
     ("whole", "folded - torn", "Of these {left} = {note} are whole.")))
KINDS = (BAKERY, PUMP, COAT, BOOK, DRIVE, CINEMA, HENS, SAVINGS, CHOIR, FENCE, FARE,
         CRATES, SCORES, RIBBON, TEAMS, STAMPS, PAINT, FLOUR, STUDY, SHELVES, BOXES)


# --- one problem -----------------------------------------------------------------------------------------------------

def written(value):
    "A number as it is written: 36, 7.5, 0.2."
    value = Fraction(value)
    return str(value.numerator) if value.denominator == 1 else str(float(value))


def evaluate(expression, numbers):
    exact = {name: Fraction(value) for name, value in numbers.items()}
    return Fraction(eval(expression, {}, exact))

def spelt(expression, numbers): return re.sub(r"[a-z]+", lambda name: written(numbers[name[0]]), expression)


def solved(kind, numbers, who, slip=None):
    "(worked solution, results). `slip`: (step, its expression or None, what is added to its result), carried on."
    numbers, lines, results = dict(numbers), [], []
    for i, (name, expression, sentence) in enumerate(kind.steps):
        wrong, added = slip[1:] if slip and slip[0] == i else (None, 0)
        expression = wrong or expression
        value = evaluate(expression, numbers) + added
        left = spelt(expression, numbers)
        note = f"<<{left.replace(' ', '')}={written(value)}>>{written(value)}"
        lines.append(sentence.format(left=left, note=note, who=who))
        numbers[name] = value
        results.append(value)
    return "\n".join([*lines, f"#### {written(results[-1])}"]), results


def draw(kind, rng):
    "Numbers of a kind whose results are all above 1, and whole where the kind has no prices in cents."
    cents = any(Fraction(v).denominator > 1 for values in kind.numbers.values() for v in values)
    while True:
        numbers = {name: rng.choice(list(values)) for name, values in kind.numbers.items()}
        if len(set(numbers.values())) < len(numbers): continue  # equal numbers could be mistaken for each other
        numbers |= {name: evaluate(expression, numbers) for name, expression in kind.derived.items()}
        results = solved(kind, numbers, "")[1]
        whole = all((value * (100 if cents else 1)).denominator == 1 for value in results)
        if whole and all(1 < value < 100_000 for value in results): return numbers


@lru_cache(None)
def problems(n=400, seed=0):
    "`n` different problems, the kinds in turn: question, solution, kind (its number), numbers, who."
    rng, seen, rows = random.Random(f"{n}/{seed}"), set(), []
    while len(rows) < n:
        number = len(rows) % len(KINDS)
        kind, who = KINDS[number], rng.choice(WHO)
        numbers = draw(kind, rng)
        question = kind.question.format(who=who, **{name: written(v) for name, v in numbers.items()})
        if question in seen: continue
        seen.add(question)
        solution, _ = solved(kind, numbers, who)
        rows.append(dict(question=question, solution=solution, kind=number, numbers=numbers, who=who))
    return tuple(rows)


# --- files -----------------------------------------------------------------------------------------------------------

def write_gsm8k(folder, train, test):
    "A folder with train.jsonl and test.jsonl, whose solutions are called `answer` as in GSM8K."
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("test", test)):
        lines = [json.dumps({"question": row["question"], "answer": row["solution"]}) for row in rows]
        (folder/f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def flawed(row, kind):
    "A solution whose last step has a wrong result (computational), or adds where it should not (conceptual)."
    of = KINDS[row["kind"]]
    last, numbers = len(of.steps) - 1, list(of.numbers)
    if kind == "computational": return solved(of, row["numbers"], row["who"], (last, None, 7))[0]
    return solved(of, row["numbers"], row["who"], (last, f"{of.steps[last-1][0]} + {numbers[0]} + {numbers[1]}", 0))[0]


def level1_rows(rows):
    "A correct and a flawed row of each problem with the catalog's columns; indices have gaps, as level-1's have."
    out = []
    for i, row in enumerate(rows):
        kind = ("conceptual", "computational")[i % 2]
        same = dict(index=3*i + 2, question=row["question"], split=row.get("split", "train"))
        out.append(dict(same, solution=row["solution"], label=0, error_type="correct", source_file="own.train"))
        out.append(dict(same, solution=flawed(row, kind), label=1, error_type=kind, source_file=f"own/{i//100}.json"))
    return pd.DataFrame(out)


def write_level1(path, rows):
    "An archive as a Mac zips it: a `DatasetDict` without error types, the catalog beside it, `__MACOSX/` entries."
    from datasets import Dataset, DatasetDict, disable_progress_bars
    disable_progress_bars()
    table, name = level1_rows(rows), path.stem
    columns = ["index", "question", "solution", "label"]
    parts = table.groupby("split", sort=False)
    splits = {split: Dataset.from_dict(part[columns].to_dict("list")) for split, part in parts}
    folder = path.with_suffix("")
    DatasetDict(splits).save_to_disk(str(folder))
    catalog = table[["index", "label", "error_type", "source_file"]].sort_values(["index", "label"])
    catalog.to_csv(folder/f"sft_{name}_catalog.csv", index=False)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for place in [folder, *sorted(folder.rglob("*"))]:
            entry = place.relative_to(folder.parent)
            z.write(place, entry)
            z.writestr(str("__MACOSX"/entry.parent/f"._{entry.name}"), b"\0\5\x16\7" + b"\0" * 159)
    return path
