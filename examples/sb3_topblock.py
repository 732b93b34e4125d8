"""Stable-Baselines3 learns towers-topblock from pixels: PPO with a small convolutional network, on the CPU, in a few minutes.

    pip install stable-baselines3
    python examples/sb3_topblock.py [--steps 20000] [--seed 0] [--task towers-topblock]

Every episode is one new scene, one answer and one reward. Prints the share of new scenes that the greedy policy solves,
beside the best constant answer and random answers on the same scenes.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from vlm_probe.stimuli.environment import PhysicsEnv, environment_id

PIXELS, ENVIRONMENTS = 48, 8
TEST_SEED = 1_000_000
"""Seed of the scenes on which policies are tested; training seeds are far from it."""


class Picture(gymnasium.ObservationWrapper):
    """The picture alone: the question is the same every time, and there is one attempt."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        assert isinstance(env.observation_space, gymnasium.spaces.Dict)
        self.observation_space = env.observation_space["image"]

    def observation(self, observation: dict[str, Any]) -> Any:
        """The picture of an observation."""
        return observation["image"]


class SmallCnn(BaseFeaturesExtractor):
    """Three convolutions and a layer of 128 features."""

    def __init__(self, space: gymnasium.Space[Any], features: int = 128) -> None:
        super().__init__(space, features)
        assert space.shape is not None
        self.layers = nn.Sequential(
            nn.Conv2d(space.shape[0], 16, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * (space.shape[1] // 8) ** 2, features),
            nn.ReLU(),
        )

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """(n, features) of pictures (n, 3, edge, edge) in [0, 1]."""
        features: torch.Tensor = self.layers(pictures)
        return features


@dataclass(frozen=True)
class Result:
    """Shares of new scenes solved: by the greedy policy, by the answer that is right most often, by random answers."""

    policy: float
    constant: float
    random: float


def train(task: str, steps: int, seed: int) -> PPO:
    """A policy after that many steps of PPO."""
    torch.set_num_threads(1)
    env = make_vec_env(
        environment_id(task), ENVIRONMENTS, seed=seed, env_kwargs={"size": PIXELS}, wrapper_class=Picture
    )
    model = PPO(
        "CnnPolicy",
        env,
        learning_rate=lambda left: 1e-3 * left,
        n_steps=64,
        batch_size=128,
        n_epochs=10,
        # An episode is one step: what comes after has nothing to do with it.
        gamma=1.0,
        gae_lambda=1.0,
        ent_coef=0.01,
        policy_kwargs={"features_extractor_class": SmallCnn, "net_arch": []},
        seed=seed,
        device="cpu",
    )
    return model.learn(steps)


def test(model: PPO, task: str, n: int) -> Result:
    """The policy and two baselines on n new scenes."""
    env = PhysicsEnv(task, size=PIXELS)
    solved, chances = 0, []
    counts: Counter[Any] = Counter()
    for number in range(n):
        observation, _ = env.reset(seed=TEST_SEED if number == 0 else None)
        action, _ = model.predict(observation["image"], deterministic=True)
        *_, info = env.step(action)
        solved += info["success"]
        working = env.task.certify(env.scene, env.question)["working"]
        counts.update(str(answer) for answer in working)
        chances.append(len(working) / len(env.question.grammar.candidates()))
    return Result(solved / n, max(counts.values()) / n, float(np.mean(chances)))


def main() -> None:
    """Train, test, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--task", default="towers-topblock")
    parser.add_argument("--test", type=int, default=300, help="new scenes for the test")
    arguments = parser.parse_args()
    start, cpu = time.perf_counter(), time.process_time()
    model = train(arguments.task, arguments.steps, arguments.seed)
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    result = test(model, arguments.task, arguments.test)
    print(f"{arguments.task}: {arguments.steps} steps, seed {arguments.seed}, {cpu:.0f} s of CPU time ({wall:.0f} s)")
    print(f"greedy policy on {arguments.test} new scenes   {result.policy:.3f}")
    print(f"best constant answer              {result.constant:.3f}")
    print(f"random answers                    {result.random:.3f}")


if __name__ == "__main__":
    main()
