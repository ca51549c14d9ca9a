"""Once around: a policy's answers are judged in the app, a reward model learns from it, and the new policy's answers come back.

    python examples/round_trip.py [--run runs/quickstart] [--output_dir runs/round_trip] [--labels 300]

The people are simulated, but nothing else is: `python -m annotate serve` runs as it does for everybody, each person logs in by
name and password and answers over HTTP. `examples/round_trip.md` does the same by hand, with people.
"""

from __future__ import annotations

import json
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import httpx

from annotate.cli import ExportConfig, ImportConfig, export, import_
from annotate.client import log_in
from annotate.simulate import USUAL, SimulatedPerson, simulate, world_judge
from annotate.store.database import open_database
from annotate.store.users import create_user
from recipes import ppo, reward, sample_pairs
from rlhf_kit.config import check_least, parse_config, run_recipe
from rlhf_kit.data import world
from rlhf_kit.data.records import load_preferences
from rlhf_kit.errors import InputError

PROJECT = "stories"
STAGES = ("pairs", "label", "export", "reward", "ppo", "new pairs")


@dataclass
class RoundTripConfig:
    """From where to where, and how much of everything."""

    run: Path = Path("runs/quickstart")  # has the SFT model, in `sft`
    output_dir: Path = Path("runs/round_trip")  # what an earlier round trip left there is deleted
    pairs: int = 400  # sampled from the SFT model, and again from the new policy
    people: int = 4
    labels: int = 360  # between the people
    members: int = 3  # reward models: what they disagree on is asked next
    reward_epochs: float = 3.0
    ppo_steps: int = 24
    ppo_batch: int = 64
    choose: int = 100  # of the new policy's pairs
    max_new_tokens: int = 96
    seed: int = 0


def main(config: RoundTripConfig) -> dict[str, Any]:
    """Go around; the counts and figures of the way."""
    check_least(config, pairs=2, people=1, labels=2, members=2, ppo_steps=1, choose=1)
    trip = RoundTrip(config)
    with trip.stage("pairs"):
        before = trip.sample(config.run / "sft", "pairs")
        trip.queue("pairs")
    with trip.stage("label"):
        said = trip.label()
    with trip.stage("export"):
        export(ExportConfig(trip.database, PROJECT, trip.out / "export", test_fraction=0.0))
        labels = load_preferences(trip.out / "export" / "train.jsonl")
    with trip.stage("reward"):
        rewards = [trip.out / f"reward{member}" for member in range(1, config.members + 1)]
        right = [trip.train_reward(folder, seed) for seed, folder in enumerate(rewards, config.seed)]
    with trip.stage("ppo"):
        trip.improve(rewards)
    with trip.stage("new pairs"):
        after = trip.sample(trip.out / "ppo", "new_pairs", reward=",".join(map(str, rewards)))
        trip.queue("new_pairs", choose=config.choose, seed=config.seed)
    return trip.tell(said, labels, right, before, after)


