"""What is odd about printers and prints, one sentence each."""

import numpy as np

from assay.data.dataset import Column
from assay.data.domains import domain_doubts

CLASSES = ("sound", "faulty")


def doubts(rows: list[tuple[str, str, int]], train: list[int] | None = None) -> list[str]:
    """Of rows of printer, print and class."""
    printers, prints, classes = zip(*rows, strict=True)
    chosen = np.array(range(len(rows)) if train is None else train)
    return domain_doubts(
        CLASSES, np.array(classes, np.int32), Column.of(printers), Column.of(prints), chosen
    )


SOUND = [("a", "1", 0), ("a", "2", 1), ("b", "3", 0), ("b", "4", 1)]


def test_what_is_as_it_should_be_gives_no_doubt():
    assert doubts(SOUND) == []


def test_a_printer_of_one_class_in_train_is_said():
    (doubt,) = doubts([*SOUND, ("c", "5", 1), ("c", "6", 1)])
    assert doubt.startswith("All images of train of 'c' are of the class 'faulty', so that")
    (doubt,) = doubts(SOUND, train=[0, 2, 3])
    assert "of 'a' are of the class 'sound'" in doubt


def test_a_printer_that_is_not_trained_on_may_have_one_class():
    assert doubts([*SOUND, ("c", "5", 1)], train=[0, 1, 2, 3]) == []


def test_a_print_of_both_classes_is_said():
    (doubt,) = doubts([*SOUND, ("b", "4", 0)])
    assert doubt.startswith("1 of 4 groups have images of several classes, first '4'")


def test_a_print_under_two_printers_is_said():
    (doubt,) = doubts([*SOUND, ("a", "3", 0)])
    assert doubt.startswith("1 of 4 groups are of several domains, first '3'")
