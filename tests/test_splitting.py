"""Steps of a solution: cases of every style, and what must hold for any text."""
import json, random
from pathlib import Path
import pytest
from verifier_nb.splitting import steps
from verifier_nb import solution
from timing import seconds

MEASURED = Path(__file__).parents[1].parent/"shared"/"data"/"steps"

def texts(text): return [text[start:end] for start, end in steps(text)]

CASES = [  # steps as a person would cut them; joined they are the text
    ["Each box holds 12 pens, so 3 boxes hold 3 x 12 = 36 pens.\n", "He gives away 10, which leaves 26.\n", "#### 26"],
    ["First, let's find the price of the pens.\n\n", "3 pens cost $1.50 each, so $4.50.\n\n", "With tax that is $4.50 * 1.1 = $4.95.\n\n",
     "Therefore, the answer is \\(\\boxed{4.95}\\)."],
    ["## Solution\n\n### Step 1: Find the price\n\nThe price is 3 * 2 = 6.\n\n", "### Step 2: Find the change\n\nThe change is 10 - 6 = 4.\n\n",
     "### Final Answer\n\n**4**"],
    ["**Step 1:** 3 * 2 = 6 dollars.\nThat is what she pays.\n", "**Step 2:** 10 - 6 = 4 dollars.\nThat is her change.\n", "**Answer:** $4\n"],
    ["Step 1: We add.\n3 + 4 = 7\n", "Step 2: We double.\n7 * 2 = 14\n", "The answer is 14."],
    ["1) 5 + 5 = 10\n", "2) 10 / 2 = 5\n", "3) So each gets 5 apples."],
    ["- Monday: 5 miles\n", "- Tuesday: 5 + 2 = 7 miles\n   - uphill, so slower\n", "- Both: 12 miles\n"],
    ["Ann has 3.5 kg of tea. ", "She sells 1.25 kg at 4 p.m. to Mr. Hill for $2.50. ", "So 3.5 - 1.25 = 2.25 kg remain. ", "The answer is 2.25."],
    ["The total is\n$$\n3 \\cdot 4 = 12\n$$\nwhere 3 is the number of bags.\n", "Half of it is\n$$12 / 2 = 6$$\n", "Final answer: 6"],
    ["We have \\[ 3 + 4 = 7. \\] ", "Then \\(7 \\cdot 2 = 14\\). ", "So she needs 14."],
    ["\\[ 3 + 4 = 7 \\]\n", "\\[ 7 \\cdot 2 = 14 \\]\n"],
    ["\\[ 3 + 4 = 7 \\]\n", "\\[ 7 \\cdot 2 = 14 \\]\n", "So it is 14.\n"],
    ["| Mon | Tue |\n|---|---|\n| 3 | 4 |\n", "Together 3 + 4 = 7.\n", "#### 7"],
    ["The sales are:\n\n| day | n |\n|---|---|\n| Mon | 3 |\n| Tue | 4 |\n\n", "Together 3 + 4 = 7.\n\n", "That is 7 * 2 = 14 dollars.\n\n", "**The answer is 14.**"],
    ["We compute it:\n```python\nx = 3 + 4\n\nprint(x)\n```\n", "This prints 7.\n", "#### 7"],
    ["It costs 3 + 4\n= 7 dollars.\n", "Twice as much is 14.\n\n---\n", "#### 14"],
    ["Ben walks 2 miles. 2 + 3 = 5 miles in all.\n", "He rests.\n"],
    ["Is 5 enough? ", "No! ", "He needs 5 * 2 = 10."],
    ["Let x be the price, e.g. in euros. ", "By the rule (see No. 3) we get x = 5."],
    ["48 / 2 = 24. ", "48 + 24 = 72. ", "#### 72"],
    ["Line one has 3 + 4 = 7 apples.\r\n", "Line two has 7 - 2 = 5 apples.\r\n", "#### 5\r\n"],
    ["At first there were one hundred and twenty people who were waiting for the\nbus to come, and 20 left, so 100.\n", "Then 50 came: 150.\n"],
    ["-3 + 10 = 7 degrees at noon\n", "-4 is the change\n", "#### 3"],
]

@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0][:24])
def test_cases(case): assert texts("".join(case)) == case

def test_public_name(): assert solution.steps is steps

PARTS = ["3 + 4 = 7", "So ", "\n", "\n\n", " ", "\\[", "\\]", "\\(", "\\)", "$$", "$5", "```", "| a |", "**", "### ", "Step 1: ", "1. ", "- ", "#### 5",
         "The answer is 5.", ". ", "Mr. ", "p.m. ", "\t", "\r\n", "= ", "\\begin{align}", "\\end{align}", "\\\\", "é", "７", "\\boxed{5}", "!", '."', "..."]

def test_any_text_joins_again():
    rng = random.Random(0)
    for _ in range(3000):
        text = "".join(rng.choices(PARTS, k=rng.randint(0, 30)))
        found = texts(text)
        assert "".join(found) == (text if text.strip() else "") and all(map(str.strip, found)) and found == texts(text), text

@pytest.mark.parametrize("part", PARTS + ["x\n", "a. B ", "x" + " "*50, "x" + "\n"*50, "(", "_ ", "Step 1\n", "- x\n"])
def test_time_is_linear(part):
    taken = [seconds(lambda: steps("x" + part * (n // len(part)))) for n in (4_000, 20_000)]
    assert taken[1] < max(0.02, 20 * taken[0])

@pytest.mark.parametrize("name,wanted", [("processbench_math", 0.96), ("mr_gsm8k_flawed", 0.99)])
def test_agrees_with_people(name, wanted):
    "Steps joined by blank lines are found again (measured only; nothing is learned from these files)."
    path = MEASURED/f"{name}.jsonl"
    if not path.exists(): pytest.skip(f"{path} is not here")
    lists = [json.loads(line)["steps"] for line in path.read_text(encoding="utf-8").splitlines()]
    same = sum([text.strip() for text in texts("\n\n".join(given))] == [text.strip() for text in given] for given in lists)
    assert same / len(lists) >= wanted


@pytest.mark.parametrize("parts", [
    ["He pays \\[ 3 + 4 = 7\n", "Then 7 - 2 = 5 are left.\n", "So 5.\n", "#### 5"],  # a display that is never closed
    ["\\[ 3 + 4 = 7\n\n", "Then 7 - 2 = 5.\n\n", "So it is 5.\n\n", "5 * 2 = 10"],
    ["3 + 4 = 7 pens.\n\n", "7 - 2 = 5 pens.\n\n", "5 * 2 = 10 cents.\n", "#### 10"],  # an answer right below a paragraph
    ["1. Tom has 3 pens. ", "2. He buys 2. ", "3. So 3 + 2 = 5."],  # numbered, on one line
    ["1. Tom has 3 pens and buys 2, so he has 5."],
    ["We know \\( a = 3. B = 4 \\) here. ", "So it is 7."],  # a full stop inside of a formula
    ["It is \\(7. So\\) he has 7. ", "Then 8."]])
def test_where_one_step_ends_and_the_next_begins(parts):
    text = "".join(parts)
    assert [text[start:end] for start, end in steps(text)] == parts
