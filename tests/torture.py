"""The reliability tests with their full counts, and a table of what they found: make torture.

python tests/torture.py
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FAULTS = (
    ("killed (-9) before each change of a file", 66, "test_a_kill_before_any_change_of_a_file_loses_nothing"),
    ("killed (-9) at random moments", 100, "test_a_kill_at_any_moment_loses_nothing"),
    ("a rank killed (-9) before each change of a file", 98, "test_kill_of_a_rank_before_any_change_of_a_file_loses"),
    ("all ranks killed (-9) at random moments", 30, "test_kill_of_all_ranks_at_any_moment_loses_nothing"),
    ("ranks killed (-9) and started again", 4, "started_again or come_back"),
    ("one bit flipped in a training's files", 150, "test_a_flipped_bit_is_refused_or_mended_and_never_used"),
    ("one bit flipped in a pipeline's files", 200, "test_any_flipped_bit_of_a_pipeline_is_refused"),
    ("SIGTERM, SIGINT, SIGHUP at random moments", 50, "test_signals_at_any_moment_of_a_training_lose_nothing"),
    ("disks full under a mapped cache", 40, "test_full_disk_under_a_mapped_cache"),
    ("numbers that are not finite", 4, "not_finite"),
    ("two writers at once", 30, "test_of_two_writers_at_once_one_trains"),
    ("combinations of options", 1020, "test_any_combination_of_options"),
    ("odd arguments of the Python API", 850, "test_odd_arguments_run_or_are_refused_in_one_line"),
    ("mutated pipelines", 500, "test_mutated_pipeline_opens_and_draws_or_is_refused_in_one_line"),
    ("attacks at the doors of the page", 1226, "doors_of_the_page"),
    ("pipelines re-sealed by a stranger", 600, "test_pipeline_resealed_by_a_stranger"),
    ("files of one's own in the way", 154, "test_files_of_ones_own_outlive_a_training"),
    ("all other tests of reliability", 0, ""),
)
"""Each trial: how often, and its test, which fails for anything lost, silently wrong, or a traceback."""


def main() -> None:
    began, known = time.perf_counter(), " or ".join(test for _, _, test in FAULTS if test)
    print("| fault | trials | lost | silently wrong | tracebacks | seconds |\n|---|---|---|---|---|---|")
    failed = 0
    for fault, trials, test in FAULTS:
        start = time.perf_counter()
        done = run(test or f"not ({known})")
        passed = re.search(r"(\d+) passed", done.stdout)
        trials = trials or (passed[1] if passed else 0)
        result = "failed: see below | |" if done.returncode else "0 | 0 | 0"
        print(f"| {fault} | {trials} | {result} | {time.perf_counter() - start:.0f} |", flush=True)
        if done.returncode:
            failed += 1
            print(done.stdout[-3000:], file=sys.stderr)
    print(f"\n{time.perf_counter() - began:.0f} s")
    sys.exit(1 if failed else 0)


def run(tests: str) -> subprocess.CompletedProcess:
    files = sorted((ROOT / "tests").glob("test_reliable_*.py"))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--show-capture=no",
        "--tb=short",
        "-rN",
        "-v",
        "-k",
        tests,
        *map(str, files),
    ]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"TORTURE": "1"})


if __name__ == "__main__":
    main()