class RoundTrip:
    """What the stages share: the folder, the database, the clock."""

    def __init__(self, config: RoundTripConfig) -> None:
        self.config, self.out = config, config.output_dir
        if not (config.run / "sft").is_dir():
            raise InputError("--run", str(config.run), "expected a folder with an SFT model in sft: run examples/quickstart.py")
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir(parents=True)
        self.database = f"sqlite:///{(self.out / 'votes.db').resolve()}"
        self.started = time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A heading before, the time after."""
        print(f"\n== {STAGES.index(name) + 1}/{len(STAGES)} {name} ==", flush=True)
        started = time.perf_counter()
        yield
        print(f"{name}: {time.perf_counter() - started:.0f} s, {time.perf_counter() - self.started:.0f} s in all", flush=True)

    def sample(self, model: Path, name: str, **more: Any) -> list[dict[str, Any]]:
        """Two answers to each prompt; the same prompts each time."""
        options: Any = {"pairs": self.config.pairs, "max_new_tokens": self.config.max_new_tokens, "seed": self.config.seed}
        output = self.out / f"{name}.jsonl"
        return sample_pairs.main(sample_pairs.SamplePairsConfig(model=str(model), output=output, **options, **more))

    def queue(self, name: str, **choice: Any) -> None:
        """Import sampled pairs; those that cannot be shown (a NUL, say) are left out and counted."""
        import_(ImportConfig(self.database, PROJECT, str(self.out / f"{name}.jsonl"), skip_bad=True, **choice))

    def label(self) -> Counter[str]:
        """Serve the app, let everybody log in, and let them judge; what was said, counted."""
        names = [f"person {number}" for number in range(1, self.config.people + 1)]
        passwords = {name: secrets.token_urlsafe(12) for name in names}
        database = open_database(self.database)
        for name, password in passwords.items():
            create_user(database, name, password)
        database.close()
        with served(self.database, self.out / "serve.log") as address, ExitStack() as closing:
            people = []
            for name, password in passwords.items():
                client = log_in(address, name, password, PROJECT)
                closing.callback(client.close)
                people.append(SimulatedPerson(client, world_judge, USUAL, Random(f"{self.config.seed}-{name}")))
            return judged(people, self.config.labels)

    def train_reward(self, folder: Path, seed: int) -> float:
        """A reward model of the ensemble, with new weights and an order of batches of its own; its accuracy on held-out pairs."""
        data = self.out / "export" / "train.jsonl"
        found = self.recipe(
            reward, reward.RewardConfig, model=self.config.run / "sft", data=data, output_dir=folder,
            epochs=self.config.reward_epochs, batch_size=16, micro_batch_size=16, learning_rate="1e-3", weight_decay=0.01,
            eval_data="world", eval_batches=16, eval_every=0, keep_best=False, save_every=0, seed=seed,
        )  # fmt: skip
        return float(found["eval/accuracy"])

    def improve(self, rewards: list[Path]) -> None:
        """PPO against the mean of the reward models."""
        self.recipe(
            ppo, ppo.PPOConfig, model=self.config.run / "sft", reward=",".join(map(str, rewards)), output_dir=self.out / "ppo",
            total_steps=self.config.ppo_steps, batch_size=self.config.ppo_batch, micro_batch_size=32, num_epochs=2,
            num_minibatches=2, max_new_tokens=self.config.max_new_tokens, learning_rate="3e-4", critic_learning_rate="1e-3",
            save_every=0, seed=self.config.seed,
        )  # fmt: skip

    def recipe(self, module: Any, cls: Any, **settings: Any) -> Any:
        """A recipe's own `main`, its config parsed from a command line."""
        return module.main(parse_config(cls, [word for key, value in settings.items() for word in (f"--{key}", str(value))]))

    def tell(
        self, said: Counter[str], labels: list[Any], right: list[float], before: list[Any], after: list[Any]
    ) -> dict[str, Any]:
        """The way's figures, printed and in summary.json."""
        found = {
            "said": dict(said),
            "preferences": len(labels),
            "agree_with_gold": sum(map(agrees, labels)) / len(labels),
            "reward_accuracy": sum(right) / len(right),
            "gold_before": mean_gold(before),
            "gold_after": mean_gold(after),
            "seconds": time.perf_counter() - self.started,
        }
        (self.out / "summary.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        print(
            f"\n{sum(said.values())} answers over HTTP, {len(labels)} preferences, of which {found['agree_with_gold']:.0%} agree "
            f"with the gold score.\nReward models: right on {found['reward_accuracy']:.0%} of held-out pairs.\n"
            f"Mean gold score of the answers: {found['gold_before']:+.2f} before, {found['gold_after']:+.2f} after.\n"
            f"{found['seconds']:.0f} s. The next round is in the queue: python -m annotate serve --database {self.database}"
        )
        return found


@contextmanager
def served(database: str, log: Path) -> Iterator[str]:
    """The address of the app over a database, in a process of its own that ends with the block."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "annotate", "serve", "--database", database, "--port", str(port)]
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        try:
            wait_until_served(address, process, log)
            yield address
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:  # a browser that still holds a connection
                process.kill()
                process.wait()


def wait_until_served(address: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 180.0) -> None:
    """Return once the login page is there.

    Raises:
        InputError: the app ended, or took longer.
    """
    until = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < until:
        try:
            httpx.get(f"{address}/login").raise_for_status()
        except httpx.HTTPError:
            time.sleep(0.2)
        else:
            return
    raise InputError("annotate serve", process.poll(), f"but it should be running: {log} says why it is not")


def judged(people: list[SimulatedPerson], labels: int) -> Counter[str]:
    """Let people judge, and say every now and then how far they are and how long the rest will take."""
    counts: Counter[str] = Counter()
    started = told = time.perf_counter()
    while (done := sum(counts.values())) < labels:
        found = simulate(people, min(4 * len(people), labels - done))
        if not found:
            break
        counts += found
        now, done = time.perf_counter(), sum(counts.values())
        if now - told > 2 or done == labels:
            told = now
            print(f"{done}/{labels} judged, {(now - started) / done * (labels - done):.0f} s left", flush=True)
    print(", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())))
    return counts


def agrees(row: dict[str, Any]) -> bool:
    """Whether a preference is the gold score's, too."""
    prompt = row["prompt"][-1]["content"]
    chosen, rejected = world.gold_scores([prompt] * 2, [row[name][0]["content"] for name in ("chosen", "rejected")])
    return chosen > rejected


def mean_gold(records: list[dict[str, Any]]) -> float:
    """The mean gold score of sampled answers."""
    asked = [(r["prompt"][-1]["content"], r[f"response_{side}"][0]["content"]) for r in records for side in "ab"]
    scores = world.gold_scores([prompt for prompt, _ in asked], [text for _, text in asked])
    return sum(scores) / len(scores)


if __name__ == "__main__":
    run_recipe(main, RoundTripConfig)
