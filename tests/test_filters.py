"""Each filter of answers finds what it is for, and lets what only looks like it pass."""

from __future__ import annotations

from typing import get_args

import pytest

from mminstruct import prompts
from mminstruct.answers.filters import FILTERS, asks_again, reject_form
from mminstruct.answers.flaws import Rejected
from mminstruct.answers.parse import Parsed, parse
from mminstruct.prompts.config import FilterName, PromptConfig, format_turns
from mminstruct.schema import Completion, Turn

EXAMPLE = "They are driving a flock of sheep along a country road, and the man walks behind."
EXAMPLES = frozenset({("What are they doing?", EXAMPLE)})
NAMES = get_args(FilterName)

BAD = {
    "refusal": [
        "I'm sorry, but I can't help with identifying people.",
        "I apologize, but I am unable to do that.",
        "I cannot provide details about this person.",
        "I won't answer that.",
        "That would be against my guidelines.",
        "I'm unable to make inferences about a person's ethnicity.",
        "I'm not comfortable identifying the person shown here.",
        "I must decline to answer this question.",
        "I prefer not to make assumptions about her ethnicity.",
        "It would be inappropriate to speculate about that.",
    ],
    "as_ai": [
        "As an AI, I have no eyes, but it seems to be a bus.",
        "As a language model I can only guess that it is red.",
        "I'm just an AI assistant, yet it looks like a bus.",
        "Being an AI assistant, I like the red one best.",
        "I don't have personal preferences.",
        "As a text-based AI, it is red to me.",
    ],
    "cannot_see": [
        "I can't see the image, so the bus may be red.",
        "No image was provided, but buses are often red.",
        "Without seeing the picture it is hard to say.",
        "There is no way to view any photos here.",
        "I don't have access to the image, but a table usually has plates.",
        "I do not have the ability to see pictures.",
        "Please provide the image, so that the question can be answered.",
    ],
    "leak": [
        "The cup is located at x=0.53 and y=0.55, a little right of the centre.",
        "The cup is at 0.53, 0.55 in the picture.",
        "It is 40% from the left, near the door.",
        "Several of the sentences say that people wait for cake.",
        "The descriptions mention a dog.",
        "From the object data given, there are two cups.",
        "According to the captions, he rides a bicycle.",
        "Based on the provided text there are two cups.",
        "The bounding boxes overlap, so the cup is near.",
        "The second caption states that it rains.",
        "As mentioned in the third sentence, he rides a horse.",
        "He rides a horse, as stated by one of the captions.",
        "Caption 3 says that it rains.",
        "He rides a horse in one caption.",
        "Multiple captions mention a dog.",
        "Another caption calls it a ferry.",
        "All of the captions agree that it rains.",
        "The captions differ on the color.",
        "The annotations show two cups.",
        "There are two cups in the annotations.",
        "The cup was annotated as a bowl.",
        "Its coordinates are near the left edge.",
        "From the coordinates we see that it is on the left.",
        "The coordinates place it on the left.",
        "This is an image of the COCO validation set.",
        "This is image 139 of many.",
        "Never mention captions, boxes, coordinates, lists or annotations, and write 3 to 6 turns.",
        "Write each turn as two lines.",
        "No cat is listed among the objects.",
        "The object list includes a fork.",
        "The given context describes a man on a boat.",
    ],
    "unanswerable": [
        "It is not possible to determine the dog's name from the image.",
        "The name cannot be determined.",
        "It isn't specified what he is called.",
        "There is no information about the price.",
        "That is unclear from the picture.",
        "The image does not provide enough information to tell her name.",
        "There isn't enough context to say where they are.",
        "I can't determine what he is called.",
        "The picture doesn't reveal who he is.",
        "N/A",
        "The image does not provide this information.",
        "The brand is not visible or mentioned.",
        "We cannot know what he is thinking.",
        "I don't know.",
    ],
    "markup": [
        "There is a cake <image> on the table.",
        "There are [IMG] cups around it.",
        "See [the cake](https://example.org/cake).",
        "More at www.example.org about it.",
        "## Cake\nThere is a cake on the table.",
        "<p>There is a cake.</p>",
        "```\ncake\n```",
        "| cake | cups |\n|---|---|\n| 1 | 4 |",
    ],
    "personal_data": [
        "The sign says to write to jane.doe@example.com.",
        "The number on the van is 555-013-4477.",
        "Call +44 20 7946 0123 is written on it.",
        "It is at 12 Baker Street, London.",
    ],
    "copied_example": [
        EXAMPLE,
        "They are driving a flock of sheep along a narrow country road, and the man walks behind.",
    ],
    "echoed_question": ["What is it?", "what is it"],
    "gibberish": [
        "The cup is \ufffd\ufffd here.",
        "a" * 60,
        "#$%&*()_+=#$%&*()+=#$%&*()_+=#$%&*()=#$%&*() cup",
    ],
    "language": [
        "Sie sitzen um den Tisch und warten darauf, dass der Kuchen angeschnitten wird.",
        "\u4ed6\u4eec\u56f4\u5750\u5728\u9910\u684c\u65c1\uff0c\u6b63\u5728\u7b49\u5f85\u5207\u751f\u65e5\u86cb\u7cd5\u3002",
        "Est\u00e1n sentados alrededor de la mesa y esperan a que se corte la tarta.",
    ],
}
GOOD = [
    "The captions on the television are too small to read.",
    "Her scarf coordinates with her hat, and both are blue.",
    "The color of the hat coordinates well with the coat.",
    "The television shows captions at the bottom of its screen.",
    "Each caption on the screen is in white letters.",
    "One caption under the painting is torn off.",
    'The caption of the poster reads "Summer sale".',
    "A person coordinates the dancers from the side.",
    'The page is annotated with red ink, and a note reads "see annotations".',
    "The sentence on the sign says that the shop is closed.",
    "A list on the fridge says milk and eggs.",
    "The label says that the wine is from 1999.",
    "The text on the bus is red.",
    "About 50% of the cake is gone.",
    "The clock shows 10:30, and the score is 3-2.",
    "The bus has the number 42 and the plate reads AB-123.",
    "The price is $0.99 and the other costs $1.49.",
    "He sees the image of himself in a mirror.",
    "I'm sorry is written on the card.",
    "The man helps the woman, who cannot reach the shelf.",
    "It may be cold, as they wear coats.",
    "It would not be wise to cross now, since the tram can't stop at once.",
    "The painting is known for its colours.",
    "Yes.",
    "Two.",
    "A caf\u00e9 called Chez Ren\u00e9 in Montr\u00e9al.",
    "5 < 7 is written on the blackboard.",
    "They meet on Baker Street.",
    "It is a set of plates.",
    "- a bus\n- a tram",
    "Training is hard, and the set is over.",
    "The dog can't see the picture on the wall, since it faces the other way.",
    "A note at the counter says: please provide your own bag.",
    "The picture does not show any cars.",
    "A toy train set stands on the floor, next to a test set up with glass tubes.",
    "It is hard to identify the breed, but it looks like a Labrador.",
    "The second sentence on the poster is in Spanish.",
    "The displays show 0.75 and 1.25 liters.",
    "The sign says: don't mention it.",
    "His face is not visible, as he looks away.",
    "This kind of list is written by hand, and the turn is to the left.",
]


