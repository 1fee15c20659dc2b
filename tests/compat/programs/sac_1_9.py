"""Soft actor-critic of Lightning 1.9: three optimizers, and data from a replay buffer that training_step fills."""

import argparse
from collections import deque, namedtuple
from typing import Iterator, List, Tuple

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.utils.data import DataLoader
from torch.utils.data.dataset import IterableDataset

Experience = namedtuple("Experience", field_names=["state", "action", "reward", "done", "new_state"])


class PointEnv:
    """One step: the state is a number, the best action is half of it."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.reset()

    def reset(self):
        self.state = self.rng.uniform(-1, 1, size=1).astype(np.float32)
        return self.state

    def step(self, action):
        reward = -float((action[0] - 0.5 * self.state[0]) ** 2)
        return self.reset(), reward, True


class ReplayBuffer:
    def __init__(self, capacity: int) -> None:
        self.buffer = deque(maxlen=capacity)

    def __len__(self) -> int:
        return len(self.buffer)

    def append(self, experience: Experience) -> None:
        self.buffer.append(experience)

    def sample(self, batch_size: int) -> Tuple:
        indices = np.random.choice(len(self.buffer), batch_size, replace=False)
        states, actions, rewards, dones, next_states = zip(*(self.buffer[idx] for idx in indices))
        rewards = np.array(rewards, dtype=np.float32)
        return np.array(states), np.array(actions), rewards, np.array(dones), np.array(next_states)


class RLDataset(IterableDataset):
    def __init__(self, buffer: ReplayBuffer, sample_size: int = 200) -> None:
        self.buffer = buffer
        self.sample_size = sample_size

    def __iter__(self) -> Iterator[Tuple]:
        for experience in zip(*self.buffer.sample(self.sample_size)):
            yield experience


class SAC(LightningModule):
    def __init__(self, lr: float = 1e-2, batch_size: int = 32, sync_rate: int = 2, episode_length: int = 320):
        super().__init__()
        self.save_hyperparameters()
        self.env = PointEnv(seed=1)
        self.state = self.env.reset()
        self.actor = nn.Sequential(nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, 2))
        self.critic = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 1))
        self.target = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 1)).requires_grad_(False)
        self.target.load_state_dict(self.critic.state_dict())
        self.log_alpha = nn.Parameter(torch.tensor(-2.0))
        self.buffer = ReplayBuffer(2000)
        self.total_reward = deque(maxlen=200)
        self.populate(700)

    def forward(self, state: Tensor) -> Tuple[Tensor, Tensor]:
        mean, log_std = self.actor(state).chunk(2, dim=-1)
        normal = torch.distributions.Normal(mean, log_std.clamp(-4, 1).exp())
        action = normal.rsample()
        return action, normal.log_prob(action)

    @torch.no_grad()
    def play_step(self) -> float:
        state = torch.tensor(self.state, device=self.get_device()).unsqueeze(0)
        action = self(state)[0][0].cpu().numpy()
        old, (self.state, reward, done) = self.state, self.env.step(action)
        self.buffer.append(Experience(old, action, reward, done, self.state))
        self.total_reward.append(reward)
        return reward

    def populate(self, steps: int) -> None:
        for _ in range(steps):
            self.play_step()

    def get_device(self) -> str:
        return self.device.index if self.on_gpu else "cpu"

    def training_step(self, batch: Tuple[Tensor, Tensor], nb_batch, optimizer_idx) -> STEP_OUTPUT:
        states, actions, rewards, dones, next_states = batch
        alpha = self.log_alpha.exp()
        if optimizer_idx == 0:
            reward = self.play_step()
            with torch.no_grad():
                next_actions, next_log_prob = self(next_states)
                next_value = self.target(torch.cat([next_states, next_actions], -1)) - alpha * next_log_prob
                goal = rewards[:, None] + 0.99 * next_value * (~dones[:, None]).float()
            q_loss = nn.functional.mse_loss(self.critic(torch.cat([states, actions], -1)), goal)
            self.log_dict({"q_loss": q_loss, "reward": reward}, prog_bar=True)
            return q_loss
        new_actions, log_prob = self(states)
        if optimizer_idx == 1:
            policy_loss = (alpha.detach() * log_prob - self.critic(torch.cat([states, new_actions], -1))).mean()
            self.log("policy_loss", policy_loss)
            return policy_loss
        return -(self.log_alpha * (log_prob + 2.0).detach()).mean()

    def on_train_batch_end(self, outputs, batch, batch_idx) -> None:
        if batch_idx % self.hparams.sync_rate == 0:
            for param, goal in zip(self.critic.parameters(), self.target.parameters()):
                goal.data.lerp_(param.data, 0.05)

    def training_epoch_end(self, outputs) -> None:
        assert len(outputs) == 3  # a list for each optimizer
        self.log("mean_reward", float(np.mean(self.total_reward)), prog_bar=True)

    def configure_optimizers(self) -> List[Optimizer]:
        return [
            Adam(self.critic.parameters(), lr=self.hparams.lr),
            Adam(self.actor.parameters(), lr=self.hparams.lr),
            Adam([self.log_alpha], lr=1e-2),
        ]

    def train_dataloader(self) -> DataLoader:
        dataset = RLDataset(self.buffer, self.hparams.episode_length)
        return DataLoader(dataset=dataset, batch_size=self.hparams.batch_size)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--max_steps", type=int, default=900)
    args = parser.parse_args()
    seed_everything(123, workers=True)
    np.random.seed(123)
    model = SAC()
    before = float(np.mean(model.total_reward))
    trainer = Trainer(
        accelerator="auto",
        devices=1 if torch.cuda.is_available() else None,
        max_steps=args.max_steps,
        val_check_interval=10,
        enable_model_summary=False,
        log_every_n_steps=10,
        callbacks=[TQDMProgressBar(refresh_rate=0), ModelCheckpoint(monitor="mean_reward", mode="max")],
    )
    trainer.fit(model)
    print(f"regret: {-before:.3f} -> {-float(trainer.callback_metrics['mean_reward']):.3f}")
    print("steps:", trainer.global_step, "epochs:", trainer.current_epoch)
