"""Every test runs offline, on one thread a process, without progress bars, and from a fixed seed."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("ACCELERATE_USE_CPU", "true")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from transformers.utils import logging

torch.set_num_threads(1)
logging.disable_progress_bar()

POSTGRESQL_ABSENT = "PostgreSQL is not installed: the preference app was NOT tested on it (apt-get install postgresql)"


@pytest.fixture(scope="session")
def postgresql_absent() -> str:
    return POSTGRESQL_ABSENT


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    # Here and not beside the tests: with xdist only the top conftest is loaded where the summary is written.
    if any(POSTGRESQL_ABSENT in str(report.longrepr) for report in terminalreporter.getreports("skipped")):
        terminalreporter.section("WARNING", red=True, bold=True)
        terminalreporter.line(POSTGRESQL_ABSENT, red=True, bold=True)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)