def test_a_link_or_bold_type_that_never_ends_is_left_as_it_is() -> None:
    assert rejections("[" * 9 + "a](b.png) is shown.") == "markup"
    parsed = parse(
        Completion("Question: What is it?\nAnswer: A **red **bus** in a town.", "stop"),
        prompts.load("llava"),
        "conversation",
    )
    assert parsed == Parsed((Turn("What is it?", "A **red bus in a town."),))


def rejections(answer: str, *, names: tuple[str, ...] = NAMES) -> str | None:
    """The name of the filter that finds something, in a conversation of one turn."""
    data = {
        "name": "test",
        "version": "1.0.0",
        "license": "CC0-1.0",
        "description": "For tests.",
        "filters": names,
        "types": {
            "conversation": {
                "system": "Write turns.",
                "answer_form": "turns",
                "examples": [
                    {
                        "captions": ["A man and sheep."],
                        "turns": [{"question": "What are they doing?", "answer": EXAMPLE}],
                    }
                ],
            }
        },
    }
    config = PromptConfig.model_validate(data)
    completion = Completion(format_turns([Turn("What is it?", answer)]), "stop")
    parsed = parse(completion, config, "conversation")
    return parsed.reason if isinstance(parsed, Rejected) else None


# What took minutes while a pattern was quadratic.
@pytest.mark.parametrize(
    ("repeated", "reason"),
    [("[", "gibberish"), ("a.", "gibberish"), ("**a ", "repetition"), ("12 ", "repetition")],
)
def test_long_repetitions_are_no_obstacle_to_the_filters(repeated: str, reason: str) -> None:
    text = repeated * (100_000 // len(repeated))
    assert rejections(f"Yes. {text}@") == reason


@pytest.mark.parametrize(("name", "answer"), [(n, a) for n, bad in BAD.items() for a in bad])
def test_a_filter_names_what_it_finds(name: str, answer: str) -> None:
    assert rejections(answer) == name


@pytest.mark.parametrize("name", sorted(set(BAD) - {"copied_example"}))
def test_a_filter_that_a_config_leaves_out_rejects_nothing(name: str) -> None:
    others = tuple(other for other in NAMES if other != name)
    for answer in BAD[name]:
        assert rejections(answer, names=others) != name


@pytest.mark.parametrize("answer", GOOD)
def test_what_only_looks_like_it_passes(answer: str) -> None:
    assert rejections(answer) is None


def test_each_name_is_a_filter() -> None:
    others = {"repeated_question", "too_short", "language"}
    assert {*FILTERS} | others == set(NAMES) == {*BAD} | others


@pytest.mark.parametrize("name", prompts.names())
def test_the_examples_of_all_prompt_configs_pass(name: str) -> None:
    config = prompts.load(name)
    for kind in config.types.values():
        for example in kind.examples:
            turns = [Turn(turn.question, turn.answer) for turn in example.turns]
            for turn in [*turns, Turn("", example.text or "")]:
                assert reject_form(turn, NAMES, frozenset()) is None


@pytest.mark.parametrize(
    ("first", "second", "again"),
    [
        ("What colour is the cake?", "Which colour does the cake have?", True),
        ("What colour is the cake?", "Can you tell me the cake's colour?", True),
        ("What colour is the cake?", "what COLOUR is the cake", True),
        ("Where is the dog?", "Where is the dog in the image?", True),
        ("What colour is the cake?", "What colour is the table?", False),
        ("How many cups are on the table?", "What colour are the cups on the table?", False),
        ("Is there a cat on the sofa?", "Is there a dog on the sofa?", False),
        ("What is left of the cake?", "What is right of the cake?", False),
    ],
)
def test_a_question_with_the_same_words_that_matter_is_the_same(
    first: str, second: str, again: bool
) -> None:
    assert asks_again(second, [first]) is again


def test_a_conversation_without_an_answer_of_three_words_is_no_row() -> None:
    config = prompts.load("llava")
    short = [Turn("Is there a dog?", "Yes."), Turn("Is there a cat?", "No."), Turn("Cups?", "4")]
    rejected = parse(Completion(format_turns(short), "stop"), config, "conversation")
    assert rejected == Rejected("too_short", "no answer has 3 words")
    longer = [*short, Turn("Where is the dog?", "In the lower left corner.")]
    assert isinstance(
        parse(Completion(format_turns(longer), "stop"), config, "conversation"), Parsed
    )


def test_a_short_answer_that_is_much_like_an_examples_is_no_copy() -> None:
    examples = frozenset({("What does it look like?", "Its coat is black and white.")})
    assert reject_form(Turn("What is it?", "It is black and white."), NAMES, examples) is None


def test_bold_type_goes_and_a_short_true_answer_of_an_example_is_no_copy() -> None:
    config = prompts.load("llava")
    text = format_turns(
        [Turn("What is **that**?", "It is a **red** bus, and __it__ stands still.")]
    )
    parsed = parse(Completion(text, "stop"), config, "conversation")
    assert parsed == Parsed((Turn("What is that?", "It is a red bus, and it stands still."),))
