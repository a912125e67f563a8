"""Writes results/inputs.json from what the test of the table of inputs (tests/it/inputs) counted, which starts this:
`HERD_RECORD=1 cargo test --release --test it inputs::`. A row is an input as a user had it, a command, and what must come of
it: exit code, words, files."""

import json
import sys

import common
import report

COMMAND = "HERD_RECORD=1 cargo test --release --test it inputs::"
GOAL = 48


def entries(tried, wrong):
    """`tried`: rows of each subject; `wrong`: one text for each row that ended otherwise than it must."""
    total = sum(tried.values())
    return [
        common.entry(
            "inputs_tried", total, "inputs", "none",
            command=COMMAND, goal=f">= {GOAL}", reached=total >= GOAL, subjects=tried,
        ),
        common.entry(
            "inputs_wrong", len(wrong), "inputs", "none",
            command=COMMAND, goal="0", reached=not wrong, wrong=wrong,
        ),
    ]


def main():
    counted = json.load(sys.stdin)
    common.write_results(entries(counted["tried"], counted["wrong"]), common.RESULTS.with_name("inputs.json"))
    report.write()


if __name__ == "__main__":
    main()
