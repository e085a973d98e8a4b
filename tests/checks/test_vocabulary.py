"""How labels are called, and by whom it is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dummy_data import write_all

from mminstruct import sources
from mminstruct.checks import Vocabulary, find_mentions
from mminstruct.checks.vocabulary import common_things, plurals_of
from mminstruct.errors import ConfigError


@pytest.mark.parametrize(
    ("word", "plural"),
    [
        ("dog", "dogs"),
        ("bus", "buses"),
        ("glass", "glasses"),
        ("bench", "benches"),
        ("puppy", "puppies"),
        ("toy", "toys"),
        ("fireman", "firemen"),
        ("human", "humans"),
        ("knife", "knives"),
        ("mouse", "mice"),
        ("sheep", "sheep"),
        ("potato", "potatoes"),
    ],
)
def test_nouns_have_their_plurals(word: str, plural: str) -> None:
    assert plural in plurals_of(word)


def test_the_longest_name_is_the_one_that_is_meant() -> None:
    found = find_mentions("A hot dog, a teddy bear, cups of coffee and a dog.", Vocabulary().index)
    assert [(m.label, m.plural) for m in found] == [
        ("hot dog", False),
        ("teddy bear", False),
        ("cup", True),
        ("dog", False),
    ]


def test_a_mention_says_where_it_is_and_what_is_said_of_it() -> None:
    text = "It rains. Perhaps the two old dogs aren't hungry; there is no cat."
    dogs, cat = find_mentions(text, Vocabulary().index)
    assert (dogs.sentence, dogs.number, dogs.definite, dogs.supposed) == (1, 2, True, True)
    assert text[dogs.start : dogs.end] == "the two old dogs"
    assert text[dogs.noun_start : dogs.end] == "dogs"
    assert (cat.negated, cat.absent, dogs.negated) == (True, True, False)


def test_names_survive_letters_whose_small_ones_are_longer() -> None:
    text = "\u0130\u0130 a dog"
    (found,) = find_mentions(text, Vocabulary().index)
    assert text[found.start : found.end] == "dog"


def test_every_common_thing_is_found_by_all_its_words() -> None:
    vocabulary, missed = Vocabulary(), []
    for label, words in common_things().items():
        for word in (label, *words.same, *words.kinds):
            found = find_mentions(f"There is one {word}.", vocabulary.index)
            if not any(sense.label == label for m in found for sense in m.senses):
                missed.append(word)
    assert len(common_things()) == 80
    assert missed == []


def test_vocabularies_add_up() -> None:
    one = Vocabulary.of({"Crane": ["derrick"]}) | Vocabulary(exhaustive=frozenset({"crane"}))
    both = one | Vocabulary.of({"crane": ["hoist"], "Quay": ()}, parents=[("crane", "machine")])
    assert both.labels["crane"].same == ("derrick", "hoist")
    assert (both.parents, both.exhaustive) == ({"crane": ("machine",)}, frozenset({"crane"}))
    found = find_mentions("Two derricks and a hoist at the quay: a machine.", both.index)
    assert [m.label for m in found] == ["crane", "crane", "quay", "machine"]


def test_parents_that_go_round_end() -> None:
    assert Vocabulary.of({}, parents=[("a", "b"), ("b", "a")]).ancestors("a") == ("b",)


def vocabulary_of(name: str, folder: Path) -> Vocabulary:
    source = sources.get(name)
    files = source.locate([folder], source.info.splits[0])
    assert files is not None
    return sources.vocabulary_of(source, files)


def test_each_source_says_how_its_labels_are_called(tmp_path: Path) -> None:
    write_all(tmp_path, 3)
    assert vocabulary_of("COCO2017", tmp_path).exhaustive == common_things().keys()
    assert "lighthouse" in vocabulary_of("SAMPLE", tmp_path).exhaustive
    assert vocabulary_of("HUMANML3D", tmp_path) == Vocabulary()
    assert vocabulary_of("LN", tmp_path) == Vocabulary()


def test_lvis_has_synonyms_in_its_file_and_a_joined_source_has_those_of_all(tmp_path: Path) -> None:
    write_all(tmp_path, 3)
    path = tmp_path / "lvis_v1_train.json"
    document = json.loads(path.read_text())
    document["categories"][0] |= {"name": "trash_can", "synonyms": ["garbage_can", "dustbin"]}
    path.write_text(json.dumps(document))
    alone = vocabulary_of("LVIS", tmp_path)
    assert alone.labels["trash can"].same == ("garbage can", "dustbin")
    joined = vocabulary_of("COCO2017+LVIS", tmp_path)
    assert joined.labels["trash can"] == alone.labels["trash can"]
    assert joined.exhaustive == common_things().keys()
    assert "tie" in joined.parents["necktie"]


def test_own_data_says_what_its_labels_are_called(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"image": "1.jpg", "captions": ["A crane."]}\n')
    described = tmp_path / "own.yaml"
    text = "name: own\nformat: table\nfiles: own.jsonl\n"
    described.write_text(text)
    plain = sources.chosen_options(sources.get(str(described)))
    described.write_text(text + "synonyms: {crane: [derrick, hoist]}\n")
    assert vocabulary_of(str(described), tmp_path).labels["crane"].same == ("derrick", "hoist")
    assert "synonyms" not in plain[0][1]
    assert sources.chosen_options(sources.get(str(described))) != plain
    described.write_text(text + "synonyms: {crane: {a: b}}\n")
    with pytest.raises(ConfigError, match="synonyms.crane"):
        sources.get(str(described))
