"""The bundled model answers its shown questions, and continues a story in plain English."""
import os

from house import FIXTURES, House, main


def rows(name):
    with open(os.path.join(FIXTURES, name), encoding="utf-8") as f:
        return [line.rstrip("\n").split("\t") for line in f if line.strip() and not line.startswith("#")]


def the_shown_questions_are_answered():
    questions = rows("questions.tsv")
    assert len(questions) >= 12
    with House() as house:
        for question, wanted in questions:
            answer = house.hearth("ask", "--temp", 0, "-n", 120, question).stdout.decode()
            assert wanted.lower() in answer.lower(), (question, wanted, answer)


def a_story_goes_on():
    with House() as house:
        story = house.hearth("complete", "--temp", 0, "-n", 80, "Once upon a time there was").stdout.decode()
        words = story.split()
        assert len(words) >= 30, story
        plain = sum(w.strip(".,!?\"'").isalpha() for w in words)
        assert plain >= 0.9 * len(words), story


main(the_shown_questions_are_answered, a_story_goes_on)
