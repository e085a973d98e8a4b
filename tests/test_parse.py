"""Every row of the table in the docstring of `answers.parse`, with what models really write."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mminstruct.answers.flaws import Rejected
from mminstruct.answers.parse import Parsed, parse
from mminstruct.prompts.config import PromptConfig, format_turns
from mminstruct.prompts.files import parse as parse_config
from mminstruct.schema import Completion, FinishReason, Turn

EXAMPLE_TURN = {"question": "What is the cat doing?", "answer": "The cat is asleep on a red sofa."}
EXAMPLE_TEXT = "A cat is asleep on a red sofa next to a window."
ASKED = "What can be seen?"


def config(**changes: Any) -> PromptConfig:
    """A config with a type for each answer form; the changes are made to all of them."""
    captions = ["A cat on a sofa."]
    example = {"captions": captions, "turns": [EXAMPLE_TURN]}
    turns = {"system": "Write turns.", "answer_form": "turns", "examples": [example], **changes}
    text = {
        "system": "Write a description.",
        "answer_form": "text",
        "questions": ["What is it?"],
        "examples": [{"captions": captions, "text": EXAMPLE_TEXT}],
        **changes,
    }
    data = {
        "name": "test",
        "version": "1.0.0",
        "license": "CC0-1.0",
        "description": "For tests.",
        "filters": [],
        "forbidden_phrases": ["the caption", "bounding box", "isn't specified"],
        "types": {"turns": turns, "turn": {**turns, "answer_form": "turn"}, "text": text},
    }
    return parse_config(data, where="test")


CONFIG = config()


def read(
    text: str,
    form: str = "turns",
    *,
    finish_reason: FinishReason = "stop",
    using: PromptConfig = CONFIG,
) -> Parsed | Rejected:
    return parse(Completion(text, finish_reason), using, form, question=ASKED)


def turns_of(parsed: Parsed | Rejected) -> list[tuple[str, str]]:
    assert isinstance(parsed, Parsed), parsed
    return [(turn.question, turn.answer) for turn in parsed.turns]


def reason_of(parsed: Parsed | Rejected) -> str:
    assert isinstance(parsed, Rejected), parsed
    return parsed.reason


def dedent(text: str) -> str:
    return textwrap.dedent(text).strip("\n")


BUS = ("What colour is the bus?", "It is white and red.")
STREET = ("Where is it parked?", "It is on the side of the street.")
BOTH = [BUS, STREET]
PLAIN = format_turns([Turn(*BUS), Turn(*STREET)])
TEXT = "A white and red bus stands on the side of a street.\n\nNobody is near it."


LABELS = [
    ("Question: ", "Answer: "),
    ("Question:", "Answer:"),
    ("Question:\n", "Answer:\n"),
    ("Question :  ", "Answer :  "),
    ("question: ", "answer: "),
    ("QUESTION: ", "ANSWER: "),
    ("Q: ", "A: "),
    ("q: ", "a: "),
    ("User: ", "Assistant: "),
    ("Human: ", "GPT: "),
    ("human: ", "gpt: "),
    ("Question 1: ", "Answer 1: "),
    ("Question #2: ", "Answer #2: "),
    ("Q1: ", "A1: "),
    ("1. Question: ", "1. Answer: "),
    ("1) Question: ", "   Answer: "),
    ("**Question:** ", "**Answer:** "),
    ("**Question**: ", "**Answer**: "),
    ("**Question 1:** ", "**Answer 1:** "),
    ("**Q:** ", "**A:** "),
    ("1. **Question:** ", "   **Answer:** "),
    ("**1. Question:** ", "**Answer:** "),
    ("**1.** Question: ", "Answer: "),
    ("*Question:* ", "*Answer:* "),
    ("_Question:_ ", "_Answer:_ "),
    ("__Question:__ ", "__Answer:__ "),
    ("***Question:*** ", "***Answer:*** "),
    ("### Question: ", "### Answer: "),
    ("## Question 1:\n", "## Answer:\n"),
    ("### **Question:** ", "### **Answer:** "),
    ("- Question: ", "- Answer: "),
    ("* Question: ", "* Answer: "),
    ("* **Question:** ", "  **Answer:** "),
    ("\u2022 Question: ", "\u2022 Answer: "),
    ("> Question: ", "> Answer: "),
    ("    Question: ", "    Answer: "),
    ("\tQuestion: ", "\tAnswer: "),
    ("Question\uff1a", "Answer\uff1a"),
    ("Question (objects): ", "Answer (objects): "),
    ("**Question 1 (colour):** ", "**Answer:** "),
    ("Turn 1: Question: ", "Answer: "),
    ("**Turn 1:** Question: ", "Answer: "),
    ("Round 2: Q: ", "A: "),
    ("### Question 1\n", "### Answer 1\n"),
    ("**Question**\n", "**Answer**\n"),
    ("### Question 1\nQuestion: ", "### Answer 1\nAnswer: "),
    ("Person: ", "Assistant: "),
    ("Person: ", "AI assistant: "),
    ("**Person:** ", "**AI:** "),
    ("Person: ", "Model: "),
    ("Question: ", "Response: "),
    ("User: ", "Chatbot: "),
    ("Q. ", "A. "),
    ("Q1. ", "A1. "),
    ("**Q.** ", "**A.** "),
    ("\ufeffQuestion: ", "Answer: "),
    ("\u200bQuestion: ", "  \u200bAnswer: "),
]


@pytest.mark.parametrize(("question", "answer"), LABELS)
def test_turns_are_read_by_their_labels_however_they_are_spelled(
    question: str, answer: str
) -> None:
    text = "\n\n".join(f"{question}{q}\n{answer}{a}" for q, a in BOTH)
    assert read(text) == Parsed((Turn(*BUS), Turn(*STREET)))


@pytest.mark.parametrize(("question", "answer"), LABELS)
def test_one_turn_is_read_by_its_labels_however_they_are_spelled(
    question: str, answer: str
) -> None:
    assert read(f"{question}{BUS[0]}\n{answer}{BUS[1]}", "turn") == Parsed((Turn(*BUS),))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("**Question: {q}**\nAnswer: {a}", BUS),
        ("**Question: {q}**\n**Answer: {a}**", BUS),
        ("*Question: {q}*\n*Answer: {a}*", BUS),
        ("__Question: {q}__\n__Answer: {a}__", BUS),
        ("**Question:** **{q}**\n**Answer:** *{a}*", BUS),
        ("1. **Question: {q}**\n   Answer: {a}", BUS),
        ("**Question: {q}**\n**Answer: Yes.** It is red.", (BUS[0], "Yes. It is red.")),
        ("**Q. {q}**\n**A. {a}**", BUS),
        ("**Question: {q}** **Answer: {a}**", BUS),
    ],
)
def test_emphasis_around_a_whole_line_goes(text: str, expected: tuple[str, str]) -> None:
    assert turns_of(read(text.format(q=BUS[0], a=BUS[1]))) == [expected]


@pytest.mark.parametrize(
    "answer",
    [
        "**Red** is the colour of the bus.",
        "The bus is **red** and the tram is **blue**.",
        "The colour is **red**",
        "* a bus\n* a tram",
        "There are two things: a bus and a tram.",
        "There are two things:\n\n- A bus: it is red.\n- A tram: it is blue.\n\nBoth stand still.",
        "Three steps follow:\n1. The bus stops.\n2. The doors open.\n3. People get off.",
        "First paragraph.\n\nSecond paragraph.\n\nThird paragraph.",
        "The question: is it red? The answer: yes, it is.",
        "Nobody can answer: the sign is hidden.",
        "The word Question is painted on the wall, and Answer: below it.",
        "Question marks are painted on it.\nQuestions: none.\nAnswers: none.",
        "Users: two. A user: one.",
        "The clock says\nA 3:45 in red digits.",
        "It reads 'Q & A' in large letters.",
        "It says:\nConversation over coffee.",
        "A bus -- red, I think -- stands there.",
        ">\nThis arrow is painted on the road.",
        "The sign says Question: is it red? Answer: yes.",
        'The card reads: "Is it red? Answer: Yes. Question: Why?"',
        "It ends with a riddle. Question: what is red, and why.",
        "There are three:\n- Person: a man.\n- Model: a Ford.\n- Response: none.",
        "There are two:\nPerson: one\nModel: a Ford",
        "There are two people.\nPerson 1: a man.\nPerson 2: a woman.",
        "The board says:\nQ. and A. on Friday.",
        "Two doors:\nA. the left\nB. the right",
        "Let us see.\n\n**Answer**\n\nIt is red.",
        "The board shows:\nRound 1: 3-2\nRound 2: 4-1",
        "The note on it reads:\nLet me know if you need milk.",
        "The first turn is to the left, the second turn is to the right.",
        "It is a race.\n\n**The red car wins.**",
        "Press <b> and <i>.",
        "a = b",
        "Yes.",
        "3",
        "No\u00ebl d\u00e9core la vitrine. \u8d64\u3044\u30d0\u30b9\u3067\u3059\u3002 \U0001f68c",
    ],
)
@pytest.mark.parametrize("form", ["turns", "turn"])
def test_what_stands_in_an_answer_is_left_as_it_is(form: str, answer: str) -> None:
    text = f"Question: {BUS[0]}\nAnswer: {answer}"
    assert turns_of(read(text, form)) == [(BUS[0], answer)]


LISTS = [
    "The score is shown.\nRound 2: 4-1",
    "There is a sign that says\nTurn 2: left",
    "It is called\n\n**The Last Turn**",
    "The signs read\n\n## Exit",
    "The days are there.\n# Monday\n# Tuesday",
    "It is the last lap.\nFinal round",
    "On the plate it says this.\nModel: T\nPerson: Henry Ford",
    "They could say:\nPerson: Can I help you?\nBot: Yes, please.",
    "The sheet has this.\nQ. When do you open?\nA. At nine.",
    "There are two. User: the person who types. Assistant: the robot.",
    "Is it safe? Question: who built it. Answer: a known firm.",
    "It says <answer>42</answer> on the screen.",
    "The word is <final>.",
    "It shows <analysis>x</analysis>.",
    "Two things are there:\n\n**A dog**",
    "Two things are there.\n\n**A dog**\n\n**A cat**",
    "The board shows this:\nRound 2: 4-1",
    "The board shows this:\n\n# 1 bus",
    "It is a match.\nRound 1: 3-2\nRound 2: 4-1",
    "It is a match.\n\n**The red team wins.**",
    "It is a match.\n\nRound 2: the red team wins.",
]


@pytest.mark.parametrize("answer", LISTS)
def test_the_end_of_an_answer_that_only_looks_like_a_heading_is_kept(answer: str) -> None:
    text = f"Question: {BUS[0]}\nAnswer: {answer}\n\n{format_turns([Turn(*STREET)])}"
    assert read(text) == Parsed((Turn(BUS[0], answer), Turn(*STREET)))


def test_an_answer_that_is_a_bold_line_is_no_heading() -> None:
    text = f"Question: {BUS[0]}\nAnswer:\n**White and red**\n\n{format_turns([Turn(*STREET)])}"
    assert read(text) == Parsed((Turn(BUS[0], "White and red"), Turn(*STREET)))


@pytest.mark.parametrize(
    "text",
    [
        "Question: {q1} Answer: {a1}\nQuestion: {q2} Answer: {a2}",
        "Question: {q1} Answer: {a1}\n\nQuestion: {q2}\nAnswer: {a2}",
        "Question: {q1} Answer: {a1} Question: {q2} Answer: {a2}",
        "Question: {q1}\nAnswer: {a1} Question: {q2} Answer: {a2}",
        "Question: {q1}\nAnswer: {a1} Question: {q2}\nAnswer: {a2}",
        "Question 1: {q1} Answer 1: {a1} Question 2: {q2} Answer 2: {a2}",
        "**Question:** {q1} **Answer:** {a1} **Question:** {q2} **Answer:** {a2}",
        "Q: {q1} A: {a1} Q: {q2} A: {a2}",
        "User: {q1} Assistant: {a1} User: {q2} Assistant: {a2}",
        "Question: {q1}\nAnswer: {a1}\n\nPerson: {q2}\nAssistant: {a2}",
        "Person: {q1}\nModel: {a1}\n\nPerson: {q2}\nModel: {a2}",
    ],
)
def test_turns_that_go_on_within_a_line_or_by_other_labels_are_all_read(text: str) -> None:
    filled = text.format(q1=BUS[0], a1=BUS[1], q2=STREET[0], a2=STREET[1])
    assert read(filled) == Parsed((Turn(*BUS), Turn(*STREET)))


@pytest.mark.parametrize("end", [" Question: And now?", "\n\nPerson: And now?", "\n\nQ. Why?"])
def test_a_next_question_is_no_part_of_an_answer(end: str) -> None:
    assert read(PLAIN + end) == Parsed((Turn(*BUS), Turn(*STREET)), ("unanswered_question",))


@pytest.mark.parametrize(
    "question",
    [
        "What does it say next to Answer: on the card?",
        "Is it red? Answer: in one word.",
        "Which one is it? A: the left or B: the right?",
        "Which one is it?\nA. the left\nB. the right",
        "What is this?\nModel: Ford\nYear: 1999",
    ],
)
def test_what_looks_like_a_label_in_a_question_is_left_as_it_is(question: str) -> None:
    assert turns_of(read(f"Question: {question}\nAnswer: Yes.")) == [(question, "Yes.")]


def test_a_question_of_several_lines_is_kept_whole() -> None:
    text = "Question: Look at the bus.\nWhat colour is it?\nAnswer: It is red."
    assert turns_of(read(text)) == [("Look at the bus.\nWhat colour is it?", "It is red.")]


def test_of_several_turns_where_one_was_asked_for_the_first_is_kept() -> None:
    assert read(PLAIN, "turn") == Parsed((Turn(*BUS),), ("extra_turns",))


@pytest.mark.parametrize(
    "preamble",
    [
        "Sure! Here is the conversation:",
        "Sure! Here is a conversation between a person and an assistant about the image:\n",
        "Certainly.\n\nHere's what I came up with:\n",
        "**Conversation**\n",
        "# A conversation about a bus",
        "Based on the image, two turns follow.",
    ],
)
@pytest.mark.parametrize("form", ["turns", "turn"])
def test_a_preamble_before_the_first_label_is_ignored_and_noted(form: str, preamble: str) -> None:
    text = f"{preamble}\n{format_turns([Turn(*BUS)])}"
    assert read(text, form) == Parsed((Turn(*BUS),), ("preamble",))


@pytest.mark.parametrize(
    "preamble",
    [
        "Sure! Here is a detailed description of the image:\n\n",
        "Sure!\n\nHere is a description:\n\n",
        "Of course.\n",
        "Okay, here you go:\n",
        "Here is what can be seen in the image:\n",
        "Here's a description:\n\n",
        "Here\u2019s a description:\n\n",
        "Here are the details:\n",
        "Detailed description:\n\n",
        "Certainly! I will describe it.\n\n**Detailed Description:**\n\n",
        "Below is a detailed description of the image:\n\n",
        "This is a detailed description of the image:\n\n",
        "The following is a description of the scene:\n",
        "I'd be happy to describe it!\n\n",
        "I would be glad to help. Here is the description:\n\n",
        "Sure! Here is the description: ",
        "Here\u2019s a detailed description of the image: ",
        "# A Bus at Rest\n\n",
        "Sure, ",
        "Certainly! ",
        "Sure thing!\n\n",
        "**Detailed Description of the Image:**\n\n",
        "**Title: A Bus at Rest**\n\n",
        "Sure \u2014 here it is:\n\n",
        "Sure!\n\n## A Bus at Rest\n",
    ],
)
def test_a_preamble_before_a_text_is_removed_and_noted(preamble: str) -> None:
    assert read(preamble + TEXT, "text") == Parsed((Turn(ASKED, TEXT),), ("preamble",))


@pytest.mark.parametrize(
    "label",
    [
        "Description: ",
        "Answer: ",
        "Assistant: ",
        "Detailed description: ",
        "**Detailed Description:** ",
        "**Description**: ",
        "**Image description:**\n\n",
        "## Description\n\n",
        "**Answer**\n",
    ],
)
def test_a_label_before_a_text_is_removed(label: str) -> None:
    assert turns_of(read(label + TEXT, "text")) == [(ASKED, TEXT)]


@pytest.mark.parametrize(
    "text",
    [
        "Here is a bus. It is white and red.",
        "Surely a bus stop: two people wait, and a bus comes.",
        "Description fails here, as the street is a blur of lights.",
        "The answer to the question on the poster is hidden.",
        "**Red** dominates the scene.",
        "**A red bus stands there.**\n\nNobody is near it.",
        "**STOP**\n\nThis word is on a red sign.",
        "# 7 is printed on the back of the jersey.\n\nHe is running.",
        "# 12\n\nis what the door says.",
        "# Left\n\nA sofa stands there.\n\n# Right\n\nA table stands there.",
        "Sure-footed goats climb a hillside.\n\nBelow them lies a lake.",
        "OK is written in white letters.\n\nTwo children hold a balloon.",
        "Certainly the largest thing is a bus.\n\nPeople stand beside it.",
        "Of course, the dog wants the ball: it jumps up.\n\nA man laughs.",
        "I would be happy to live in the house shown here.",
        "The screen shows the tag <answer> in red letters.",
        "The screen shows <output>42</output> between two lines.",
        "The T-shirt reads </thought> in white letters.",
        "The slide shows <reasoning>because</reasoning> in the middle.",
        "A form lies on the desk.\n\nModel: T\nYear: 1908",
        'A poster has a riddle: "Q: Is it red? A: A bus." Nobody reads it.',
        "The quiz sheet shows this.\nQ. What is it?\nA. A bus",
        "A. Lincoln stands in the middle.\nA. Smith is next to him.",
        "The board reads as follows.\n\n# Monday\n# Tuesday\n# Wednesday",
        "A card on the table reads\nPlease feel free to ask our staff!",
        'A card reads "Welcome!\nPlease let me know if the heating fails."',
        "A kitchen.\n\nNote: the clock shows 10:30, given the hands' position.",
        "A woman holds a sign.\n\nHope it rains.",
        "A street.\n\nIf you look closely, the clock reads ten; I would be happy there.",
        "This is a street with a sign: it bears the description of a bus.",
        "Below is a street. Its description: none.",
        "This is a hotel listing with a photo, a price and a description, and below them: a map.",
        "This is an indoor scene whose description starts with the sofa: it is red.",
        "Below is a plaque with a description: it names the year 1901.",
        "Let me see. A bus stands there.",
        "A quiet street.\n\nQuestion marks are painted on a wall.",
    ],
)
def test_a_text_that_only_begins_like_a_preamble_or_label_is_kept(text: str) -> None:
    assert read(text, "text") == Parsed((Turn(ASKED, text),))


def test_a_short_text_on_the_line_of_its_preamble_is_kept() -> None:
    text = "Sure! Here is the description: A bus stands there."
    assert read(text, "text") == Parsed((Turn(ASKED, "A bus stands there."),), ("preamble",))


REMARKS = [
    "Let me know if you'd like any changes!",
    "Please let me know if anything is missing.",
    "I hope this helps!",
    "Feel free to ask for more.",
    "Would you like me to describe it further?",
    "If you'd like more turns, just ask.",
    "Note: I based this on the details given.",
    "*(Note: The description is based on the captions.)*",
    "(**Note:** these details were given.)",
    "Hope that helps!",
    "I hope this description meets your expectations!",
    "(Word count: 120)",
    "(67 words)",
    "[END]",
    "**Word count:** 120",
    "[End of conversation]",
    "Note: I kept it short.\n\nI hope this helps!",
]


@pytest.mark.parametrize("remark", REMARKS)
@pytest.mark.parametrize("gap", ["\n", "\n\n"])
@pytest.mark.parametrize(
    ("form", "body", "expected"), [("turns", PLAIN, BOTH), ("text", TEXT, [(ASKED, TEXT)])]
)
def test_remarks_to_the_reader_at_the_end_are_left_out_and_noted(
    form: str, body: str, expected: list[tuple[str, str]], gap: str, remark: str
) -> None:
    parsed = read(f"{body}{gap}{remark}", form)
    assert parsed == Parsed(tuple(Turn(*turn) for turn in expected), ("stray_text",))


@pytest.mark.parametrize(
    "end", ["Note: the bus is empty.", "It seems to say: let me know.", "The word counts."]
)
def test_a_last_paragraph_that_is_no_remark_is_kept(end: str) -> None:
    assert read(f"{TEXT}\n\n{end}", "text") == Parsed((Turn(ASKED, f"{TEXT}\n\n{end}"),))


def test_a_preamble_alone_is_no_text() -> None:
    assert reason_of(read("Sure! Here is a description of the image:", "text")) == "empty"


@pytest.mark.parametrize("separator", ["===", "=====", "---", "***", "___", "  ===  ", "-" * 40])
def test_separators_between_turns_and_after_the_last_are_ignored(separator: str) -> None:
    turns = [format_turns([Turn(*turn)]) for turn in BOTH]
    text = f"{separator}\n" + f"\n\n{separator}\n\n".join([*turns, ""])
    assert read(text) == Parsed((Turn(*BUS), Turn(*STREET)))


def test_the_form_of_llava_is_read_with_separators_between_labels_and_texts() -> None:
    text = "".join(f"Question:\n\n{q}\n\n===\n\nAnswer:\n\n{a}\n\n===\n\n" for q, a in BOTH)
    assert read(text) == Parsed((Turn(*BUS), Turn(*STREET)))


def test_a_separator_may_stand_between_a_label_and_its_text() -> None:
    text = "".join(f"Question:\n===\n{q}\n===\nAnswer:\n===\n{a}\n===\n" for q, a in BOTH)
    assert read(text) == Parsed((Turn(*BUS), Turn(*STREET)))


@pytest.mark.parametrize(
    "heading", ["Turn 1:", "Turn 1", "### Turn 2", "**Turn 2:**", "(Round 3)", "Conversation #1:"]
)
def test_headings_above_turns_do_not_end_up_in_answers(heading: str) -> None:
    turns = [format_turns([Turn(*turn)]) for turn in BOTH]
    text = "\n\n".join(f"{heading}\n{turn}" for turn in turns)
    assert read(text) == Parsed((Turn(*BUS), Turn(*STREET)))


@pytest.mark.parametrize(
    "heading",
    [
        "**Turn 2 (Location)**",
        "**Turn 2** (Location)",
        "### Turn 2: Place",
        "### Turn 2: Place\nThey go on.",
        "Turn 2: Place",
        "Turn two \u2013 place",
        "## Location",
        "**Location**",
        "**2. Location:**",
        "Second turn:",
        "Next exchange",
        "### Turn 2: Place\n\n**Location**",
    ],
)
@pytest.mark.parametrize("gap", ["\n", "\n\n"])
def test_headings_with_a_title_are_no_part_of_an_answer_and_are_noted(
    gap: str, heading: str
) -> None:
    turns = [format_turns([Turn(*turn)]) for turn in BOTH]
    text = f"{turns[0]}\n\n{heading}{gap}{turns[1]}"
    assert read(text) == Parsed((Turn(*BUS), Turn(*STREET)), ("stray_text",))


@pytest.mark.parametrize("heading", ["### Turn 2: Place", "## Location", "Turn 2: Place"])
def test_a_heading_in_place_of_an_answer_is_none(heading: str) -> None:
    text = f"Question: {BUS[0]}\nAnswer:\n{heading}\n{format_turns([Turn(*STREET)])}"
    assert reason_of(read(text)) == "empty_answer"


def test_a_heading_above_the_first_turn_is_a_preamble() -> None:
    parsed = read(f"### Turn 1: Colour\n{format_turns([Turn(*BUS)])}")
    assert parsed == Parsed((Turn(*BUS),), ("preamble",))


def test_unlabelled_text_after_a_separator_is_ignored_and_noted() -> None:
    text = f"{PLAIN}\n\n---\n\nI hope this helps! Let me know if you want more."
    assert read(text) == Parsed((Turn(*BUS), Turn(*STREET)), ("stray_text",))


@pytest.mark.parametrize("separator", ["===", "---", "\n***\n"])
def test_separators_around_a_text_are_ignored(separator: str) -> None:
    text = "A white and red bus stands on the side of a street."
    assert read(f"{separator}\n{text}\n{separator}", "text") == Parsed((Turn(ASKED, text),))


def test_of_a_text_with_separators_the_longest_part_is_kept_and_the_rest_noted() -> None:
    text = f"A description follows.\n\n---\n\n{TEXT}\n\n---\n\nNote: this is a guess."
    assert read(text, "text") == Parsed((Turn(ASKED, TEXT),), ("stray_text",))


FENCES = [
    "```\n{}\n```",
    "```text\n{}\n```",
    "```plain-text\n{}\n```\n",
    "``` markdown\n{}\n```",
    "~~~\n{}\n~~~",
    "```\n{}",
    "```\n\n{}\n\n```",
    "{}\n```",
    "Sure! Here it is:\n\n```\n{}\n```",
    "Sure! Here it is:\n\n```\n{}",
    "```\n{}\n```\nLet me know if you need more!",
    "Sure! Here it is:\n```yaml\n{}\n```\n\nLet me know if you need more!",
    "{}\n```\nLet me know!",
]


@pytest.mark.parametrize("fence", FENCES)
def test_the_inside_of_a_code_fence_is_read_as_turns(fence: str) -> None:
    assert turns_of(read(fence.format(PLAIN))) == BOTH


@pytest.mark.parametrize("fence", FENCES)
def test_the_inside_of_a_code_fence_is_read_as_a_text(fence: str) -> None:
    assert turns_of(read(fence.format(TEXT), "text")) == [(ASKED, TEXT)]


def test_turns_in_a_code_fence_each_are_all_read() -> None:
    text = "\n\n".join(f"```\n{format_turns([Turn(*turn)])}\n```" for turn in BOTH)
    assert turns_of(read(text)) == BOTH


def test_a_short_turn_in_a_code_fence_is_found_below_a_long_preamble() -> None:
    preamble = "Here is a conversation between a person and an assistant, about one bus:"
    text = f"{preamble}\n```\nQuestion: Red?\nAnswer: Yes.\n```\n{preamble}"
    assert turns_of(read(text)) == [("Red?", "Yes.")]


def test_a_code_fence_within_an_answer_stays_there() -> None:
    answer = "The screen shows a program:\n```python\nprint(1)\n```\nA mug stands beside it."
    text = f"Question: What is on the desk?\nAnswer: {answer}\n\nQuestion: {BUS[0]}\nAnswer: Red."
    assert turns_of(read(text)) == [("What is on the desk?", answer), (BUS[0], "Red.")]


@pytest.mark.parametrize(
    "dressed",
    [
        "{}<|eot_id|>",
        "<|begin_of_text|><|start_header_id|>assistant<|end_header_id|>\n\n{}<|eot_id|>",
        "{}</s>",
        "<s> {} </s>",
        "[/INST] {}</s>",
        "<<SYS>>\n{}",
        "{}<|im_end|>",
        "<|im_start|>assistant\n{}<|im_end|>",
        "{}<|im_end|>\n<|im_start|>assistant\n",
        "{}<end_of_turn>",
        "<start_of_turn>model\n{}<end_of_turn>\n<eos>",
        "<|turn>model\n{}<turn|>",
        "{}<end_of_utterance>",
        "<seed:bos>{}<seed:eos>",
        "<bos>{}<eos>",
        "<|assistant|>\n{}\n</s>",
        "{}<|end|>",
        "{}<pad><pad><pad>",
        "<\uff5cAssistant\uff5c>{}<\uff5cend\u2581of\u2581sentence\uff5c>",
    ],
)
@pytest.mark.parametrize(
    ("form", "body", "expected"), [("turns", PLAIN, BOTH), ("text", TEXT, [(ASKED, TEXT)])]
)
def test_special_tokens_around_the_answer_are_removed(
    form: str, body: str, expected: list[tuple[str, str]], dressed: str
) -> None:
    assert read(dressed.format(body), form) == Parsed(tuple(Turn(*turn) for turn in expected))


@pytest.mark.parametrize(
    "continued",
    [
        "{}</s>\nQuestion: More?\nAnswer: No.",
        "{}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nQuestion: More?\nAnswer: No.",
        "{} [INST] Next image [/INST] Question: More?\nAnswer: No.",
        "{}<|im_end|>\n<|im_start|>user\nCaptions:\n- A dog.",
        "{}<|endoftext|>\nQuestion: More?\nAnswer: No.",
        "{}<turn|>\n<|turn>user\nAnother one, please.",
        "<|assistant|>\n{}\n</s>\n<|user|>\nAnother one, please.",
        "<|channel|>final<|message|>{}<|end|><|start|>assistant<|channel|>analysis<|message|>No.",
        "<\uff5cAssistant\uff5c>{}<\uff5cend\u2581of\u2581sentence\uff5c><\uff5cUser\uff5c>Hm.",
    ],
)
@pytest.mark.parametrize(
    ("form", "body", "expected"), [("turns", PLAIN, BOTH), ("text", TEXT, [(ASKED, TEXT)])]
)
def test_special_tokens_end_the_answer_and_what_follows_is_noted(
    form: str, body: str, expected: list[tuple[str, str]], continued: str
) -> None:
    parsed = read(continued.format(body), form)
    assert parsed == Parsed(tuple(Turn(*turn) for turn in expected), ("special_token",))


@pytest.mark.parametrize(
    ("wrapped", "notes"),
    [
        ("<answer>{}</answer>", ()),
        ("<answer>\n{}\n</answer>", ()),
        ("<Response>{}</Response>", ()),
        ("<think>x</think>\n<response>\n{}\n</response>", ()),
        ("<conversation>{}</conversation>", ()),
        ("```\n<output>\n{}\n</output>\n```", ()),
        ("<answer>\n{}", ()),
        ("{}\n</answer>", ()),
        ("Sure!\n<answer>{}</answer>", ("preamble",)),
        ("<answer>{}</answer>\nThat is all.", ("stray_text",)),
    ],
)
@pytest.mark.parametrize(
    ("form", "body", "expected"), [("turns", PLAIN, BOTH), ("text", TEXT, [(ASKED, TEXT)])]
)
def test_the_inside_of_tags_around_the_answer_is_read(
    form: str,
    body: str,
    expected: list[tuple[str, str]],
    wrapped: str,
    notes: tuple[str, ...],
) -> None:
    parsed = read(wrapped.format(body), form)
    assert parsed == Parsed(tuple(Turn(*turn) for turn in expected), notes)


def test_turns_in_tags_each_are_all_read() -> None:
    text = "\n".join(f"<turn>\n{format_turns([Turn(*turn)])}\n</turn>" for turn in BOTH)
    assert read(text) == Parsed((Turn(*BUS), Turn(*STREET)))


def test_tags_within_answers_are_removed() -> None:
    text = "\n".join(f"Question: {q}\nAnswer: <answer>{a}</answer>" for q, a in BOTH)
    assert read(text) == Parsed((Turn(*BUS), Turn(*STREET)))


@pytest.mark.parametrize("token", ["<|im_end|>", "</s>", "<eos>", "<s></s>", "[/INST]\n<|end|>"])
@pytest.mark.parametrize("form", ["turns", "turn", "text"])
def test_special_tokens_alone_are_an_empty_answer(form: str, token: str) -> None:
    assert reason_of(read(token, form)) == "empty"


@pytest.mark.parametrize(
    "thinking",
    [
        "<think>\nQuestion: Should I ask about the caption?\nAnswer: No.\n</think>\n\n",
        "<thinking>Two turns will do.</thinking>",
        "[THINK]Two turns will do.[/THINK]",
        "<THINK></THINK>",
        "The opening tag was part of the prompt.\n</think>\n",
        "<think>one</think><think>two</think>\n",
        "<|START_THINKING|>Two turns.<|END_THINKING|><|START_RESPONSE|>",
        "<|begin_of_thought|>Two.<|end_of_thought|>\n\n<|begin_of_solution|>\n",
        "\u25c1think\u25b7Two turns.\u25c1/think\u25b7",
        "The opening tag was part of the prompt.\n</thought>\n",
        "<thought>Question: One?\nAnswer: No.</thought>",
        "<reasoning>Question: One?\nAnswer: No.</reasoning>\n",
        "<seed:think>Question: One?\nAnswer: No.</seed:think>",
        "<|channel>thought\nQuestion: One?\nAnswer: No.<channel|>",
        "One.<think>two</think>three</think>\n",
        "<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "analysisWe need two turns. Question: One?assistantfinal",
        "analysis\nTwo turns will do. assistantfinal\n",
        "analysisTwo.assistantcommentaryWell.assistantfinal",
        "<details>\n<summary>Thought for 5 seconds</summary>\n> Two turns.\n</details>\n",
        '<details type="reasoning" done="true">\n<summary>Thinking</summary>Two.</details>\n\n',
        "Thinking...\nTwo turns will do.\n...done thinking.\n\n",
        "<|channel|>analysis<|message|>Question: One?\nAnswer: No.<|end|><|start|>assistant"
        "<|channel|>final<|message|>",
        "<|channel|>final<|message|>",
        "<|channel|>final <|message|>A first one.<|end|><|start|>assistant<|channel|>analysis"
        "<|message|>Better.<|end|><|start|>assistant<|channel|>final<|message|>",
    ],
)
@pytest.mark.parametrize(
    ("form", "body", "expected"), [("turns", PLAIN, BOTH), ("text", TEXT, [(ASKED, TEXT)])]
)
def test_finished_reasoning_is_removed(
    form: str, body: str, expected: list[tuple[str, str]], thinking: str
) -> None:
    assert read(thinking + body, form) == Parsed(tuple(Turn(*turn) for turn in expected))


@pytest.mark.parametrize("finish_reason", ["stop", "length"])
@pytest.mark.parametrize("form", ["turns", "turn", "text"])
def test_unfinished_reasoning_is_rejected(form: str, finish_reason: FinishReason) -> None:
    for start in (
        "<think>\n",
        "analysisWe need two turns.\n",
        "<details>\n<summary>Thinking</summary>\n",
        "Thinking...\n",
        "[THINK]",
        "<thought>",
        "<reasoning>",
        "<seed:think>",
        "<|START_THINKING|>",
        "<|begin_of_thought|>",
        "\u25c1think\u25b7",
        "<|channel>thought\n",
        "<|channel|>analysis<|message|>",
        "<|channel|>fin",
    ):
        parsed = read(f"{start}Let me see. {PLAIN}", form, finish_reason=finish_reason)
        assert reason_of(parsed) == "unfinished_reasoning"


@pytest.mark.parametrize("newline", ["\r\n", "\r"])
def test_other_newlines_are_read_as_newlines(newline: str) -> None:
    separated = PLAIN.replace("\n\n", "\n\n===\n\n").replace("\n", newline)
    assert read(separated) == Parsed((Turn(*BUS), Turn(*STREET)))
    assert read(TEXT.replace("\n", newline), "text") == Parsed((Turn(ASKED, TEXT),))


@pytest.mark.parametrize("end", ["Question: And what else?", "Question:", "Question: Why?\nAnsw"])
def test_a_last_question_without_an_answer_is_left_out(end: str) -> None:
    parsed = read(f"{PLAIN}\n\n{end}")
    assert turns_of(parsed) == BOTH


def test_a_question_without_an_answer_is_noted() -> None:
    parsed = read(f"{PLAIN}\n\nQuestion: And what else?")
    assert parsed == Parsed((Turn(*BUS), Turn(*STREET)), ("unanswered_question",))


def test_a_question_without_an_answer_between_others_is_left_out_and_noted() -> None:
    text = f"Question: {BUS[0]}\nAnswer: {BUS[1]}\nQuestion: Lost?\n{format_turns([Turn(*STREET)])}"
    assert read(text) == Parsed((Turn(*BUS), Turn(*STREET)), ("unanswered_question",))


def test_an_empty_answer_ends_the_conversation() -> None:
    text = f"{format_turns([Turn(*BUS)])}\nQuestion: Why?\nAnswer:\n{format_turns([Turn(*STREET)])}"
    assert read(text) == Parsed((Turn(*BUS),), ("empty_answer",))


def test_an_answer_without_a_question_is_left_out_and_noted() -> None:
    text = f"{format_turns([Turn(*BUS)])}\nAnswer: Yes.\n{format_turns([Turn(*STREET)])}"
    assert read(text) == Parsed((Turn(*BUS), Turn(*STREET)), ("answer_without_question",))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Answer: It is red.", "answer_without_question"),
        ("Question:\nAnswer: It is red.", "answer_without_question"),
        ("Question: What colour is it?", "no_complete_turn"),
        ("Question:", "no_complete_turn"),
        ("Question: What colour is it?\nAnswer:", "empty_answer"),
        ("Question: What colour is it?\nAnswer: **", "empty_answer"),
        (f"Question: What colour is it?\nAnswer: \n\n{PLAIN}", "empty_answer"),
        ("A bus stands on the side of a street.", "no_labels"),
        ("None", "no_labels"),
        ("null", "no_labels"),
        ("{}", "no_labels"),
        ("I'm sorry, but I can't help with that.", "no_labels"),
    ],
)
@pytest.mark.parametrize("form", ["turns", "turn"])
def test_where_no_turn_is_whole_the_reason_says_why(form: str, text: str, reason: str) -> None:
    assert reason_of(read(text, form)) == reason


@pytest.mark.parametrize("text", ["", " ", "\n\n", "\r\n\t", "```\n```", "```"])
@pytest.mark.parametrize("form", ["turns", "turn", "text"])
def test_nothing_is_an_empty_answer(form: str, text: str) -> None:
    assert reason_of(read(text, form)) == "empty"


@pytest.mark.parametrize("text", [PLAIN, f"Sure!\n\n{PLAIN}", "A bus.\n\nUser: What colour is it?"])
def test_turns_where_a_text_was_asked_for_are_rejected(text: str) -> None:
    assert reason_of(read(text, "text")) == "wrong_form"


@pytest.mark.parametrize("form", ["turns", "turn", "text"])
def test_an_answer_that_the_server_withheld_is_rejected(form: str) -> None:
    parsed = read(PLAIN, form, finish_reason="content_filter")
    assert reason_of(parsed) == "content_filter"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f"{PLAIN}\n\nQuestion: What else is th", BOTH),
        (f"{PLAIN}\n\nQuestion: What else?\nAnsw", BOTH),
        (f"{PLAIN}\n\nQuestion: What else?\nAnswer:", BOTH),
        (f"{PLAIN}\n\nQuestion: What else?\nAnswer: A dog and", BOTH),
        (f"{PLAIN}\n\nQuestion:", BOTH),
        (PLAIN[:-12], [BUS]),
        (PLAIN, [BUS]),  # nobody knows whether the last answer was whole
        (f"```\n{PLAIN[:-12]}", [BUS]),
        (PLAIN.replace("\n\n", "\n\n===\n\n") + "\n\nQues", [BUS]),
    ],
)
def test_of_turns_that_were_cut_the_whole_ones_are_kept(
    text: str, kept: list[tuple[str, str]]
) -> None:
    parsed = read(text, finish_reason="length")
    assert turns_of(parsed) == kept
    assert isinstance(parsed, Parsed)
    assert "truncated" in parsed.notes


@pytest.mark.parametrize("form", ["turns", "turn"])
def test_a_first_turn_that_was_cut_is_rejected(form: str) -> None:
    for text in ("Question: What", "Question: What?\nAnswer: It is", "Question: What?\nAnswer:"):
        assert reason_of(read(text, form, finish_reason="length")) == "truncated"


def test_a_whole_turn_before_a_cut_one_is_enough_where_one_was_asked_for() -> None:
    parsed = read(PLAIN[:-5], "turn", finish_reason="length")
    assert parsed == Parsed((Turn(*BUS),), ("truncated",))


def test_a_text_that_was_cut_is_rejected() -> None:
    assert reason_of(read(TEXT, "text", finish_reason="length")) == "truncated"


LEAKS = [
    "The caption says that it is red.",
    "Its Bounding\nBox is wide.",
    "The colour isn\u2019t specified.",
    "It is at [0.12, 0.3, 0.5, 0.75].",
    "It is at (0.12, 0.3).",
]


@pytest.mark.parametrize("leak", LEAKS)
def test_turns_before_one_that_gives_the_annotations_away_are_kept(leak: str) -> None:
    text = format_turns([Turn(*BUS), Turn("What is it?", leak), Turn(*STREET)])
    assert read(text) == Parsed((Turn(*BUS),), ("leak",))


def test_a_question_can_give_the_annotations_away_too() -> None:
    text = format_turns([Turn(*BUS), Turn("What does the caption say?", "Bus."), Turn(*STREET)])
    assert read(text) == Parsed((Turn(*BUS),), ("leak",))


@pytest.mark.parametrize("leak", LEAKS)
def test_a_first_turn_or_a_text_that_gives_the_annotations_away_is_rejected(leak: str) -> None:
    assert reason_of(read(format_turns([Turn("What is it?", leak), Turn(*BUS)]))) == "leak"
    assert reason_of(read(leak, "text")) == "leak"


@pytest.mark.parametrize(
    "again",
    [
        Turn(BUS[0], "It is red, as I said."),
        Turn(BUS[0].upper(), "It is red, as I said."),
        Turn("What colour  is\nthe bus?", "It is red, as I said."),
        Turn("What colour is it, please?", "It is white and also red."),
    ],
)
def test_turns_before_a_repeated_one_are_kept(again: Turn) -> None:
    first = Turn(BUS[0], "It is white and also red.")
    text = format_turns([first, again, Turn(*STREET)])
    assert read(text) == Parsed((first,), ("repetition",))


@pytest.mark.parametrize("answer", ["Yes.", "3", "It is on the left."])
def test_an_answer_of_a_few_words_may_be_given_twice(answer: str) -> None:
    turns = (Turn("Is it red?", answer), Turn("Is it white?", answer), Turn(*STREET))
    assert read(format_turns(turns)) == Parsed(turns)


@pytest.mark.parametrize("form", ["turns", "text"])
def test_a_short_loop_is_rejected(form: str) -> None:
    for loop in ("It is a bus. " * 4, "bus " * 12 + "."):
        text = loop if form == "text" else f"Question: What is it?\nAnswer: {loop}"
        assert reason_of(read(text, form)) == "repetition"


@pytest.mark.parametrize("form", ["turns", "turn", "text"])
def test_an_answer_that_runs_in_a_loop_is_rejected(form: str) -> None:
    loop = "The bus is parked in the street. " * 6
    text = loop if form == "text" else f"Question: What is it?\nAnswer: {loop}"
    assert reason_of(read(text, form)) == "repetition"


def test_short_sentences_may_repeat() -> None:
    text = "Yes! Yes! Yes! Yes! Yes! A goal was scored."
    assert turns_of(read(text, "text")) == [(ASKED, text)]


def test_a_copy_of_a_few_shot_example_is_rejected() -> None:
    copy = Turn(**EXAMPLE_TURN)
    assert reason_of(read(format_turns([copy, Turn(*BUS)]))) == "copied_example"
    assert reason_of(read(format_turns([copy]), "turn")) == "copied_example"
    assert reason_of(read(EXAMPLE_TEXT, "text")) == "copied_example"


def test_turns_before_a_copied_one_are_kept() -> None:
    text = format_turns([Turn(*BUS), Turn(**EXAMPLE_TURN), Turn(*STREET)])
    assert read(text) == Parsed((Turn(*BUS),), ("copied_example",))


def test_the_question_of_an_example_may_be_answered_otherwise() -> None:
    turn = (EXAMPLE_TURN["question"], "It is drinking milk.")
    assert turns_of(read(format_turns([Turn(*turn)]))) == [turn]


def test_an_answer_of_too_few_words_is_rejected_and_ends_a_conversation() -> None:
    strict = config(min_words=5, examples=[])
    good = Turn("What is it?", "It is a white bus.")
    short = Turn("What else?", "Only a dog there.")
    assert reason_of(read(format_turns([short, good]), using=strict)) == "too_short"
    assert reason_of(read("A bus, nothing else.", "text", using=strict)) == "too_short"
    assert reason_of(read("None", "text", using=strict)) == "too_short"
    parsed = read(format_turns([good, short]), using=strict)
    assert parsed == Parsed((good,), ("too_short",))


@pytest.mark.parametrize("end", ["Question: What else?\nAnswer:", "Question: What el"])
@pytest.mark.parametrize("finish_reason", ["stop", "length"])
def test_the_reason_is_that_of_the_first_turn_and_not_of_a_later_one(
    finish_reason: FinishReason, end: str
) -> None:
    text = f"Question: What is it?\nAnswer: The caption says a bus.\n\n{end}"
    assert reason_of(read(text, finish_reason=finish_reason)) == "leak"


def test_what_was_noted_is_noted_once() -> None:
    text = f"Sure!\nHere:\n\n{PLAIN}\n---\nOne\nTwo\n---\nThree"
    parsed = read(text)
    assert isinstance(parsed, Parsed)
    assert parsed.notes == ("preamble", "stray_text")


first_words = st.sampled_from(["The", "There", "Two", "Both", "caf\u00e9", "\u9577\u3044", "7,5"])
words = st.one_of(
    st.sampled_from(["question", "answer", "Question", "Answer", "user", "a", "q", "**bold**"]),
    st.text(st.characters(categories=["L"]), min_size=1, max_size=5),
    st.integers(0, 999).map(str),
)
inner_words = st.builds(str.__add__, words, st.sampled_from(["", "", "", ",", ":", ";"]))
sentences = st.builds(
    lambda first, inner, end: " ".join([first, *inner]) + end,
    first_words,
    st.lists(inner_words, max_size=4),
    st.sampled_from([".", "!", "?", ":", ""]),
)
texts = st.builds(
    lambda parts, joint: joint.join(parts),
    st.lists(sentences, min_size=1, max_size=4, unique_by=str.lower),
    st.sampled_from([" ", "\n", "\n\n", "\n- ", "\n* ", "\n1. "]),
).filter(lambda text: not text.endswith((",", ";")))  # such a text is cut
sane_turns = st.lists(
    st.builds(Turn, texts, texts),
    min_size=1,
    max_size=5,
    unique_by=(lambda t: " ".join(t.question.lower().split()), lambda t: t.answer),
)


@settings(deadline=None, max_examples=200, derandomize=True, database=None)
@given(sane_turns)
def test_turns_that_were_formatted_are_read_back(turns: list[Turn]) -> None:
    assert read(format_turns(turns)) == Parsed(tuple(turns))


@settings(deadline=None, max_examples=100, derandomize=True, database=None)
@given(sane_turns)
def test_turns_are_read_back_from_the_form_of_llava_with_windows_newlines(
    turns: list[Turn],
) -> None:
    text = "".join(
        f"Question:\n\n{t.question}\n\n===\n\nAnswer:\n{t.answer}\n\n===\n\n" for t in turns
    )
    assert read(text.replace("\n", "\r\n")) == Parsed(tuple(turns))


FRAGMENTS = [
    "Question:", "Answer:", "Question: ", "Answer: ", "**Question 1:** ", "**Answer:** ", "Q:",
    "A:", "User: ", "Assistant: ", "1. ", "- ", "* ", "**", "*", "_", "#", ">", ":", "3:45",
    "\n", "\n", "\n", "\n\n", "\r\n", "\r", " ", "\t", "\x0c", "\u2028", "\ufeff", "\x00",
    "===", "---", "***", "___", "\n===\n", "\n---\n", "Turn 2:", "\nTurn 2:\n",
    "```", "```python", "\n```\n", "~~~", "<think>", "</think>", "<thinking>", "</thinking>",
    "<|im_start|>assistant", "<|im_end|>", "<s>", "</s>", "<end_of_turn>", "[INST]", "[/INST]",
    "<|start_header_id|>", "<|end_header_id|>", "<image>",
    "Sure! Here is a description:\n", "Here's", "Description:", "What colour is the bus?",
    "It is red.", "The caption", "bounding box", "[0.1, 0.2", ", 0.3]", "0.5, ", "caf\u00e9",
    "Person: ", "\nPerson: Why?\n", "\nAI: ", "Model: ", "Q. ", "\nA. ", "### Question 1\n",
    "? Answer: ", ". Question: ", "Turn 2: Place\n", "\n### Turn 2: Place\n", "\n\n**Place**\n\n",
    "# Title\n", "<answer>", "</answer>", "<thought>", "</thought>", "<turn|>", "<|channel>thought",
    "<channel|>", "\u200b", "\nLet me know!", "\nNote: I", "Sure! Here is the description: ",
    "I'd be happy to help! ", "\uff1a",
]  # fmt: skip
answers = st.one_of(
    st.text(max_size=80),
    st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join),
    st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=6)), max_size=14).map("".join),
)


@settings(deadline=None, max_examples=1000, derandomize=True, database=None)
@given(
    answers,
    st.sampled_from(["turns", "turn", "text"]),
    st.sampled_from(["stop", "length", "content_filter", "other"]),
)
def test_any_text_gives_whole_turns_or_a_reason(
    text: str, form: str, finish_reason: FinishReason
) -> None:
    parsed = read(text, form, finish_reason=finish_reason)
    if isinstance(parsed, Rejected):
        assert parsed.reason
        assert parsed.detail
        return
    assert parsed.turns
    assert form == "turns" or len(parsed.turns) == 1
    for turn in parsed.turns:
        assert turn.question == turn.question.strip() != ""
        assert turn.answer == turn.answer.strip() != ""
    assert len(set(parsed.notes)) == len(parsed.notes)


@pytest.mark.parametrize("piece", [*(f for f in FRAGMENTS if f.strip()), "0.1, ", "_*", "a ", "9"])
@pytest.mark.parametrize("form", ["turns", "text"])
def test_an_answer_that_repeats_one_piece_up_to_the_limit_is_read_in_reasonable_time(
    form: str, piece: str
) -> None:
    """Degenerate answers are common; a pattern that backtracks would never come to an end."""
    for text in (piece * 5000, f"Question: Why?\nAnswer: [{piece * 2000} x", f"({piece * 2000}"):
        read(text, form, finish_reason="length")
        read(text, form)


def test_a_list_of_lettered_points_is_no_list_of_answers() -> None:
    text = "Question: Which doors are there?\nAnswer: There are two:\n- A: the left\n- B: the right"
    ((_, answer),) = turns_of(read(text))
    assert answer.endswith("- A: the left\n- B: the right")


def test_an_answer_that_goes_round_in_circles_is_rejected() -> None:
    loop = "the direction of the light is the direction of the light coming from the side, and " * 6
    assert reason_of(read(f"Question: Where from?\nAnswer: It is {loop}")) == "repetition"
    assert reason_of(read(f"It is {loop}", "text")) == "repetition"


# What took minutes at this length while a pattern or a loop was quadratic.
LONG = 100_000
BLANKS = " " * LONG


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        (f"Red.\nTurn 1{BLANKS}x", None),
        (f"Red.\n# Turn 1{BLANKS}x", "Red."),
        (f"Red.\nTurn one{BLANKS}x", None),
        (f"Red.\n```{BLANKS}!", None),
        (f"Red.\n{'<' * LONG}x", None),
        (f"Red.\n1.{BLANKS}x", None),
        (f"Red.\nQuestion 1{BLANKS}x", None),
        (f"Red.\n(Note: {BLANKS}x", None),
        ("Red.\n\n" + "".join(f"**{n}**\n\n" for n in range(LONG // 10)) + "x", None),
        ("Red." + "".join(f" {n}? A" for n in range(LONG // 10)), None),
        ("Red." + "</answer>" * (LONG // 9) + " x", None),
        ("Red. The tag " + "<answer>" * (LONG // 8) + " x", None),
        ("Red." + "\n>" * LONG, "Red."),
    ],
)
def test_long_repetitions_within_an_answer_stay_there(answer: str, kept: str | None) -> None:
    text = f"Question: {BUS[0]}\nAnswer: {answer}"
    assert turns_of(read(text)) == [(BUS[0], kept or answer)]


@pytest.mark.parametrize("repeated", ["---\n\n", "\n", " \n", "===\n", "Question:\n"])
def test_a_question_is_found_below_any_number_of_separators(repeated: str) -> None:
    text = f"Question:\n{repeated * (LONG // len(repeated))}{BUS[0]}\nAnswer: {BUS[1]}"
    assert turns_of(read(text)) == [BUS]


@pytest.mark.parametrize(
    "text",
    [
        f"Turn 1{BLANKS}x",
        f"```{BLANKS}!",
        f"Sure{BLANKS}x",
        "A bus.\n" + "Let me know\n" * (LONG // 12) + "x",
        "A bus.\n" + "# a\n" * (LONG // 4) + "x",
        "Here is" + " a" * (LONG // 2),
    ],
)
def test_long_repetitions_are_no_obstacle_to_reading_a_text(text: str) -> None:
    assert isinstance(read(text, "text"), Parsed | Rejected)


@pytest.mark.parametrize("repeated", ["[\n", '{"a":\n', "<b ", " \u2014 ", "a: b\n"])
def test_long_repetitions_below_a_question_are_no_obstacle(repeated: str) -> None:
    text = f"1. {BUS[0]}\n{repeated * (LONG // len(repeated))}\n\n2. {STREET[0]}\n{STREET[1]}"
    assert isinstance(read(text), Parsed | Rejected)


@pytest.mark.parametrize("heading", ["## Human", "**User**", "**Human**", "# Assistant"])
def test_a_heading_with_the_name_of_a_role_is_content(heading: str) -> None:
    text = f"A park with two women on a bench.\n\n{heading}\nTwo of them sit there."
    assert read(text, "text") == Parsed((Turn(ASKED, text),))


@pytest.mark.parametrize(
    "rule",
    ["--", "\u2013\u2013\u2013", "\u2e3b", "* * *", "- - -", "###", ">", "&nbsp;", "~~", "."],
)
def test_rules_at_the_end_of_an_answer_are_cut(rule: str) -> None:
    turns = [format_turns([Turn(*turn)]) for turn in BOTH]
    assert read(f"\n\n{rule}\n\n".join([*turns, ""])) == Parsed((Turn(*BUS), Turn(*STREET)))
    assert turns_of(read(f"{TEXT}\n\n{rule}", "text")) == [(ASKED, TEXT)]


@pytest.mark.parametrize(
    "template",
    [
        "Question: ...\nAnswer: ...",
        "Question: **\nAnswer: \u2026",
        "Question: [your question]\nAnswer: [the answer]",
    ],
)
def test_a_template_that_was_echoed_is_no_turn(template: str) -> None:
    expected = Parsed((Turn(*BUS), Turn(*STREET)), ("stray_text",))
    assert read(f"{template}\n\n{PLAIN}") == expected
    assert read(f"{PLAIN}\n\n{template}") == expected


def test_a_short_answer_that_comes_a_fourth_time_ends_the_conversation() -> None:
    turns = [Turn(f"Is number {n} red?", "Yes.") for n in range(60)]
    assert read(format_turns(turns)) == Parsed(tuple(turns[:3]), ("repetition",))


@pytest.mark.parametrize("tag", ["answer", "output"])
def test_turns_before_a_tag_are_kept(tag: str) -> None:
    turns = [format_turns([Turn(*turn)]) for turn in BOTH]
    expected = (Turn(*BUS), Turn(*STREET))
    assert read(f"{turns[0]}\n\n<{tag}>\n{turns[1]}\n</{tag}>") == Parsed(expected)
    parsed = read(f"<{tag}>\n{turns[0]}\n</{tag}>\nAnother one:\n{turns[1]}")
    assert parsed == Parsed(expected, ("stray_text",))


def test_doubtful_labels_stand_beside_sure_ones_where_an_answer_needs_a_question() -> None:
    text = f"Person: {BUS[0]}\nAI: {BUS[1]}\n\nPerson: {STREET[0]}\nAI: {STREET[1]}"
    parsed = read(f"{text}\n\nQuestion: And now?")
    assert parsed == Parsed((Turn(*BUS), Turn(*STREET)), ("unanswered_question",))


def test_thoughts_without_an_answer_are_named_with_what_to_try() -> None:
    for text, finish, reason in (("", "stop", "only_thoughts"), (" ", "length", "truncated")):
        completion = Completion(text, finish, only_thoughts=True)  # type: ignore[arg-type]
        found = parse(completion, CONFIG, "turns")
        assert reason_of(found) == reason
        assert isinstance(found, Rejected)
        assert "--extra_body" in found.detail


def test_what_a_filter_says_is_told() -> None:
    found = read("Not for us.", finish_reason="content_filter")
    assert found == Rejected("content_filter", "the server withheld the answer: Not for us.")


# Forms without the labels that were asked for: a turn in each (``{n}`` is its number), what is
# between two of them, and what is around all.
FORMS = {
    "numbers with dots": ("Q1.{n}: {q}\nA1.{n}: {a}", "\n\n", ""),
    "quoted bold": ("> **Ques:** {q}\n> **Ans:** {a}", "\n>\n", ""),
    "a dash within a line": ("**Q:** {q} \u2014 **A:** {a}", "\n", ""),
    "brackets": ("[Q]: {q}\n[A]: {a}", "\n\n", ""),
    "letters with a parenthesis": ("Q) {q}\nA) {a}", "\n\n", ""),
    "numbered labels in brackets": ("[Question {n}]: {q}\n[Reply {n}]: {a}", "\n", ""),
    "labels counted in words": ("Question One: {q}\nAnswer One: {a}", "\n\n", ""),
    "arrows": ("Q: {q}\n-> A: {a}", "\n\n", ""),
    "emoji": ("\u2753 Q: {q}\n\U0001f4ac A: {a}", "\n\n", ""),
    "other roles": ("Interviewer: {q}\nGuest: {a}", "\n\n", ""),
    "roles of two words": ("Curious child: {q}\nMuseum guide: {a}", "\n\n", ""),
    "names": ("**Ana:** {q}\n**Ben:** {a}", "\n", ""),
    "German": ("Frage: {q}\nAntwort: {a}", "\n\n", ""),
    "Russian": (
        "\u0412\u043e\u043f\u0440\u043e\u0441: {q}\n\u041e\u0442\u0432\u0435\u0442: {a}",
        "\n",
        "",
    ),
    "Korean": ("\uc9c8\ubb38: {q}\n\ub2f5\ubcc0: {a}", "\n\n", ""),
    "numbered questions": ("{n}. {q}\n{a}", "\n\n", ""),
    "numbered and indented": ("{n}. {q}\n   {a}", "\n", ""),
    "numbered in a line": ("{n}. {q} {a}", "\n", ""),
    "bold questions": ("**{q}**\n\n{a}", "\n\n", ""),
    "questions as headings": ("### {q}\n{a}", "\n\n", ""),
    "numbered bold questions": ("{n}. **{q}**\n   {a}", "\n\n", ""),
    "bulleted questions": ("- {q}\n  {a}", "\n", ""),
    "paragraphs": ("{q}\n{a}", "\n\n", ""),
    "JSON": ('{{"question": "{q}", "answer": "{a}"}}', ", ", "[{}]"),
    "JSON in an object": ('{{"q": "{q}", "a": "{a}"}}', ", ", '{{"conversation": [{}]}}'),
    "JSON by number": ('"{n}": {{"Question": "{q}", "Answer": "{a}"}}', ", ", "{{{}}}"),
    "JSON of a chat": (
        '{{"role": "user", "content": "{q}"}}, {{"role": "assistant", "content": "{a}"}}',
        ", ",
        "[{}]",
    ),
    "JSON of ShareGPT": (
        '{{"from": "human", "value": "{q}"}}, {{"from": "gpt", "value": "{a}"}}',
        ", ",
        '{{"conversations": [{}]}}',
    ),
    "JSON a line": ('{{"question": "{q}", "answer": "{a}"}}', "\n", ""),
    "fenced JSON": (
        '{{"question": "{q}", "answer": "{a}"}}',
        ",\n ",
        "Here you go:\n\n```json\n[{}]\n```",
    ),
    "JSON with words around": (
        '{{"question": "{q}", "answer": "{a}"}}',
        ", ",
        "Here you go:\n[{}]\nDone!",
    ),
    "a dict of Python": ("{{'question': '{q}', 'answer': '{a}'}}", ", ", "[{}]"),
    "YAML": ('- question: "{q}"\n  answer: "{a}"', "\n", ""),
    "YAML below a key": ("  - q: {q}\n    a: {a}", "\n", "turns:\n{}"),
    "a table": ("| {q} | {a} |", "\n", "| Question | Answer |\n|:--|:--|\n{}"),
    "a table with numbers": ("| {n} | {q} | {a} |", "\n", "| # | Q | A |\n|---|---|---|\n{}"),
    "tags": ("<question>{q}</question>\n<answer>{a}</answer>", "\n", ""),
    "tags in tags": ("<turn>\n<q>{q}</q>\n<a>{a}</a>\n</turn>", "\n", ""),
    "a page": ("<p><b>Question:</b> {q}</p><p><b>Answer:</b> {a}</p>", "", ""),
    "a bullet before each answer": ("{n}. **{q}**\n   - {a}", "\n\n", ""),
    "a quotation": ("> **Q:** {q}\n>\n> **A:** {a}", "\n\n", ""),
    "what a question is about": (
        "**Question {n} \u2013 Objects:** {q}\n**Answer {n}:** {a}",
        "\n\n",
        "",
    ),
    "dashes": ("Q - {q}\nA - {a}", "\n\n", ""),
    "JSON with numbers in its keys": ('"question_{n}": "{q}", "answer_{n}": "{a}"', ", ", "{{{}}}"),
    "JSON from questions to answers": ('"{q}": "{a}"', ",\n", "{{{}}}"),
    "JSON of pairs": ('["{q}", "{a}"]', ", ", "[{}]"),
    "speakers by number": ("Speaker 1: {q}\nSpeaker 2: {a}", "\n\n", ""),
    "Hindi": (
        "\u092a\u094d\u0930\u0936\u094d\u0928: {q}\n\u0909\u0924\u094d\u0924\u0930: {a}",
        "\n\n",
        "",
    ),
    "roles as headings": ("**User**\n{q}\n\n**Assistant**\n{a}", "\n\n", ""),
    "tags with numbers": ("<q{n}>{q}</q{n}>\n<a{n}>{a}</a{n}>", "\n", ""),
    "blocks of YAML": ("- question: >-\n    {q}\n  answer: |-\n    {a}", "\n", ""),
    "a string of JSON": ("Question: {q}\\nAnswer: {a}", "\\n\\n", '"{}"'),
    "JSON that never ends": ('{{"question": "{q}", "answer": "{a}"}}', ", ", '[{}, {{"question": '),
    "newlines that are spelled out": ("Question: {q}\\nAnswer: {a}", "\\n\\n", ""),
    "titled separators": (
        "Question: {q}\n===\nAnswer: {a}",
        "\n===\n",
        "=== Chat ===\n{}\n=== End ===",
    ),
    "headings of two words": ("### Short question\n{q}\n\n### Full answer\n{a}", "\n\n", ""),
    "Granite's role": (
        "Question: {q}\nAnswer: {a}",
        "\n\n",
        "<|start_of_role|>assistant<|end_of_role|>{}",
    ),
    "a kind between question and answer": ("Question: {q}\nType: colour\nAnswer: {a}", "\n", ""),
    "a list of a page": ("<li><strong>{q}</strong><br>{a}</li>", "", "<ol>{}</ol>"),
}


@pytest.mark.parametrize("form", FORMS)
def test_turns_are_read_in_whatever_form_they_come(form: str) -> None:
    turn, joint, around = FORMS[form]
    text = joint.join(turn.format(n=n, q=q, a=a) for n, (q, a) in enumerate(BOTH, 1))
    parsed = read(around.format(text) if around else text)
    assert turns_of(parsed) == BOTH


def test_an_answer_that_is_a_list_keeps_its_bullets() -> None:
    text = f"**{BUS[0]}**\n- white\n- red\n\n**{STREET[0]}**\n- {STREET[1]}"
    assert turns_of(read(text)) == [(BUS[0], "- white\n- red"), STREET]


@pytest.mark.parametrize("heading", ["Captions:", "Objects:", "### Instruction:"])
def test_where_the_words_of_a_prompt_begin_again_an_answer_ends(heading: str) -> None:
    sample = f"\n\n{heading}\n- a dog\n\n{format_turns([Turn('What is it?', 'A dog.')])}"
    assert read(PLAIN + sample) == Parsed((Turn(*BUS), Turn(*STREET)), ("next_sample",))
    assert read(TEXT + sample, "text") == Parsed((Turn(ASKED, TEXT),), ("next_sample",))


def test_turns_behind_an_echoed_prompt_are_read() -> None:
    echo = "Captions:\n- a bus\n\nObjects:\nbus: [0, 0, 0.5, 0.5]\n\n"
    assert read(echo + PLAIN) == Parsed((Turn(*BUS), Turn(*STREET)), ("preamble",))


@pytest.mark.parametrize("text", ['"A red bus."', '{"description": "A red bus."}'])
def test_a_text_in_quotes_or_json_is_read(text: str) -> None:
    assert turns_of(read(text, "text")) == [(ASKED, "A red bus.")]


def test_quotes_within_a_text_stay() -> None:
    text = '"STOP" is on one sign, and the other says "GO"'
    assert turns_of(read(text, "text")) == [(ASKED, text)]


def test_where_an_answer_comes_from_is_no_part_of_it() -> None:
    text = f"Question: {BUS[0]}\nAnswer: {BUS[1]}\n*(This is from the second caption.)*"
    assert read(text) == Parsed((Turn(*BUS),), ("stray_text",))


@pytest.mark.parametrize(
    "text",
    [
        "The days are:\nMonday: rain\nTuesday: sun\nMonday: rain\nTuesday: sun",
        '{"objects": ["bus"], "count": 2}',
        "| bus | car |\n|---|---|\n| 1 | 2 |",
        "<b>A bus</b> and <b>a car</b>",
        "Is it a bus? Nobody knows.",
        "What colour is the bus?",
    ],
)
def test_what_asks_nothing_or_answers_nothing_is_no_form(text: str) -> None:
    assert reason_of(read(text)) in ("no_labels", "no_complete_turn")


@pytest.mark.parametrize(
    "comment",
    [
        "Explanation: this is about colour.",
        "**Reasoning:** two wheels can be seen.\nSo it moves.",
        "(Type: counting)",
        "Confidence: high",
        "**Check:**\n- Two turns: yes",
        "Summary: a bus and a street.",
        "I tried to ask questions of different kinds.",
        "This conversation covers colours and places.",
        "All of these questions can be answered from the picture.",
        "Please note that these questions follow the instructions.",
        "**Notes on my choices:**\n\n* I kept it short.",
        "**Key considerations in crafting this conversation:**\n* Variety",
        "**Evaluation:** it follows all rules.",
        "Exercise 2:\nWrite another conversation.",
    ],
)
@pytest.mark.parametrize("between", [True, False])
def test_what_is_said_to_whoever_asked_is_no_part_of_a_row(comment: str, between: bool) -> None:
    first, second = (format_turns([Turn(*turn)]) for turn in BOTH)
    joint = f"\n\n{comment}\n\n"
    text = joint.join((first, second)) if between else f"{first}\n\n{second}{joint}"
    assert turns_of(read(text)) == BOTH


@pytest.mark.parametrize(
    "answer",
    [
        "The label says:\nType: sedan\nCategory: B",
        "It could be:\nA: red\nB: blue",
        "All of these people ask questions.",
        "I tried the door, says the sign.",
    ],
)
def test_a_list_of_such_words_within_an_answer_stays(answer: str) -> None:
    text = f"Question: {BUS[0]}\nAnswer: {answer}\n\n{format_turns([Turn(*STREET)])}"
    assert turns_of(read(text)) == [(BUS[0], answer), STREET]


@pytest.mark.parametrize(
    "cut",
    [
        "It stands next to the",
        "There is a cake in the middle of the table and next to it there are cups of coffee",
        "It is red. The driver looks at his",
        "The street has a bus, a tram,",
    ],
)
def test_a_last_sentence_without_its_end_is_no_answer(cut: str) -> None:
    assert reason_of(read(f"Question: {BUS[0]}\nAnswer: {cut}")) == "cut_sentence"
    whole = read(f"{PLAIN}\n\nQuestion: And then?\nAnswer: {cut}")
    assert whole == Parsed((Turn(*BUS), Turn(*STREET)), ("cut_sentence",))
    assert reason_of(read(f"A bus stands there. {cut}", "text")) == "cut_sentence"


@pytest.mark.parametrize(
    "answer", ["Red", "On the left", "A red bus with two doors", "- a bus\n- a tram"]
)
def test_short_answers_and_lists_need_no_full_stop(answer: str) -> None:
    assert turns_of(read(f"Question: {BUS[0]}\nAnswer: {answer}")) == [(BUS[0], answer)]
